"""Renders the Helm chart with several sets of values and checks what comes out.

Helm's own Go library renders (the package helm-python-sdk carries it), and each object is checked
against the schemas of Kubernetes itself, offline and strictly: `python tools/kubernetes_check.py`.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml

CHART = Path(__file__).parents[1] / "deploy" / "kubernetes" / "baton"
VERSION = "1.31"
CASES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "gpu": {
        "workers": {"gpus": 1, "rdma": {"resource": "rdma/hca"}},
        "model": {
            "name": "/models/llama",
            "volume": {"persistentVolumeClaim": {"claimName": "models"}},
        },
        "tls": {"secretName": "baton-tls"},
        "serviceMonitor": {"enabled": True},
        "settings": {"BATON_QOS__TTFT_SLO_MS": 500},
    },
    "sglang": {
        "workers": {
            "gpus": 2,
            "sglang": {
                "enabled": True,
                "arguments": {"tp_size": 2, "mem_fraction_static": 0.85},
                "aggregated": 1,
            },
        },
    },
    "sglang-nodes": {
        "workers": {
            "gpus": 8,
            "sglang": {"enabled": True, "arguments": {"tp_size": 16}, "nodes": 2},
        },
        "autoscaler": {"enabled": False},
    },
    "least": {
        "redis": {"url": "redis://elsewhere:6379/0"},
        "gateway": {"enabled": False},
        "autoscaler": {"enabled": False},
        "networkPolicy": {"enabled": False},
    },
}
OWN_KINDS = ("ServiceMonitor", "LeaderWorkerSet")
"""Kinds of other projects, which Kubernetes has no schema of."""


def render(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the objects that the chart makes of `values`."""
    with helm_python.Chart.load(str(CHART)) as chart:
        files = chart.render(dict(values), name="mesh", namespace="serving")
    return [
        each
        for text in files.values()
        for each in yaml.safe_load_all(text)
        if isinstance(each, dict)
    ]


def problems(objects: list[dict[str, Any]]) -> Iterator[str]:
    """Yields what is wrong with the objects."""
    for each in objects:
        name = f"{each.get('kind')} {each.get('metadata', {}).get('name')}"
        for known in pods(each) if each["kind"] in OWN_KINDS else (each,):
            try:
                kubernetes_validate.validate(known, VERSION, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{name}: {error.message}"


def pods(each: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the pods that an object of another project's kind is made of."""
    templates = each.get("spec", {}).get("leaderWorkerTemplate", {})
    for name in ("leaderTemplate", "workerTemplate"):
        if name in templates:
            yield {"apiVersion": "v1", "kind": "Pod", **templates[name]}


def main() -> int:
    """Checks all cases; returns the exit code."""
    failed = False
    for case, values in CASES.items():
        objects = render(values)
        found = list(problems(objects))
        failed |= bool(found)
        print(f"{case}: {len(objects)} objects, {len(found)} problems")
        for problem in found:
            print(f"  {problem}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
