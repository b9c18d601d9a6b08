"""The permits and queues of this moment as a message."""

from baton.requests import Priority
from baton.v1 import admission_pb2
from services.admission.desk import PermitDesk


def state_message(desk: PermitDesk) -> admission_pb2.AdmissionServiceGetStateResponse:
    """Returns what `GetState` shows."""
    load, door = desk.load, desk.door
    other = door.ledger.elsewhere
    return admission_pb2.AdmissionServiceGetStateResponse(
        prefill_permits=load.prefill_permits - other.prefilling,
        decode_permits=load.decode_permits - other.decoding,
        queued_requests=load.waiting_ahead,
        prefill_s_per_request=load.prefill_s,
        decode_s_per_request=load.decode_s,
        policy=door.policy_name,
        predicted_wait_s=load.wait_s,
        predicted_tpot_s=load.decode.tpot_s(load.streams),
        other_permits=other.prefilling + other.decoding,
        quota=door.ledger.quota,
        degradation_levels=[door.degradation_level(priority) for priority in sorted(Priority)],
    )
