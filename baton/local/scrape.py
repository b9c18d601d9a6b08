"""Lets Prometheus find the metrics of every process of a local stack.

Each service offers them at a port of its own; the run's folder holds a configuration that follows
the processes as they come:  prometheus --config.file=.baton/run/TIME/prometheus.yml
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import yaml

import baton
from baton.local.child import ChildSpec
from baton.local.roles import Role
from baton.ports import free_port
from baton.state.embedded import HOST
from baton.telemetry.exporters import PROMETHEUS_HOST, PROMETHEUS_PORT

RULES = Path(baton.__file__).parents[1] / "deploy" / "prometheus" / "alerts.yml"
_INTERVAL = "2s"


class Scrape:
    """The ports of a stack's metrics and the files that tell Prometheus of them."""

    def __init__(self, run_dir: Path) -> None:
        self.config = run_dir / "prometheus.yml"
        self._targets = run_dir / "prometheus-targets.json"
        self._ports: dict[str, tuple[Role, int]] = {}

    def offering(self, spec: ChildSpec, role: Role) -> ChildSpec:
        """Returns the process with a port for its metrics, the same through all its lives."""
        if role is Role.REDIS:
            return spec
        if spec.name not in self._ports:
            self._ports[spec.name] = (role, free_port(HOST))
            self._write()
        added = {
            "OTEL_METRICS_EXPORTER": "prometheus",
            PROMETHEUS_HOST: HOST,
            PROMETHEUS_PORT: str(self._ports[spec.name][1]),
        }
        return replace(spec, environ={**spec.environ, **added})

    def _write(self) -> None:
        targets = [
            {
                "targets": [f"{HOST}:{port}"],
                "labels": {"job": f"baton-{role.value}", "instance": name},
            }
            for name, (role, port) in self._ports.items()
        ]
        self._targets.write_text(json.dumps(targets, indent=1), encoding="utf-8")
        if not self.config.exists():
            self.config.write_text(yaml.safe_dump(self._settings(), sort_keys=False), "utf-8")

    def _settings(self) -> Mapping[str, object]:
        return {
            "global": {"scrape_interval": _INTERVAL, "evaluation_interval": _INTERVAL},
            "rule_files": [str(RULES)] if RULES.exists() else [],
            "scrape_configs": [
                {
                    "job_name": "baton",
                    "file_sd_configs": [
                        {"files": [str(self._targets.resolve())], "refresh_interval": "2s"}
                    ],
                }
            ],
        }
