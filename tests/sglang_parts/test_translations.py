"""Parameters, outputs and figures between the mesh and SGLang."""

from pathlib import Path
from typing import Any

import pytest

from baton.engine.rooms import as_follower
from baton.engine.sglang import SglangEngine
from baton.engine.sglang.load import engine_stats
from baton.engine.sglang.options import (
    Places,
    SglangOptions,
    engine_arguments,
    kv_bytes_per_token,
)
from baton.engine.sglang.outcome import StageTimes, finish_reason, stage_times
from baton.engine.sglang.sampling import sampling_arguments
from baton.engine.sglang.start import new_places
from baton.engine.sglang.streams import Increments
from baton.errors import (
    CancelledByPeerError,
    InvalidRequestError,
    OverloadedError,
    StartupError,
    TransferError,
)
from baton.models import DEFAULT_MODEL, model_dir
from baton.requests import FinishReason, SamplingParams

PLACES = Places(1, "ipc://e", "ipc://r")


def options(role: str = "decode", **arguments: Any) -> SglangOptions:
    return SglangOptions(str(model_dir(DEFAULT_MODEL)), role, 16, 1 << 20, arguments=arguments)


def test_every_sampling_parameter_has_its_place() -> None:
    sampling = SamplingParams(
        max_tokens=9, temperature=0.5, top_p=0.9, top_k=40, min_p=0.1, seed=5,
        stop=("x",), stop_token_ids=(3,), ignore_eos=True, logprobs=True,
    )  # fmt: skip

    assert sampling_arguments(sampling, can_seed=True) == {
        "max_new_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "stop_token_ids": [3],
        "ignore_eos": True,
        "sampling_seed": 5,
    }


def test_whole_vocabulary_is_minus_one_to_sglang() -> None:
    assert sampling_arguments(SamplingParams(), can_seed=False)["top_k"] == -1


def test_seed_of_a_greedy_request_needs_no_support() -> None:
    greedy = SamplingParams(temperature=0.0, seed=1)
    assert "sampling_seed" not in sampling_arguments(greedy, can_seed=False)


def test_seed_that_sglang_would_ignore_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        sampling_arguments(SamplingParams(seed=1), can_seed=False)
    assert refused.value.field == "sampling_params.seed"


def test_large_seed_becomes_signed() -> None:
    found = sampling_arguments(SamplingParams(seed=(1 << 64) - 1), can_seed=True)
    assert found["sampling_seed"] == -1


def test_cumulative_outputs_become_increments() -> None:
    new = Increments()
    outputs = [
        {"output_ids": [1], "meta_info": {"output_token_logprobs": [(-0.5, 1, None)]}},
        {"output_ids": [1, 2, 3], "meta_info": {"output_token_logprobs": [
            (-0.5, 1, None), (-0.25, 2, None), (-1.0, 3, None)]}},
        {"output_ids": [1, 2, 3], "meta_info": {}},
    ]  # fmt: skip

    assert [new.take(output) for output in outputs] == [
        ([1], [-0.5]),
        ([2, 3], [-0.25, -1.0]),
        ([], []),
    ]


def test_good_ends_are_finish_reasons() -> None:
    assert finish_reason({"type": "stop", "matched": 2}) is FinishReason.STOP
    assert finish_reason({"type": "length", "length": 8}) is FinishReason.LENGTH


@pytest.mark.parametrize(("status", "error"), [
    (400, InvalidRequestError), (503, OverloadedError), (429, OverloadedError),
    (500, TransferError), (None, CancelledByPeerError),
])  # fmt: skip
def test_aborts_are_typed_errors(status: int | None, error: type[Exception]) -> None:
    with pytest.raises(error, match="why"):
        finish_reason({"type": "abort", "message": "why", "status_code": status})


def test_stages_come_from_sglangs_own_times() -> None:
    meta = {
        "request_received_ts": 100.0,
        "forward_entry_time": 100.25,
        "prefill_finished_time": 101.0,
    }
    assert stage_times(meta, 101.5) == StageTimes(0.25, 0.75, 0.5)


def test_stages_that_are_not_told_are_zero() -> None:
    assert stage_times({}, 5.0) == StageTimes(0.0, 0.0)
    assert stage_times({"queue_time": 0.5}, 5.0) == StageTimes(0.5, 0.0)


