"""Every setting is tried or has a reason why not; changes are told when they are seen."""

from baton.config import knobs
from bench.knobs.effect import changes, words
from bench.knobs.probes import PROBES, WITHOUT_DEGREE, configured


def test_every_setting_is_tried_or_says_why_not() -> None:
    tried = [probe.knob for probe in PROBES]
    assert sorted([*tried, *WITHOUT_DEGREE]) == sorted(knob.path for knob in knobs())


def test_every_tried_value_is_one_that_can_be_set() -> None:
    for probe in PROBES:
        for value in probe.others:
            configured({**probe.given, probe.knob: value})


def test_a_change_is_seen_outside_the_interval_of_the_differences() -> None:
    before = [{"ttft_p50_s": 1.0 + noise, "goodput": 0.9} for noise in (0.0, 0.5, 0.2)]
    after = [{"ttft_p50_s": 2.0 + noise, "goodput": 0.9} for noise in (0.0, 0.52, 0.18)]
    assert words(16, 2, changes(before, after)) == "16 to 2: TTFT p50 1.23 to 2.23 s"


def test_differences_that_change_their_sign_are_not_seen() -> None:
    before = [{"ttft_p50_s": value} for value in (1.0, 2.0, 3.0)]
    after = [{"ttft_p50_s": value} for value in (1.5, 1.5, 3.1)]
    assert words(True, False, changes(before, after)) == (
        "true to false: no difference seen (TTFT p50)"
    )


def test_figures_that_some_run_lacks_are_left_out() -> None:
    found = changes([{"ttft_p50_s": None}], [{"ttft_p50_s": 1.0}])
    assert found == []
