"""Messages of both worker roles to domain values and back."""

from baton.engine.rooms import Room
from baton.errors import InvalidRequestError
from baton.kv.transfer import KvDestination, KvReceipt
from baton.requests import EngineRequest, Priority
from baton.rpc.packed import put_ids, take_ids
from baton.rpc.sampling import sampling_message, sampling_params
from baton.v1 import decode_link_pb2, prefill_link_pb2, types_pb2

Start = decode_link_pb2.DecodeStart | prefill_link_pb2.PrefillStart


def engine_request(start: Start, traceparent: str = "") -> EngineRequest:
    """Returns the request in a start frame. Raises InvalidRequestError for a bad priority."""
    return EngineRequest(
        request_id=start.request_id,
        input_ids=take_ids(start, "input_ids"),
        sampling=sampling_params(start.sampling_params),
        priority=_priority(start.priority),
        cache_salt=start.cache_salt,
        resumed_tokens=start.resumed_tokens,
        traceparent=traceparent,
    )


def prefill_start(
    request: EngineRequest, where: KvDestination | Room, *, cached_only: bool = False
) -> prefill_link_pb2.PrefillStart:
    """Returns the frame that asks for a prefill, or for what is cached, into blocks or a room."""
    start = prefill_link_pb2.PrefillStart(
        request_id=request.request_id,
        sampling_params=sampling_message(request.sampling),
        priority=types_pb2.Priority.ValueType(request.priority),
        cache_salt=request.cache_salt,
        resumed_tokens=request.resumed_tokens,
        cached_only=cached_only,
    )
    put_ids(start, prefill_link_pb2.PrefillStart.INPUT_IDS_FIELD_NUMBER, request.input_ids)
    if isinstance(where, Room):
        room = prefill_link_pb2.Room(rendezvous=where.rendezvous, number=where.number)
        start.room.CopyFrom(room)
    else:
        start.destination.CopyFrom(destination_message(where))
    return start


def room(message: prefill_link_pb2.Room) -> Room:
    """Returns where the legs meet."""
    return Room(message.rendezvous, message.number)


def destination(message: prefill_link_pb2.KvDestination) -> KvDestination:
    """Returns where the KV goes."""
    return KvDestination(
        transfer_id=message.transfer_id,
        agent=message.agent,
        cached_tokens=message.cached_tokens,
        block_ids=tuple(message.block_ids),
    )


def destination_message(destination: KvDestination) -> prefill_link_pb2.KvDestination:
    """Returns a destination as a message."""
    return prefill_link_pb2.KvDestination(
        transfer_id=destination.transfer_id,
        agent=destination.agent,
        cached_tokens=destination.cached_tokens,
        block_ids=destination.block_ids,
    )


def receipt(message: types_pb2.KvReceipt) -> KvReceipt:
    """Returns what a writer says it delivered."""
    return KvReceipt(
        transfer_id=message.transfer_id,
        blocks=message.blocks,
        bytes=message.bytes,
        transfer_s=message.transfer_s,
        blocks_digest=message.blocks_digest,
        tokens=message.tokens,
    )


def receipt_message(receipt: KvReceipt) -> types_pb2.KvReceipt:
    """Returns a receipt as a message."""
    return types_pb2.KvReceipt(
        transfer_id=receipt.transfer_id,
        blocks=receipt.blocks,
        bytes=receipt.bytes,
        transfer_s=receipt.transfer_s,
        blocks_digest=receipt.blocks_digest,
        tokens=receipt.tokens,
    )


def _priority(number: int) -> Priority:
    try:
        return Priority(number or Priority.NORMAL)
    except ValueError:
        raise InvalidRequestError(f"unknown priority {number}", field="priority") from None
