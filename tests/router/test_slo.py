"""Attainment over sliding windows: per class and tenant, bounded, and what it makes of a budget."""

from pathlib import Path

import pytest
import yaml

from baton.requests import Priority
from baton.telemetry import names
from services.router.slo import OBJECTIVES, WINDOWS, Attainment, SloTracker


def by_key(tracker: SloTracker, now_s: float) -> dict[tuple[Priority, str, str], Attainment]:
    return {(it.priority, it.tenant, it.window): it for it in tracker.attainments(now_s)}


def test_shares_are_per_class_and_tenant() -> None:
    tracker = SloTracker(tenants={"gold"})
    for number in range(10):
        tracker.add(0.0, Priority.HIGH, "gold", met_ttft=number > 0, met_tpot=number > 1)
        tracker.add(0.0, Priority.LOW, f"stranger-{number}", met_ttft=True, met_tpot=False)
    found = by_key(tracker, 1.0)
    assert len(found) == 2 * len(WINDOWS)
    gold = found[Priority.HIGH, "gold", "5m"]
    assert (gold.requests, gold.ttft, gold.tpot, gold.both) == (10, 0.9, 0.8, 0.8)
    others = found[Priority.LOW, "", "1h"]
    assert (others.requests, others.both) == (10, 0.0)


def test_old_requests_leave_the_short_window_first() -> None:
    tracker = SloTracker()
    tracker.add(0.0, Priority.NORMAL, "", met_ttft=False, met_tpot=False)
    tracker.add(600.0, Priority.NORMAL, "", met_ttft=True, met_tpot=True)
    found = by_key(tracker, 600.0)
    assert found[Priority.NORMAL, "", "5m"].both == 1.0
    assert found[Priority.NORMAL, "", "1h"].both == 0.5
    assert not by_key(tracker, 1e6)


def test_burn_rate_is_one_where_the_budget_is_just_used_up() -> None:
    tracker = SloTracker()
    missed = round(100 * (1 - OBJECTIVES[Priority.NORMAL]))
    for number in range(100):
        met = number >= missed
        tracker.add(0.0, Priority.NORMAL, "", met_ttft=met, met_tpot=met)
    (found, _) = tracker.attainments(0.0)
    assert found.burn_rate == pytest.approx(1.0)


def test_memory_is_bounded_by_the_longest_window() -> None:
    tracker = SloTracker()
    for second in range(0, 20_000, 5):
        tracker.add(float(second), Priority.NORMAL, "", met_ttft=True, met_tpot=True)
    (series,) = tracker._series.values()
    assert len(series.buckets) <= max(WINDOWS.values()) / 10 + 2


def test_alert_rules_name_metrics_that_exist() -> None:
    rules = yaml.safe_load(Path("deploy/alerts/qos.yml").read_text())
    text = " ".join(rule["expr"] for group in rules["groups"] for rule in group["rules"])
    for metric in (names.SLO_BURN_RATE, names.WITHOUT_PERMIT):
        assert metric.name.replace(".", "_") in text
    for attribute in (names.ATTR_PRIORITY, names.ATTR_TENANT, names.ATTR_WINDOW):
        assert attribute.replace(".", "_") in text
