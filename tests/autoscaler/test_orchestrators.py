"""The orchestrators against what they talk to: an API server over HTTP and a `docker` program."""

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from services.autoscaler.orchestrators.base import OrchestratorError
from services.autoscaler.orchestrators.compose import ComposeOrchestrator
from services.autoscaler.orchestrators.kubernetes import KubernetesOrchestrator
from services.autoscaler.state import Pool

NAMES = {Pool.PREFILL: "mesh-prefill", Pool.DECODE: "mesh-decode"}
ROOT = "/apis/apps/v1/namespaces/serving/deployments/"


class Cluster:
    """The part of an API server that knows two Deployments."""

    def __init__(self) -> None:
        self.replicas = {"mesh-prefill": 1, "mesh-decode": 2}
        self.ready = dict(self.replicas)
        self.stuck: set[str] = set()
        self.requests: list[tuple[str, str]] = []

    def deployment(self, name: str) -> dict[str, Any]:
        state = "False" if name in self.stuck else "True"
        reason = "ProgressDeadlineExceeded" if name in self.stuck else "NewReplicaSetAvailable"
        condition = {"type": "Progressing", "status": state, "reason": reason, "message": "late"}
        return {
            "kind": "Deployment",
            "apiVersion": "apps/v1",
            "metadata": {"name": name},
            "spec": {
                "replicas": self.replicas[name],
                "selector": {},
                "template": {"metadata": {}, "spec": {"containers": []}},
            },
            "status": {"readyReplicas": self.ready[name], "conditions": [condition]},
        }


@contextmanager
def serving(cluster: Cluster) -> Iterator[str]:
    """Runs the API server on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, cluster.deployment(self._name()))

        def do_PATCH(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = self._name()
            cluster.replicas[name] = body["spec"]["replicas"]
            scale = {"kind": "Scale", "apiVersion": "autoscaling/v1", "spec": body["spec"]}
            self._answer(200, scale)

        def _name(self) -> str:
            cluster.requests.append((self.command, self.path))
            return self.path.removeprefix(ROOT).split("?")[0].removesuffix("/scale")

        def _answer(self, status: int, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def api(address: str) -> client.ApiClient:
    configuration = client.Configuration()
    configuration.host = address
    configuration.retries = False
    return client.ApiClient(configuration)


async def test_kubernetes_is_scaled_through_the_scale_subresource_only() -> None:
    cluster = Cluster()
    with serving(cluster) as address:
        orchestrator = KubernetesOrchestrator(NAMES, "serving", api(address))
        seen = await orchestrator.observe()
        assert (seen[Pool.PREFILL].wanted, seen[Pool.DECODE].wanted) == (1, 2)
        await orchestrator.scale(Pool.PREFILL, 4, ("hint",))
        assert (await orchestrator.observe())[Pool.PREFILL].wanted == 4
        await orchestrator.close()
    changes = [path for method, path in cluster.requests if method != "GET"]
    assert changes == [f"{ROOT}mesh-prefill/scale"]


async def test_deployment_that_makes_no_progress_is_told() -> None:
    cluster = Cluster()
    cluster.replicas["mesh-decode"], cluster.stuck = 5, {"mesh-decode"}
    with serving(cluster) as address:
        orchestrator = KubernetesOrchestrator(NAMES, "serving", api(address))
        seen = (await orchestrator.observe())[Pool.DECODE]
        await orchestrator.close()
    assert (seen.wanted, seen.failed) == (5, 3)
    assert "ProgressDeadlineExceeded" in seen.problem


async def test_api_server_that_is_away_is_an_error_to_try_again() -> None:
    with serving(Cluster()) as address:
        pass
    orchestrator = KubernetesOrchestrator(NAMES, "serving", api(address))
    with pytest.raises(OrchestratorError):
        await orchestrator.observe()
    await orchestrator.close()


DOCKER = """
import json, pathlib, sys
state = pathlib.Path(sys.argv[1])
words = sys.argv[2:]
counts = json.loads(state.read_text())
if words[0] == "ps":
    for service, count in counts.items():
        for number in range(count):
            print(json.dumps({"Name": f"{service}-{number}", "Service": service,
                              "State": "running", "Health": "healthy", "Status": "Up"}))
    if "broken" in counts:
        print(json.dumps({"Name": "prefill-9", "Service": "prefill", "State": "restarting",
                          "Health": "", "Status": "Restarting (2)"}))
elif counts.get("refuses"):
    sys.exit("no such image")
else:
    scales = [words[n + 1] for n, word in enumerate(words) if word == "--scale"]
    counts.update({name: int(size) for name, size in (each.split("=") for each in scales)})
    state.write_text(json.dumps(counts))
"""


def compose(tmp_path: Path, **counts: int) -> tuple[ComposeOrchestrator, Path]:
    """Returns an orchestrator on a stand-in for `docker compose`, and the file of its counts."""
    state, program = tmp_path / "counts.json", tmp_path / "docker.py"
    state.write_text(json.dumps(counts))
    program.write_text(DOCKER)
    names = {Pool.PREFILL: "prefill", Pool.DECODE: "decode"}
    return ComposeOrchestrator(names, (sys.executable, str(program), str(state))), state


async def test_compose_scales_one_service_and_leaves_the_other(tmp_path: Path) -> None:
    orchestrator, state = compose(tmp_path, prefill=1, decode=3)
    await orchestrator.scale(Pool.PREFILL, 2)
    assert json.loads(state.read_text()) == {"prefill": 2, "decode": 3}
    seen = await orchestrator.observe()
    assert {pool: it.wanted for pool, it in seen.items()} == {Pool.PREFILL: 2, Pool.DECODE: 3}


async def test_compose_tells_containers_that_restart_again_and_again(tmp_path: Path) -> None:
    orchestrator, _ = compose(tmp_path, prefill=1, decode=1, broken=0)
    seen = (await orchestrator.observe())[Pool.PREFILL]
    assert (seen.wanted, seen.failed) == (2, 1)
    assert "Restarting (2)" in seen.problem


async def test_compose_that_refuses_says_why(tmp_path: Path) -> None:
    orchestrator, _ = compose(tmp_path, prefill=1, decode=1, refuses=1)
    with pytest.raises(OrchestratorError, match="no such image"):
        await orchestrator.scale(Pool.DECODE, 2)


async def test_compose_that_hangs_is_given_up(tmp_path: Path) -> None:
    names = {Pool.PREFILL: "prefill", Pool.DECODE: "decode"}
    command = (sys.executable, "-c", "import time; time.sleep(60)")
    orchestrator = ComposeOrchestrator(names, command, timeout_s=0.2)
    with pytest.raises(OrchestratorError, match="longer than"):
        async with asyncio.timeout(10):
            await orchestrator.observe()
