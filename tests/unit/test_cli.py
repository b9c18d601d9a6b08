"""The command line: configuration commands, and what the others print and how they fail."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2
from typer.testing import CliRunner, Result

from baton import errors
from baton.cli.common import router_address
from baton.cli.main import app
from baton.cli.status import kv_bar
from baton.cli.summary import bytes_text
from baton.ports import ROUTER_PORT
from baton.rpc.status import duration, to_end
from baton.v1 import link_pb2, router_pb2, router_pb2_grpc, types_pb2

ROOT = Path(__file__).parents[2]


class Router(router_pb2_grpc.RouterServiceServicer):
    """Answers every prompt with the same three words, or with an error; remembers the request."""

    def __init__(self) -> None:
        self.error: errors.BatonError | None = None
        self.request = router_pb2.GenerateRequest()

    def Link(self, request_iterator: Any, context: Any) -> Iterator[Any]:
        for request in request_iterator:
            for command in request.commands:
                if command.HasField("start"):
                    self.request = command.start
                    events = [*self.answer(), router_pb2.RouterEvent(end=self.end())]
                    for event in events:
                        event.stream_id = command.stream_id
                    yield router_pb2.RouterServiceLinkResponse(events=events)

    def answer(self) -> Iterator[router_pb2.RouterEvent]:
        if self.error is not None:
            return
        for number, text in enumerate(("one", " two", " three")):
            chunk = router_pb2.GenerateChunk(text=text, output_ids=[number])
            yield router_pb2.RouterEvent(chunk=chunk)
        yield router_pb2.RouterEvent(complete=completion())

    def end(self) -> link_pb2.LinkEnd:
        return to_end(self.error) if self.error is not None else link_pb2.LinkEnd()

    def GetFleet(self, request: Any, context: Any) -> router_pb2.GetFleetResponse:
        stats = types_pb2.WorkerStats(
            queued_requests=2,
            queued_tokens=900,
            decoding_requests=3,
            kv_blocks_total=100,
            kv_blocks_free=50,
            kv_blocks_cached=20,
            kv_blocks_owned=30,
            busy_share=0.5,
        )
        workers = [
            types_pb2.WorkerInfo(
                worker_id="decode-0",
                incarnation="0123456789abcdef",
                role=types_pb2.WORKER_ROLE_DECODE,
                address="127.0.0.1:1",
                stats=stats,
                stats_age=duration(0.25),
            ),
            types_pb2.WorkerInfo(worker_id="prefill-0", role=types_pb2.WORKER_ROLE_PREFILL),
        ]
        return router_pb2.GetFleetResponse(
            workers=workers, state_age=duration(0.5), active_requests=4
        )

    def ListRequests(self, request: Any, context: Any) -> router_pb2.ListRequestsResponse:
        done = completion()
        ended = router_pb2.RequestSummary(
            request_id="req-ended",
            stage=router_pb2.REQUEST_STAGE_ENDED,
            priority=types_pb2.PRIORITY_HIGH,
            usage=done.usage,
            placement=done.placement,
            timing=done.timing,
            met_targets=True,
        )
        running = router_pb2.RequestSummary(
            request_id="req-running", stage=router_pb2.REQUEST_STAGE_ADMISSION
        )
        count = router_pb2.AttainmentCount(priority=types_pb2.PRIORITY_HIGH, offered=8, met=7)
        return router_pb2.ListRequestsResponse(
            requests=[running, ended],
            attainment=[count],
            targets=router_pb2.Slo(ttft=duration(2), tpot=duration(0.2)),
        )


def completion() -> router_pb2.GenerateComplete:
    return router_pb2.GenerateComplete(
        request_id="r1",
        model="baton-tiny",
        finish_reason=types_pb2.FINISH_REASON_STOP,
        usage=types_pb2.Usage(prompt_tokens=1200, completion_tokens=3, cached_tokens=16),
        timing=types_pb2.TimingBreakdown(
            prefill_compute=duration(0.1),
            kv_transfer=duration(0.02),
            ttft=duration(0.12),
            tpot=duration(0.01),
            total=duration(0.14),
        ),
        placement=router_pb2.Placement(
            prefill_worker_id="prefill-0",
            decode_worker_id="decode-0",
            prefill_mode=types_pb2.PREFILL_MODE_REMOTE,
            prefill_reason="LONG_PREFILL",
            kv_bytes=3 * 2**20,
        ),
    )


@pytest.fixture
def router() -> Iterator[tuple[Router, str]]:
    servicer = Router()
    server = grpc.server(ThreadPoolExecutor(2))
    router_pb2_grpc.add_RouterServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BATON_CONFIG", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


def baton(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=stdin)


def test_config_check_sums_up_a_right_file() -> None:
    result = baton("config", "check", str(ROOT / "examples" / "chapter.yaml"))
    assert result.exit_code == 0
    assert "right; 23 settings given" in result.stdout
    assert "4 to 12 prefill and 8 to 24 decode workers" in result.stdout


def test_config_check_lists_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("qos: {ttft_slo_ms: -1, speed: 3}")
    result = baton("config", "check", str(path))
    assert result.exit_code == 1
    assert "2 invalid settings" in result.stderr
    assert "qos.ttft_slo_ms: Input should be greater than 0 (given: -1)" in result.stderr
    assert "qos.speed: unknown field" in result.stderr


def test_config_check_judges_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATON_NOPE", "1")
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert baton("config", "check", str(path)).exit_code == 0


def test_config_show_tells_value_origin_unit_and_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("cache: {block_size: 32}")
    monkeypatch.setenv("BATON_QOS__TTFT_SLO_MS", "300")
    result = baton("config", "show", str(path))
    assert result.exit_code == 0
    assert "cache.block_size: 32\n    Tokens per KV block. [tokens; from file, default 16]" in (
        result.stdout
    )
    assert "qos.ttft_slo_ms: 300\n" in result.stdout
    assert "[milliseconds; from environment, default 2000]" in result.stdout
    assert 'mesh.redis_url: ""' in result.stdout


def test_generate_streams_text_and_sums_up_on_stderr(router: tuple[Router, str]) -> None:
    _, address = router
    result = baton("generate", "hello", "--router", address)
    assert result.exit_code == 0
    assert result.stdout == "one two three\n"
    assert "remote prefill on prefill-0 (LONG_PREFILL), decode on decode-0" in result.stderr
    assert "1200 prompt tokens, 16 of them cached" in result.stderr
    assert "KV moved 3.00 MiB" in result.stderr
    assert "TTFT 120.0 ms = prefill 100.0 + transfer 20.0, TPOT 10.0 ms" in result.stderr


def test_generate_sends_what_was_asked_for(router: tuple[Router, str]) -> None:
    servicer, address = router
    where = ("--router", address, "--priority", "high", "--stop", "a", "--stop", "b")
    numbers = ("--max-tokens", "5", "--temperature", "0", "--top-p", "0.9", "--seed", "7")
    result = baton("generate", "hi", *where, *numbers)
    assert result.exit_code == 0
    request = servicer.request
    assert request.text == "hi"
    assert request.priority == types_pb2.PRIORITY_HIGH
    sent = request.sampling_params
    assert (sent.max_tokens, sent.temperature, sent.top_p, sent.seed) == (5, 0.0, 0.9, 7)
    assert list(sent.stop) == ["a", "b"]


def test_generate_leaves_sampling_to_the_mesh(router: tuple[Router, str]) -> None:
    servicer, address = router
    baton("generate", "hi", "--router", address)
    assert not servicer.request.HasField("sampling_params")


def test_generate_chat_reads_the_prompt_from_stdin(router: tuple[Router, str]) -> None:
    servicer, address = router
    result = baton(
        "generate", "-", "--chat", "--system", "Be brief", "--router", address, stdin="hi"
    )
    assert result.exit_code == 0
    turns = [(message.role, message.content) for message in servicer.request.messages]
    assert turns == [("system", "Be brief"), ("user", "hi")]
    assert not servicer.request.HasField("text")


def test_generate_json_is_one_object_with_everything(router: tuple[Router, str]) -> None:
    _, address = router
    result = baton("generate", "hi", "--json", "--router", address)
    answer = json.loads(result.stdout)
    assert answer["text"] == "one two three"
    assert answer["output_ids"] == [0, 1, 2]
    assert answer["finish_reason"] == "stop"
    assert answer["is_remote_prefill"] is True
    assert answer["kv_bytes"] == 3 * 2**20
    assert answer["timing"]["ttft_s"] == 0.12


def test_generate_failure_is_one_line_with_reason_field_and_retry(
    router: tuple[Router, str],
) -> None:
    servicer, address = router
    servicer.error = errors.OverloadedError(
        "the queue is full", reason="QUEUE_FULL", field="priority", retry_after_s=1.5
    )
    result = baton("generate", "hi", "--router", address)
    assert result.exit_code == 1
    assert result.stderr == (
        "error: the queue is full (reason QUEUE_FULL, field priority, try again in 1.5 s)\n"
    )


@pytest.mark.parametrize("command", [("generate", "hi"), ("status",)])
def test_missing_router_is_one_clear_line(command: tuple[str, ...]) -> None:
    result = baton(*command, "--router", "127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no router answers at 127.0.0.1:1 (")
    assert "`baton up`" in result.stderr
    assert result.stderr.count("\n") == 1


def test_router_is_looked_for_where_the_mesh_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert router_address(None) == f"127.0.0.1:{ROUTER_PORT}"
    monkeypatch.setenv("BATON_MESH__HOST", "10.0.0.7")
    assert router_address(None) == f"10.0.0.7:{ROUTER_PORT}"
    assert router_address("elsewhere:1") == "elsewhere:1"


def test_status_shows_workers(router: tuple[Router, str]) -> None:
    _, address = router
    result = baton("status", "--router", address)
    assert result.exit_code == 0
    assert "decode-0" in result.stdout
    assert "30 %" in result.stdout
    assert "4 active requests, state confirmed 0.5 s ago" in result.stdout


def test_top_shows_goodput_workers_the_split_and_requests(router: tuple[Router, str]) -> None:
    _, address = router
    result = baton("top", "--once", "--router", address)
    assert result.exit_code == 0, result.stderr
    for text in (
        "goodput 87.5 % of 8",
        "decode-0",
        "mean of 1 answers",
        "req-running",
        "admission",
    ):
        assert text in result.stdout


def test_status_json_has_figures_and_their_age(router: tuple[Router, str]) -> None:
    _, address = router
    fleet = json.loads(baton("status", "--json", "--router", address).stdout)
    decode, prefill = fleet["workers"]
    assert fleet["state_age_s"] == 0.5
    assert decode["role"] == "decode"
    assert decode["stats"]["kv_blocks_owned"] == 30
    assert decode["stats_age_s"] == 0.25
    assert prefill["stats"] is None


def test_kv_bar_fits_its_cells_at_any_usage() -> None:
    for owned in range(101):
        for cached in range(101 - owned):
            stats = types_pb2.WorkerStats(
                kv_blocks_total=100, kv_blocks_owned=owned, kv_blocks_cached=cached
            )
            assert len(kv_bar(stats).split()[0]) == 10


def test_bytes_have_fitting_units() -> None:
    sizes = (12, 2048, 5 * 2**20, 3 * 2**30)
    assert [bytes_text(size) for size in sizes] == ["12 B", "2.0 KiB", "5.00 MiB", "3.00 GiB"]


def test_up_refuses_a_wrong_configuration(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("colour: red")
    result = baton("up", "--config", str(path))
    assert result.exit_code == 1
    assert "colour: unknown field" in result.stderr


def test_code_numbers_of_grpc_and_google_rpc_agree() -> None:
    for code in grpc.StatusCode:
        assert code_pb2.Code.Value(code.name) == code.value[0]