def figures(snapshot: dict[str, Any], indexed: int = 0, asked: int = 0, answering: int = 0) -> Any:
    return engine_stats(
        snapshot, kv_blocks=100, block_size=16, indexed_blocks=indexed, asked=asked,
        answering=answering,
    )  # fmt: skip


@pytest.mark.parametrize("used", [0, 1, 160, 5000])
@pytest.mark.parametrize("indexed", [0, 7, 500])
def test_blocks_always_add_up(used: int, indexed: int) -> None:
    stats = figures({"num_used_tokens": used}, indexed)
    total = stats.kv_blocks_free + stats.kv_blocks_cached + stats.kv_blocks_owned
    assert total == stats.kv_blocks_total == 100
    assert min(stats.kv_blocks_free, stats.kv_blocks_cached, stats.kv_blocks_owned) >= 0


def test_requests_in_transfer_are_leases_and_no_queue() -> None:
    stats = figures({
        "num_waiting_reqs": 5, "num_running_reqs": 2,
        "disaggregation": {"mode": "decode", "decode_transfer_queue_reqs": 3},
    })  # fmt: skip
    assert (stats.queued_requests, stats.kv_leases, stats.decoding_requests) == (2, 3, 2)


def test_what_was_just_asked_counts_before_the_snapshot_shows_it() -> None:
    assert figures({}, asked=4, answering=1).queued_requests == 3


def test_running_on_a_prefill_engine_is_prefilling() -> None:
    stats = figures({"num_running_reqs": 2, "disaggregation": {"mode": "prefill"}})
    assert (stats.prefilling_requests, stats.decoding_requests) == (2, 0)


def test_operators_arguments_win_over_defaults_and_lose_to_the_mesh() -> None:
    arguments = engine_arguments(options(log_level="debug", tp_size=2), PLACES)
    assert arguments["log_level"] == "debug"
    assert arguments["tp_size"] == 2
    assert arguments["page_size"] == 16
    assert arguments["disaggregation_mode"] == "decode"
    assert arguments["disaggregation_decode_enable_radix_cache"] is True


@pytest.mark.parametrize("name", ["page_size", "model_path", "disaggregation_mode", "dp_size"])
def test_arguments_of_the_mesh_are_refused(name: str) -> None:
    with pytest.raises(StartupError, match=name):
        engine_arguments(options(**{name: 1}), PLACES)


def test_aggregated_engine_has_no_disaggregation() -> None:
    arguments = engine_arguments(options("aggregated"), PLACES)
    assert not [name for name in arguments if name.startswith("disaggregation")]


def test_kv_memory_becomes_whole_pages_unless_the_operator_sizes_the_pool() -> None:
    assert engine_arguments(options(), PLACES)["max_total_tokens"] % 16 == 0
    sized = engine_arguments(options(mem_fraction_static=0.5), PLACES)
    assert "max_total_tokens" not in sized


def test_kv_of_a_token_by_kind_of_attention() -> None:
    grouped = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64,
               "num_key_value_heads": 2, "torch_dtype": "bfloat16"}  # fmt: skip
    latent = {**grouped, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert kv_bytes_per_token(grouped, "auto") == 2 * 2 * 2 * 16 * 2
    assert kv_bytes_per_token(grouped, "float32") == 2 * kv_bytes_per_token(grouped, "auto")
    assert kv_bytes_per_token(latent, "auto") == 2 * 2 * 576


def test_places_of_a_start_are_ones_that_connections_are_never_given(tmp_path: Path) -> None:
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    places = [new_places(tmp_path) for _ in range(20)]
    for place in places:
        if given.exists():
            assert place.bootstrap < int(given.read_text().split()[0])
        assert place.events.startswith(f"ipc://{tmp_path}/")
    assert len({place.events for place in places}) == 20


@pytest.mark.parametrize(("rank", "follows"), [(0, False), (1, True)])
def test_only_the_first_machine_of_an_engine_serves(rank: int, follows: bool) -> None:
    engine = SglangEngine(options(nnodes=2, node_rank=rank, dist_init_addr="leader:5757"))
    assert (as_follower(engine) is not None) is follows
