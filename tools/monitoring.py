"""Writes Grafana's dashboards and Prometheus's alerts, from queries that a test runs for real.

python tools/monitoring.py           writes them under deploy/, and their runbook docs/alerts.md
python tools/monitoring.py --check   exits with 1 when they are not fresh
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
RUNBOOK = "docs/alerts.md"
REMEDIES = Path(__file__).with_name("runbook.yaml")
WINDOW = "$__rate_interval"
"""Grafana's own; elsewhere a fixed one takes its place."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: its queries by legend, and the unit as Grafana names it."""

    title: str
    unit: str
    queries: dict[str, str]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Alert:
    """Fires when `expr` stays beyond `limit` for `lasting`."""

    name: str
    expr: str
    limit: str
    lasting: str
    severity: str
    summary: str

    @property
    def anchor(self) -> str:
        """The runbook's section."""
        return f"{RUNBOOK}#{self.name.lower()}"


def rate(metric: str, labels: str = "") -> str:
    """Returns the query of a counter's rate."""
    return f"rate({metric}{{{labels}}}[{WINDOW}])"


def rates(metric: str, by: str, labels: str = "") -> str:
    """Returns the query of a counter's rate, summed by labels."""
    return f"sum by ({by}) ({rate(metric, labels)})"


def quantile(share: float, metric: str, by: str = "") -> str:
    """Returns the query of a histogram's quantile."""
    group = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({group}) ({rate(f'{metric}_bucket')}))"


def good_share(by: str = "") -> str:
    """Returns the query of goodput."""
    group = f" by ({by})" if by else ""
    met = rate("baton_slo_requests_total", 'baton_slo_outcome="met"')
    return f"sum{group} ({met}) / sum{group} ({rate('baton_slo_requests_total')})"


NOT_WELL = 'error_type!=""'
TTFT = "gen_ai_server_time_to_first_token_seconds"
TPOT = "gen_ai_server_time_per_output_token_seconds"
HITS = f"sum ({rate('baton_cached_tokens_total')})"
HITS_EXPECTED = f"sum ({rate('baton_cached_tokens_predicted_total')})"
PAIR = "baton_worker_prefill, baton_worker_decode"
PAIR_NAME = "{{baton_worker_prefill}} to {{baton_worker_decode}}"
MOVED = rates("baton_kv_transferred_bytes_total", PAIR)
MOVING = rates("baton_kv_transfer_time_seconds_total", PAIR)
POOL = "sum by (job, instance) (baton_kv_blocks)"
OWNED = f'sum by (job, instance) (baton_kv_blocks{{state="owned"}}) / {POOL}'
FAILED = f"sum ({rate('baton_requests_total', NOT_WELL)}) or vector(0)"
ALL = f"sum ({rate('baton_requests_total')})"


def latency(title: str, metric: str) -> Panel:
    """Returns a panel with three quantiles."""
    return Panel(title, "s", {f"p{p}": quantile(p / 100, metric) for p in (50, 95, 99)})


