"""The Helm chart: what it makes fits Kubernetes' schemas and asks for no more than is needed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHECK = ROOT / "tools" / "kubernetes_check.py"
PRINT = """
import sys, yaml
sys.path.insert(0, sys.argv[1])
import kubernetes_check as check
print(yaml.safe_dump_all(check.render(check.CASES[sys.argv[2]])))
"""


def rendered(case: str) -> list[dict[str, Any]]:
    """Renders in a process of its own: the library brings the runtime of Go along."""
    pytest.importorskip("helm_python")
    command = [sys.executable, "-c", PRINT, str(CHECK.parent), case]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [each for each in yaml.safe_load_all(output) if each]


def test_every_rendered_object_fits_the_schemas() -> None:
    pytest.importorskip("helm_python")
    done = subprocess.run([sys.executable, str(CHECK)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_autoscaler_may_only_read_and_scale_the_two_pools() -> None:
    (role,) = [it for it in rendered("default") if it["kind"] == "Role"]
    assert [(rule["resources"], rule["verbs"]) for rule in role["rules"]] == [
        (["deployments"], ["get"]),
        (["deployments/scale"], ["patch"]),
    ]
    for rule in role["rules"]:
        assert rule["resourceNames"] == ["mesh-prefill", "mesh-decode"]


def test_no_container_may_do_more_than_its_work() -> None:
    for each in rendered("gpu"):
        if each["kind"] != "Deployment":
            continue
        pod = each["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        has_account = each["metadata"]["name"] == "mesh-autoscaler"
        assert pod["automountServiceAccountToken"] is has_account
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert container["resources"]["limits"]


def test_workers_get_their_devices_and_time_to_drain() -> None:
    (decode,) = [it for it in rendered("gpu") if it["metadata"]["name"] == "mesh-decode"][:1]
    pod = decode["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["resources"]["limits"]["rdma/hca"] == 1
    assert "--device=cuda" in container["args"]
    assert pod["terminationGracePeriodSeconds"] >= 30
    assert decode["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def pod_of(case: str, name: str) -> Any:
    (found,) = [
        it
        for it in rendered(case)
        if it["metadata"]["name"] == name and it["kind"] in ("Deployment", "LeaderWorkerSet")
    ]
    return found["spec"].get("template") or found["spec"]["leaderWorkerTemplate"]


def env_of(container: Any) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in container["env"]}


def test_sglang_workers_get_its_arguments_and_a_gpu_for_each_part() -> None:
    for name, image in (("prefill", "prefill"), ("decode", "decode"), ("aggregated", "decode")):
        (container,) = pod_of("sglang", f"mesh-{name}")["spec"]["containers"]
        assert container["image"] == f"baton-{image}-sglang:0.1.0"
        assert env_of(container)["BATON_ENGINE__KIND"] == "sglang"
        given = yaml.safe_load(env_of(container)["BATON_ENGINE__SGLANG"])
        assert given == {"tp_size": 2, "mem_fraction_static": 0.85}
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
        assert ("--aggregated" in container["args"]) is (name == "aggregated")
        assert "--device=cuda" not in container["args"]
    (router,) = pod_of("sglang", "mesh-router")["spec"]["containers"]
    assert env_of(router)["BATON_ENGINE__KIND"] == "sglang"
    assert router["image"] == "baton-router:0.1.0"


def test_worker_over_several_machines_is_a_group_whose_first_pod_serves() -> None:
    group = pod_of("sglang-nodes", "mesh-prefill")
    assert group["size"] == 2
    leader, follower = (
        group[name]["spec"]["containers"][0] for name in ("leaderTemplate", "workerTemplate")
    )
    assert leader["args"] == follower["args"]
    for argument in ("nnodes=$(LWS_GROUP_SIZE)", "node_rank=$(LWS_WORKER_INDEX)"):
        assert f"--engine-argument={argument}" in leader["args"]
    assert "readinessProbe" in leader
    assert not {"readinessProbe", "livenessProbe", "startupProbe"} & follower.keys()


@pytest.mark.parametrize(
    ("workers", "why"),
    [
        ({"gpus": 1, "sglang": {"enabled": True, "arguments": {"tp_size": 2}}}, "workers.gpus"),
        (
            {"gpus": 1, "sglang": {"enabled": True, "arguments": {"tp_size": 2}, "nodes": 2}},
            "autoscaler",
        ),
    ],
)
def test_fleet_that_could_not_start_is_not_rendered(workers: dict[str, Any], why: str) -> None:
    pytest.importorskip("helm_python")
    program = PRINT.replace("check.CASES[sys.argv[2]]", "yaml.safe_load(sys.argv[2])")
    command = [
        sys.executable,
        "-c",
        program,
        str(CHECK.parent),
        yaml.safe_dump({"workers": workers}),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert why in done.stderr
