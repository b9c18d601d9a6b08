"""The configuration: what is accepted, what is refused and with which words."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from baton.config import Config, Origin, knobs, load_config, load_settings
from baton.errors import ConfigError

ROOT = Path(__file__).parents[2]
CHAPTER = ROOT / "examples" / "chapter.yaml"


def write(tmp_path: Path, text: str, name: str = "baton.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def refused(path: Path | None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ or {})
    return str(caught.value)


def leaves(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix.removesuffix("."): values}
    return {
        path: leaf
        for name, value in values.items()
        for path, leaf in leaves(value, f"{prefix}{name}.").items()
    }


def test_chapter_example_loads_and_every_value_arrives() -> None:
    config = load_config(CHAPTER, {})
    given = leaves(yaml.safe_load(CHAPTER.read_text()))
    found = leaves(config.model_dump())
    assert len(given) == 23
    assert {path: found[path] for path in given} == given


def test_chapter_example_is_also_json() -> None:
    assert json.loads(CHAPTER.read_text())["qos"]["enable_early_rejection"] is True


def test_nothing_given_means_the_defaults() -> None:
    assert load_config(None, {}) == Config()


def test_empty_file_and_empty_sections_set_nothing(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, ""), {}) == Config()
    assert load_config(write(tmp_path, "qos:\n  # ttft_slo_ms: 1\nmesh:\n"), {}) == Config()


def test_file_is_named_by_the_environment(tmp_path: Path) -> None:
    path = write(tmp_path, "cache: {block_size: 32}")
    assert load_config(None, {"BATON_CONFIG": str(path)}).cache.block_size == 32


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "qos: {ttft_slo_ms: 100, tpot_slo_ms: 10}")
    config = load_config(path, {"BATON_QOS__TTFT_SLO_MS": "300", "HOME": "/"})
    assert (config.qos.ttft_slo_ms, config.qos.tpot_slo_ms) == (300, 10)


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("", {}, ""),
        ("", {"REDIS_URL": "redis://env"}, "redis://env"),
        ("mesh: {redis_url: ''}", {"REDIS_URL": "redis://env"}, "redis://env"),
        ("mesh: {redis_url: 'redis://file'}", {"REDIS_URL": "redis://env"}, "redis://file"),
        ("", {"REDIS_URL": "redis://env", "BATON_MESH__REDIS_URL": "redis://own"}, "redis://own"),
        ("", {"REDIS_URL": "redis://env", "BATON_MESH__REDIS_URL": ""}, ""),
    ],
)
def test_redis_url_counts_only_where_nothing_else_is_set(
    tmp_path: Path, text: str, environ: dict[str, str], expected: str
) -> None:
    assert load_config(write(tmp_path, text), environ).mesh.redis_url == expected


def test_every_problem_is_listed_with_path_and_reason(tmp_path: Path) -> None:
    path = write(
        tmp_path, "cache: {block_size: 0, blocks: 3}\nengine: {kind: magic}\nqos: 5\nfoo: 1\n"
    )
    message = refused(path)
    lines = message.splitlines()
    assert lines[0] == f"{path}: 5 invalid settings"
    assert "  cache.block_size: Input should be greater than or equal to 1 (given: 0)" in lines
    assert "  cache.blocks: unknown field; `baton config show` lists all fields" in lines
    kinds = "'torch', 'sglang' or 'simulated'"
    assert f"  engine.kind: Input should be {kinds} (given: 'magic')" in lines
    assert "  qos: must be a section with fields of its own (given: 5)" in lines
    assert "  foo: unknown field; `baton config show` lists all fields" in lines


def test_problems_of_the_environment_name_the_variable(tmp_path: Path) -> None:
    environ = {"BATON_QOS__TTFT_SLO_MS": "soon", "BATON_NOPE": "1", "BATON_MODEL__SIZE": "2"}
    message = refused(write(tmp_path, "model: baton-tiny"), environ)
    assert "BATON_QOS__TTFT_SLO_MS (qos.ttft_slo_ms): Input should be a valid number" in message
    assert "BATON_NOPE (nope): unknown field" in message
    assert "BATON_MODEL__SIZE (model.size): unknown field" in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prefill: {min_replicas: 5}", "min_replicas (5) exceeds max_replicas (4)"),
        (
            "decode: {scale_down: {queue_length: 16}}",
            "scale_down.queue_length (16) must be below scale_up.queue_length (16)",
        ),
        (
            "prefill: {scale_up: {gpu_utilization: 30}}",
            "scale_down.gpu_utilization (40) must be below scale_up.gpu_utilization (30)",
        ),
    ],
)
def test_bounds_that_contradict_each_other_are_refused(
    tmp_path: Path, text: str, reason: str
) -> None:
    assert reason in refused(write(tmp_path, f"autoscale: {{{text}}}"))


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ("qos: [", "a.yaml", "is not YAML"),
        ("{", "a.json", "is not JSON"),
        ("- 1", "a.yaml", "must be a mapping of sections, not list"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(
    tmp_path: Path, text: str, name: str, reason: str
) -> None:
    assert reason in refused(write(tmp_path, text, name))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused(tmp_path / "none.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "is not text in UTF-8" in refused(binary)


def test_settings_tell_where_each_value_came_from(tmp_path: Path) -> None:
    path = write(tmp_path, "qos: {ttft_slo_ms: 100, tpot_slo_ms: 10}")
    environ = {"BATON_QOS__TTFT_SLO_MS": "300", "REDIS_URL": "redis://env"}
    origins = load_settings(path, environ).origins
    assert origins["qos.ttft_slo_ms"] is Origin.ENVIRONMENT
    assert origins["qos.tpot_slo_ms"] is Origin.FILE
    assert origins["mesh.redis_url"] is Origin.ENVIRONMENT
    assert origins["model"] is Origin.DEFAULT
    assert origins.keys() == {knob.path for knob in knobs()}


def test_there_are_fewer_than_forty_knobs_each_described() -> None:
    found = list(knobs())
    assert len(found) < 40
    for knob in found:
        assert knob.unit, knob.path
        assert knob.effect.endswith("."), knob.path
        assert len(knob.effect) > len("x."), knob.path


def test_every_knob_can_be_set_by_its_variable() -> None:
    environ = {knob.variable: str(knob.default) for knob in knobs()}
    assert load_config(None, environ) == Config()


def test_variables_that_name_files_are_no_unknown_settings() -> None:
    assert load_config(None, {"BATON_TRACES": "/somewhere"}) == load_config(None, {})