DASHBOARDS: dict[str, tuple[Panel, ...]] = {
    "overview": (
        Panel("Goodput", "percentunit", {"met": good_share()}, "Offered requests that met both."),
        Panel("Requests", "reqps", {"{{error_type}}": rates("baton_requests_total", "error_type")}),
        latency("Time to first token", TTFT),
        latency("Time per output token", TPOT),
        Panel(
            "Active requests",
            "short",
            {"{{baton_stage}}": "sum by (baton_stage) (baton_active_requests)"},
        ),
        Panel(
            "Workers",
            "short",
            {"{{baton_role}} {{state}}": "max by (baton_role, state) (baton_workers)"},
        ),
        Panel(
            "Prefix hits", "short", {"found": HITS, "expected": HITS_EXPECTED}, "Tokens per second."
        ),
        Panel(
            "KV moved", "Bps", {"all pairs": f"sum ({rate('baton_kv_transferred_bytes_total')})"}
        ),
    ),
    "pools": (
        Panel(
            "Waiting for an engine",
            "short",
            {"{{instance}}": "sum by (instance) (baton_queue_requests)"},
        ),
        Panel("KV in use", "percentunit", {"{{instance}}": OWNED}),
        Panel(
            "Prefill, local and remote",
            "reqps",
            {"{{baton_prefill_mode}}": rates("baton_prefills_total", "baton_prefill_mode")},
        ),
        Panel(
            "Why local or remote",
            "reqps",
            {"{{baton_prefill_reason}}": rates("baton_prefills_total", "baton_prefill_reason")},
        ),
        Panel(
            "Workers by state",
            "short",
            {"{{baton_role}} {{state}}": "max by (baton_role, state) (baton_workers)"},
        ),
        Panel(
            "Error of fitted costs",
            "percentunit",
            {"{{instance}} {{baton_cost}}": "max by (instance, baton_cost) (baton_cost_error)"},
        ),
    ),
    "qos": (
        Panel(
            "Goodput by priority",
            "percentunit",
            {"{{baton_priority}}": good_share("baton_priority")},
        ),
        Panel(
            "What was missed",
            "reqps",
            {"{{baton_slo_outcome}}": rates("baton_slo_requests_total", "baton_slo_outcome")},
        ),
        Panel(
            "Refused and failed, by reason",
            "reqps",
            {"{{error_type}}": rates("baton_requests_total", "error_type", NOT_WELL)},
        ),
        Panel(
            "Admission's answers",
            "reqps",
            {
                "{{baton_admission_verdict}}": rates(
                    "baton_requests_total", "baton_admission_verdict"
                )
            },
        ),
        Panel(
            "Permits",
            "short",
            {"{{baton_stage}}": "sum by (baton_stage) (baton_admission_permits)"},
        ),
        Panel(
            "Waiting for a permit",
            "short",
            {"{{baton_priority}}": "sum by (baton_priority) (baton_admission_queued)"},
        ),
    ),
    "kv": (
        Panel(
            "Blocks by state",
            "short",
            {"{{state}}": 'sum by (state) (baton_kv_blocks{state!="unaccounted"})'},
        ),
        Panel(
            "Unaccounted blocks",
            "short",
            {"{{instance}}": 'sum by (instance) (baton_kv_blocks{state="unaccounted"})'},
            "Anything but zero is a bug.",
        ),
        Panel("Moved, by pair", "Bps", {PAIR_NAME: MOVED}),
        Panel("Speed while moving, by pair", "Bps", {PAIR_NAME: f"{MOVED} / {MOVING}"}),
        Panel(
            "Reservations that wait",
            "short",
            {"{{instance}}": "sum by (instance) (baton_kv_leases)"},
        ),
        Panel(
            "Prefix hits, found and expected",
            "short",
            {"found": HITS, "expected": HITS_EXPECTED},
            "Tokens per second.",
        ),
    ),
    "router": (
        Panel(
            "Requests by router",
            "reqps",
            {"{{instance}}": rates("baton_requests_total", "instance")},
        ),
        latency("Request duration", "gen_ai_server_request_duration_seconds"),
        Panel(
            "Error of predicted TTFT",
            "percentunit",
            {f"p{p}": quantile(p / 100, "baton_prediction_error") for p in (50, 95)},
        ),
        Panel(
            "Index drift", "percentunit", {"{{instance}}": "max by (instance) (baton_index_drift)"}
        ),
        Panel(
            "Age of the fleet's state",
            "s",
            {"{{instance}}": "max by (instance) (baton_state_age_seconds)"},
        ),
        Panel(
            "Event loop late by",
            "s",
            {"{{instance}} p99": quantile(0.99, "baton_process_loop_stall_seconds", "instance")},
        ),
        Panel(
            "Streams moved to another worker",
            "reqps",
            {"{{instance}}": rates("baton_migrations_total", "instance")},
        ),
        Panel(
            "HTTP answers",
            "reqps",
            {
                "{{http_route}} {{http_response_status_code}}": rates(
                    "http_server_request_duration_seconds_count",
                    "http_route, http_response_status_code",
                )
            },
        ),
    ),
}

