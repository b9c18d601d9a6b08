"""What the compose stack and its images promise, read from their files without an engine."""

import re
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from baton.config import load_config
from baton.engine.sglang import SglangOptions
from baton.ports import GATEWAY_PORT, ROUTER_PORT
from baton.v1 import admission_pb2, decode_pb2, prefill_pb2, router_pb2

ROOT = Path(__file__).parents[2]
OURS = ("router", "admission", "prefill", "decode")
IMAGES = (*OURS, "gateway")
DOCKERFILES = (*IMAGES, "autoscaler")
"""The autoscaler is an image for Kubernetes: beside compose it runs on the host."""

WORKERS = ("prefill", "decode")
LOCKS = {
    "router": "router",
    "admission": "base",
    "prefill": "worker",
    "decode": "worker",
    "gateway": "gateway",
    "autoscaler": "kubernetes",
}
HEAVY = {"torch", "nixl", "transformers", "safetensors"}


@cache
def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def services() -> dict[str, Any]:
    found: dict[str, Any] = load("docker-compose.yml")["services"]
    return found


@cache
def variables() -> dict[str, str]:
    lines = (ROOT / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def instructions(service: str) -> list[str]:
    """Returns a Dockerfile's instructions, one a line."""
    text = (ROOT / "services" / service / "Dockerfile").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def requirements(extra: str) -> set[str]:
    """Returns the names of all that `pip install baton[extra]` brings here."""
    found: set[str] = set()
    pending = [("baton", frozenset({extra}))]
    while pending:
        name, extras = pending.pop()
        for text in distribution(name).requires or ():
            needed = Requirement(text)
            chosen = [{"extra": wanted} for wanted in extras or {""}]
            is_for_us = needed.marker is None or any(needed.marker.evaluate(c) for c in chosen)
            if is_for_us and needed.name.lower() not in found:
                found.add(needed.name.lower())
                pending.append((needed.name, frozenset(needed.extras)))
    return found


def test_stack_is_that_of_baton_up_with_console_and_metrics() -> None:
    default = {name for name, s in services().items() if s.get("profiles", ["cpu"]) == ["cpu"]}
    assert default == {"redis", *IMAGES, "collector", "jaeger", "prometheus", "grafana"}
    assert variables()["COMPOSE_PROFILES"] == "cpu"


def test_sglang_replaces_the_engine_of_the_gpu_profile() -> None:
    override = load("deploy/compose.sglang.yaml")["services"]
    assert override.keys() == {"router", "prefill-gpu", "decode-gpu"}
    for role in WORKERS:
        worker, base = override[f"{role}-gpu"], services()[f"{role}-gpu"]
        assert base["profiles"] == ["gpu"]
        assert worker["build"]["args"]["EXTRA"] == "sglang"
        assert worker["image"] != base["image"]
        assert worker["environment"]["BATON_ENGINE__KIND"] == "sglang"
        assert worker["environment"]["BATON_ENGINE__SGLANG"] == "${SGLANG_ARGUMENTS:-}"
        assert "--device" not in worker["command"]
    assert override["router"]["environment"]["BATON_ENGINE__KIND"] == "sglang"


def test_arguments_of_sglang_reach_its_engine_as_compose_gives_them() -> None:
    given = '{tp_size: 4, nnodes: 2, node_rank: 0, dist_init_addr: "leader:5757"}'
    config = load_config(
        environ={"BATON_ENGINE__KIND": "sglang", "BATON_ENGINE__SGLANG": given, "REDIS_URL": "x"}
    )
    options = SglangOptions("m", "prefill", 16, 1 << 30, arguments=config.engine.sglang)
    assert options.tensor_parallelism == 4
    assert dict(options.arguments) == yaml.safe_load(given)


def test_gpu_profile_replaces_the_workers_and_reserves_a_gpu_each() -> None:
    for role in WORKERS:
        worker = services()[f"{role}-gpu"]
        assert worker["profiles"] == ["gpu"]
        assert worker["healthcheck"] == services()[role]["healthcheck"]
        devices = worker["deploy"]["resources"]["reservations"]["devices"]
        assert [device["capabilities"] for device in devices] == [["gpu"]]


@pytest.mark.parametrize("name", services())
def test_every_service_is_bounded_and_unprivileged(name: str) -> None:
    service = services()[name]
    assert service["mem_limit"]
    assert service["logging"]["options"]["max-size"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "cap_add" not in service


# The collector's image holds nothing that could ask it.
@pytest.mark.parametrize("name", sorted(services().keys() - {"collector"}))
def test_every_service_has_a_healthcheck_with_a_start_period(name: str) -> None:
    check = services()[name]["healthcheck"]
    assert {"test", "interval", "timeout", "retries", "start_period"} <= check.keys()


@pytest.mark.parametrize("name", services())
def test_dependencies_are_waited_for_until_they_are_healthy(name: str) -> None:
    for dependency, wait in services()[name].get("depends_on", {}).items():
        assert wait == {"condition": "service_healthy"}
        assert services()[dependency]["healthcheck"]


def test_only_what_clients_call_takes_a_fixed_port_and_all_stay_on_loopback() -> None:
    ports = {name: s["ports"] for name, s in services().items() if "ports" in s}
    assert ports.pop("router") == ["${ROUTER_ADDRESS:-127.0.0.1}:${ROUTER_PORT:-7411}:7411"]
    gateway = ["${GATEWAY_ADDRESS:-127.0.0.1}:${GATEWAY_PORT:-7480}:7480"]
    assert ports.pop("gateway") == gateway
    for name, port in (("ROUTER", ROUTER_PORT), ("GATEWAY", GATEWAY_PORT)):
        assert variables()[f"{name}_ADDRESS"] == "127.0.0.1"
        assert variables()[f"{name}_PORT"] == str(port)
    for published in ports.values():
        assert all(re.fullmatch(r"127\.0\.0\.1:\$\{\w+:-\}:\d+", port) for port in published)


def test_images_are_pinned_in_the_env_file() -> None:
    used = {name: s["image"] for name, s in services().items()}
    for name in ("redis", "collector", "jaeger", "prometheus", "grafana"):
        variable = re.fullmatch(r"\$\{(\w+_IMAGE):\?set in \.env\}", used[name])
        assert variable, used[name]
        assert re.search(r":v?\d+\.\d+\.\d+", variables()[variable[1]])
    assert re.search(r":3\.11\.\d+-\S+@sha256:[0-9a-f]{64}$", variables()["PYTHON_IMAGE"])


def test_every_variable_of_the_env_file_is_used() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    unused = [name for name in variables() if f"${{{name}" not in text]
    assert unused == ["COMPOSE_PROFILES"]  # read by compose itself


def test_health_checks_ask_for_services_that_exist_at_the_port_they_listen_on() -> None:
    files = {
        "router": router_pb2,
        "admission": admission_pb2,
        "prefill": prefill_pb2,
        "decode": decode_pb2,
    }
    for name in OURS:
        address, asked = services()[name]["healthcheck"]["test"][-2:]
        port = address.rpartition(":")[2]
        assert asked in {
            service.full_name for service in files[name].DESCRIPTOR.services_by_name.values()
        }
        assert f"EXPOSE {port}" in instructions(name)
        assert f'CMD ["--host", "0.0.0.0", "--port", "{port}"]' in instructions(name)


def test_the_gateway_asks_itself_whether_it_is_ready() -> None:
    test = services()["gateway"]["healthcheck"]["test"]
    assert test[2:] == ["-m", "services.gateway.probe", f"http://127.0.0.1:{GATEWAY_PORT}/readyz"]
    assert f"EXPOSE {GATEWAY_PORT}" in instructions("gateway")


@pytest.mark.parametrize("service", IMAGES)
def test_image_runs_as_a_user_without_privileges(service: str) -> None:
    users = [line for line in instructions(service) if line.startswith("USER")]
    assert users == ["USER 10001"]
    last_stage = len(instructions(service)) - 1
    while not instructions(service)[last_stage].startswith("FROM"):
        last_stage -= 1
    assert instructions(service).index(users[0]) > last_stage


@pytest.mark.parametrize("service", DOCKERFILES)
def test_image_is_built_in_stages_on_the_pinned_base(service: str) -> None:
    stages = [line for line in instructions(service) if line.startswith("FROM")]
    assert stages[0] == "FROM ${BASE_IMAGE} AS python"
    assert stages[-1] == "FROM ${BASE_IMAGE}"
    assert f"ARG BASE_IMAGE={variables()['PYTHON_IMAGE']}" in instructions(service)
    if service in services():
        assert "${PYTHON_IMAGE" in services()[service]["build"]["args"]["BASE_IMAGE"]


@pytest.mark.parametrize("service", DOCKERFILES)
def test_images_differ_in_what_they_install_and_start_alone(service: str) -> None:
    def shape(name: str) -> list[str]:
        text = " ".join(instructions(name)).replace(f"{LOCKS[name]}.lock", "ITS.lock")
        return re.sub(r"74\d\d", "PORT", text).replace(f"baton-{name}", "baton-NAME").split()

    assert shape(service) == shape("decode" if service in WORKERS else "router")


@pytest.mark.parametrize("service", DOCKERFILES)
def test_image_needs_no_dockerfile_frontend_from_a_registry(service: str) -> None:
    first = (ROOT / "services" / service / "Dockerfile").read_text().splitlines()[0]
    assert not re.match(r"#\s*syntax\s*=", first)


@pytest.mark.parametrize("service", DOCKERFILES)
def test_image_installs_its_lock_alone_and_by_hashes(service: str) -> None:
    text = " ".join(" ".join(instructions(service)).split())
    locks = re.findall(r"--require-hashes --requirement (\S+)", text)
    assert locks == [f"{LOCKS[service]}.lock", "build.lock"]
    assert all(f"requirements/{lock}" in text for lock in locks)
    assert "--no-cache-dir --no-index --no-deps --prefix /code /wheel/" in text


@pytest.mark.parametrize("extra", ["", "router", "gateway", "kubernetes"])
def test_light_requirements_hold_no_torch(extra: str) -> None:
    found = requirements(extra)
    assert {"grpcio", "redis"} <= found
    assert not found & HEAVY


def test_worker_requirements_hold_torch() -> None:
    assert requirements("worker") >= HEAVY


def test_worker_images_share_all_steps_but_the_last() -> None:
    prefill, decode = (instructions(service) for service in WORKERS)
    end = next(i for i, line in enumerate(prefill) if line.startswith("EXPOSE"))
    assert prefill[:end] == decode[:end]


def test_collector_passes_on_what_it_receives() -> None:
    config = load("deploy/collector/config.yaml")
    for pipeline in config["service"]["pipelines"].values():
        for part in ("receivers", "processors", "exporters"):
            assert set(pipeline[part]) <= set(config[part])
    grpc = config["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    endpoint = load("docker-compose.yml")["x-environment"]["BATON_MESH__OTLP_ENDPOINT"]
    assert f"http://collector:{grpc.rpartition(':')[2]}" in endpoint
    scraped = load("deploy/prometheus/prometheus.yml")["scrape_configs"][0]["static_configs"][0]
    offered = config["exporters"]["prometheus"]["endpoint"].rpartition(":")[2]
    assert scraped["targets"] == [f"collector:{offered}"]
    assert config["exporters"]["otlp/jaeger"]["endpoint"] == "jaeger:4317"


def test_mounted_files_exist() -> None:
    for service in services().values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source


def test_shared_memory_file_changes_the_workers_and_adds_one_holder() -> None:
    changed = load("deploy/compose.shared-memory.yaml")["services"]
    workers = {name for name in services() if name.split("-")[0] in WORKERS}
    assert set(changed) == workers | {"kv-space"}
    for name in workers:
        assert changed[name]["pid"] == changed[name]["ipc"] == "service:kv-space"
