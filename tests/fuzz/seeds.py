"""One well-formed input per target, from which mutation reaches deeper than from noise."""

import json
import time

import msgspec

from baton.engine.base import EngineStats
from baton.kv.notices import (
    ChunkNotice,
    FinalNotice,
    PoolMetadata,
    encode_metadata,
    encode_notice,
)
from baton.kv.transfer import PoolMemory
from baton.state.kv_wire import CacheChange, ChangeKind, encode_changes
from baton.state.records import (
    StatsReport,
    WorkerRecord,
    WorkerRole,
    WorkerStats,
    encode_record,
    encode_report,
)
from baton.v1 import decode_link_pb2, prefill_link_pb2, router_pb2, types_pb2

_TOKENS = list(range(16))
_SAMPLING = types_pb2.SamplingParams(max_tokens=4, temperature=0.5, stop=["end"])


def seeds() -> dict[str, list[bytes]]:
    """Returns the inputs by target."""
    return {
        "generate_request": [
            router_pb2.GenerateRequest(text="Once", sampling_params=_SAMPLING).SerializeToString(),
            router_pb2.GenerateRequest(
                messages=[router_pb2.ChatMessage(role="user", content="Hi")], tenant="a"
            ).SerializeToString(),
            router_pb2.GenerateRequest(input_ids=[1, 2, 3]).SerializeToString(),
        ],
        "decode_start": [
            decode_link_pb2.DecodeServiceLinkRequest(
                commands=[
                    decode_link_pb2.DecodeCommand(
                        stream_id=1,
                        start=decode_link_pb2.DecodeStart(request_id="r", input_ids=[1, 2]),
                    )
                ]
            ).SerializeToString()
        ],
        "prefill_start": [
            prefill_link_pb2.PrefillServiceLinkRequest(
                commands=[
                    prefill_link_pb2.PrefillCommand(
                        stream_id=1,
                        start=prefill_link_pb2.PrefillStart(request_id="r", input_ids=[1, 2]),
                    )
                ]
            ).SerializeToString()
        ],
        "tokenizer": [b"The with statement is used to wrap", b"<|assistant|>\n<|end|>"],
        "configuration": [
            b"qos:\n  ttft_slo_ms: 500\nsplit_policy:\n  policy: weighted\n",
            b'{"cache": {"block_size": 16}, "autoscale": {"prefill": {"min_replicas": 2}}}',
        ],
        "mooncake_trace": [
            json.dumps(
                {"timestamp": 0, "input_length": 1024, "output_length": 5, "hash_ids": [0, 1]}
            ).encode()
        ],
        "csv_trace": [
            b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n"
        ],
        "kv_changes": [
            encode_changes(
                [CacheChange(ChangeKind.STORED, (1, 2, 3)), CacheChange(ChangeKind.CLEARED)]
            )
        ],
        "registration": [encode_record(_record()), encode_report(_report())],
        "client_frame": [_client_frame()],
        "kv_notices": [
            encode_notice(ChunkNotice("transfer", 1, 2, 3, 4)),
            encode_notice(FinalNotice("transfer", 1, 2, 3, 4, 5)),
            encode_metadata(PoolMetadata("agent", PoolMemory(4096, 64, 8, "layout", ""), b"way")),
        ],
        "sglang_events": [
            msgspec.msgpack.encode([1.5, [["BlockStored", [7], None, _TOKENS, 16, None, "GPU"]]]),
            msgspec.msgpack.encode(
                [
                    1.5,
                    [
                        {
                            "type": "BlockStored",
                            "block_hashes": [7],
                            "token_ids": _TOKENS,
                            "block_size": 16,
                            "parent_block_hash": None,
                        },
                        {"type": "BlockRemoved", "block_hashes": [7], "medium": "GPU"},
                        {"type": "AllBlocksCleared"},
                    ],
                ]
            ),
        ],
    }


def _client_frame() -> bytes:
    message = router_pb2.RouterServiceLinkRequest()
    request = router_pb2.GenerateRequest(text="Once", sampling_params=_SAMPLING)
    message.commands.add(stream_id=1, start=request)
    return message.SerializeToString()


def _record() -> WorkerRecord:
    return WorkerRecord("decode-0", "ab12", WorkerRole.DECODE, "127.0.0.1:7000", time.time(), "m")


def _report() -> StatsReport:
    engine = EngineStats(1, 2, 3, 4, 100, 50, 30, 20, 0, 0.5)
    return StatsReport("decode-0", "ab12", WorkerStats.of_engine(engine, time.time()))