ALERTS = (
    Alert("BatonDown", 'min by (job, instance) (up{job=~"baton.*"})', "< 1", "1m", "page",
          "A process does not answer Prometheus."),
    Alert("BatonNoDecodeWorker", 'max (baton_workers{baton_role="decode", state="ready"})', "< 1",
          "30s", "page", "No decode worker is ready: nothing can be served."),
    Alert("BatonNoPrefillWorker", 'max (baton_workers{baton_role="prefill", state="ready"})', "< 1",
          "2m", "ticket", "No prefill worker is ready: decode workers compute prompts themselves."),
    Alert("BatonStaleWorkers", 'max by (baton_role) (baton_workers{state="stale"})', "> 0", "1m",
          "ticket", "Workers are registered but their figures do not arrive."),
    Alert("BatonGoodputLow", good_share(), "< 0.9", "5m", "page",
          "Fewer than nine in ten offered requests meet their targets."),
    Alert("BatonTtftHigh", quantile(0.95, TTFT), "> 2", "5m", "page",
          "The 95th percentile of the time to first token is above two seconds."),
    Alert("BatonTpotHigh", quantile(0.95, TPOT), "> 0.2", "5m", "ticket",
          "The 95th percentile of the time per output token is above 200 ms."),
    Alert("BatonManyFailures", f"({FAILED}) / {ALL}", "> 0.1", "5m", "page",
          "More than one request in ten is refused or fails."),
    Alert("BatonKvUnaccounted", 'max by (instance) (abs(baton_kv_blocks{state="unaccounted"}))',
          "> 0", "1m", "page", "KV blocks appeared or vanished: the ledger does not balance."),
    Alert("BatonKvFull", OWNED, "> 0.95", "5m", "ticket", "A KV pool is full of live work."),
    Alert("BatonStateOld", "max by (instance) (baton_state_age_seconds)", "> 10", "1m", "page",
          "A router works from an old picture of the fleet: Redis is away."),
    Alert("BatonIndexDrift", "max by (instance) (baton_index_drift)", "> 0.3", "10m", "ticket",
          "A worker's cache holds less, or more, than the index says."),
    Alert("BatonPredictionOff", quantile(0.5, "baton_prediction_error"), "> 0.5", "15m", "ticket",
          "Predicted times to first token are half wrong: costs are not fitted well."),
    Alert("BatonLoopStalls",
          quantile(0.99, "baton_process_loop_stall_seconds", "job, instance"), "> 0.2", "5m",
          "ticket", "A process's event loop is late by more than 200 ms: it needs more CPU."),
)  # fmt: skip


def dashboard(name: str, panels: tuple[Panel, ...]) -> dict[str, Any]:
    """Returns one dashboard in Grafana's JSON, two panels a row."""
    return {
        "uid": f"baton-{name}",
        "title": f"Baton: {name}",
        "tags": ["baton"],
        "timezone": "browser",
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "schemaVersion": 39,
        "links": [{"type": "dashboards", "tags": ["baton"], "title": "Baton", "asDropdown": False}],
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus", "label": "Source"}
            ]
        },
        "panels": [_panel(at, panel) for at, panel in enumerate(panels)],
    }


def _panel(at: int, panel: Panel) -> dict[str, Any]:
    return {
        "id": at + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.note,
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "gridPos": {"x": 12 * (at % 2), "y": 8 * (at // 2), "w": 12, "h": 8},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": {"fillOpacity": 8}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(65 + number), "expr": query, "legendFormat": legend, "exemplar": True}
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def rules() -> dict[str, Any]:
    """Returns the alerts as Prometheus reads them."""
    return {"groups": [{"name": "baton", "rules": [_rule(alert) for alert in ALERTS]}]}


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": f"({alert.expr.replace(WINDOW, '5m')}) {alert.limit}",
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook_url": alert.anchor},
    }


def files() -> Iterator[tuple[Path, str]]:
    """Yields each file with its content."""
    for name, panels in DASHBOARDS.items():
        text = json.dumps(dashboard(name, panels), indent=1) + "\n"
        yield DEPLOY / "grafana" / "dashboards" / f"{name}.json", text
    head = "# Made by tools/monitoring.py. Each alert's runbook is the section of its name.\n"
    body = yaml.safe_dump(rules(), sort_keys=False, width=100)
    yield DEPLOY / "prometheus" / "alerts.yml", head + body
    yield DEPLOY.parent / RUNBOOK, runbook()


def runbook() -> str:
    """Returns the page that the alerts point to."""
    remedies = yaml.safe_load(REMEDIES.read_text("utf-8"))
    parts = [
        "# Alerts\n\nEach alert of `deploy/prometheus/alerts.yml`: what it says, and what to do. "
        "This page is made by `make docs`; a test runs every query against a real Prometheus.\n"
    ]
    for alert in ALERTS:
        query = alert.expr.replace(WINDOW, "5m")
        parts.append(
            f"## {alert.name}\n\n{alert.summary} After {alert.lasting}; {alert.severity}.\n\n"
            f"{remedies[alert.name]}\n\n```promql\n({query}) {alert.limit}\n```\n"
        )
    return "\n".join(parts)


def main() -> None:
    """Writes the files, or checks that they are fresh."""
    for path, text in files():
        if "--check" not in sys.argv[1:]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path.name} is not what tools/monitoring.py says: run `make docs`")


if __name__ == "__main__":
    main()
