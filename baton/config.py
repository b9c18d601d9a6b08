"""The one typed configuration: a YAML or JSON file plus BATON_ environment variables.

Environment variables win over the file and address a field by its path: BATON_QOS__TTFT_SLO_MS
is `qos.ttft_slo_ms`. REDIS_URL is read where `mesh.redis_url` is not set otherwise. Every leaf of
baton/sections.py is a knob; there are fewer than forty. What differs from process to process
(role, name, address) is a command-line flag, not a knob.
"""

import enum
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from baton.errors import ConfigError
from baton.sections import (
    Autoscale,
    Cache,
    Config,
    DecodePool,
    DecodeScaleDown,
    DecodeScaleUp,
    EngineSection,
    Mesh,
    PrefillPool,
    PrefillScaleDown,
    PrefillScaleUp,
    Qos,
    SplitPolicy,
    TenantLimits,
)

__all__ = [
    "ENV_CONFIG_FILE",
    "ENV_PREFIX",
    "ENV_REDIS_URL",
    "Autoscale",
    "Cache",
    "Config",
    "DecodePool",
    "DecodeScaleDown",
    "DecodeScaleUp",
    "EngineSection",
    "Knob",
    "Mesh",
    "Origin",
    "PrefillPool",
    "PrefillScaleDown",
    "PrefillScaleUp",
    "Qos",
    "Settings",
    "SplitPolicy",
    "TenantLimits",
    "knobs",
    "load_config",
    "load_settings",
]

ENV_PREFIX = "BATON_"
ENV_CONFIG_FILE = "BATON_CONFIG"
ENV_REDIS_URL = "REDIS_URL"
ENV_TRACES = "BATON_TRACES"
"""Names the folder of public traces, which the simulator reads."""
_NOT_KNOBS = frozenset({ENV_CONFIG_FILE, ENV_TRACES, "BATON_API_KEY", "BATON_TLS_DIR"})
_REDIS_KNOB = "mesh.redis_url"
_NESTED: Mapping[Any, str] = {dict: "mapping", list: "list"}
"""Knobs that are not one word; the environment gives them as JSON or YAML in one line."""


class Origin(enum.Enum):
    """Where a value came from."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True)
class Knob:
    """One thing that can be set, described for people.

    `unit` says what a value looks like: a unit, the choices, "true or false" or "text".
    """

    path: str
    default: Any
    unit: str
    effect: str

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return ENV_PREFIX + self.path.upper().replace(".", "__")


@dataclass(frozen=True, slots=True)
class Settings:
    """The effective configuration and where each knob's value came from, by the knob's path."""

    config: Config
    origins: Mapping[str, Origin]


def load_config(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Reads the file (or the one BATON_CONFIG names, or none) and the environment over it.

    Raises ConfigError that lists every unknown or invalid field with its path and the reason.
    """
    return load_settings(path, environ).config


def load_settings(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Does what `load_config` does and also tells where each value came from."""
    env = os.environ if environ is None else environ
    if path is None and env.get(ENV_CONFIG_FILE):
        path = Path(env[ENV_CONFIG_FILE])
    values = _read_file(path) if path else {}
    origins = dict.fromkeys((knob.path for knob in knobs()), Origin.DEFAULT)
    overrides = _overrides(env, values)
    in_file = origins.keys() & set(_paths(values))
    nested = {knob.path for knob in knobs() if knob.unit in _NESTED.values()}
    for override, text in overrides.items():
        if override in nested:
            _put(values, override, _one_line(override, text))
        elif override in origins:
            _put(values, override, text)
        else:
            values[override] = text  # the model refuses it as unknown, by this name
    origins.update(dict.fromkeys(in_file, Origin.FILE))
    origins.update(dict.fromkeys(overrides, Origin.ENVIRONMENT))
    try:
        return Settings(Config.model_validate(values), origins)
    except ValidationError as error:
        raise ConfigError(_explain(error, path, frozenset(overrides))) from error


def knobs() -> Iterator[Knob]:
    """Yields every knob, in the order of the file."""
    yield from _leaves(Config, "")


def _leaves(section: type[BaseModel], prefix: str) -> Iterator[Knob]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _leaves(kind, f"{prefix}{name}.")
        else:
            yield _knob(f"{prefix}{name}", field)


def _knob(path: str, field: FieldInfo) -> Knob:
    effect, _, unit = (field.description or "").removesuffix(".").rpartition(". ")
    default, kind = field.get_default(call_default_factory=True), field.annotation
    if kind is bool:
        return Knob(path, default, "true or false", field.description or "")
    if get_origin(kind) is Literal:
        return Knob(path, default, ", ".join(get_args(kind)), field.description or "")
    if get_origin(kind) in _NESTED:
        return Knob(path, default, _NESTED[get_origin(kind)], field.description or "")
    if kind is str:
        return Knob(path, default, "text", field.description or "")
    # A sentence's capital goes, a name's (MiB, TCP) stays.
    unit = unit if unit[1:] != unit[1:].lower() else unit.lower()
    return Knob(path, default, unit, f"{effect}.")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text in UTF-8: {error}") from error
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise ConfigError(f"{path}: is not {kind}: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must be a mapping of sections, not {type(values).__name__}")
    return _without_empty(values)


def _without_empty(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Drops what has no value: a section whose lines are all commented out sets nothing."""
    return {
        str(name): _without_empty(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if value is not None
    }


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{name}.")


def _one_line(path: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is neither JSON nor YAML in one line: {text!r}") from error


def _overrides(env: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, str]:
    """Returns what the environment sets, by path; REDIS_URL only where nothing else did."""
    found = {
        name.removeprefix(ENV_PREFIX).lower().replace("__", "."): text
        for name, text in sorted(env.items())
        if name.startswith(ENV_PREFIX) and name not in _NOT_KNOBS
    }
    mesh = values.get("mesh")
    has_url = isinstance(mesh, Mapping) and mesh.get("redis_url")
    if env.get(ENV_REDIS_URL) and not has_url and _REDIS_KNOB not in found:
        found[_REDIS_KNOB] = env[ENV_REDIS_URL]
    return found


def _put(values: dict[str, Any], path: str, given: Any) -> None:
    """Sets one value; what is no section on the way there is left for validation to name."""
    *sections, leaf = path.split(".")
    for name in sections:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            return
        values = inner
    values[leaf] = given


def _explain(error: ValidationError, path: Path | None, overrides: frozenset[str]) -> str:
    count = error.error_count()
    lines = [f"{path or 'environment'}: {count} invalid {'setting' if count == 1 else 'settings'}"]
    lines += [f"  {_problem(each, overrides)}" for each in error.errors(include_url=False)]
    return "\n".join(lines)


def _problem(problem: ErrorDetails, overrides: frozenset[str]) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if path in overrides:
        path = f"{ENV_PREFIX}{path.upper().replace('.', '__')} ({path})"
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown field; `baton config show` lists all fields"
    if problem["type"] == "value_error":
        return f"{path}: {problem['msg'].removeprefix('Value error, ')}"
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{path}: must be a section with fields of its own (given: {problem['input']!r})"
    return f"{path}: {problem['msg']} (given: {problem['input']!r})"
