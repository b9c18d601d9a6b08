"""Writes docs/tuning.md from the configuration's own descriptions, so that it is never wrong.

python tools/tuning_doc.py           writes it
python tools/tuning_doc.py --check   exits with 1 when it is not fresh
"""

import inspect
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from baton.config import Config, Knob, knobs

TARGET = Path(__file__).parents[1] / "docs" / "tuning.md"
_HEAD = """# Tuning

Everything that can be set, {count} settings in one file. `baton config check FILE` says what is
wrong with a file, `baton config show [FILE]` says what is in force and where each value came from.

- The file is YAML or JSON, given by `--config FILE` or `$BATON_CONFIG`. What it leaves out has the
  default. An unknown or invalid field is refused with its path and the reason.
- An environment variable wins over the file.
- `REDIS_URL` is read where `mesh.redis_url` is not set.
- [examples/chapter.yaml](../examples/chapter.yaml) is a complete example.

This page is made from the code by `make docs`; edit the descriptions in `baton/sections.py`.
"""


def render() -> str:
    """Returns the page."""
    found = list(knobs())
    parts = [_HEAD.format(count=len(found))]
    for section, members in groupby(found, key=section_of):
        parts.append("\n".join(_table(section, list(members))))
    return "\n".join(parts)


def section_of(knob: Knob) -> str:
    """Returns the section that a knob belongs to; empty at the top of the file."""
    return knob.path.partition(".")[0] if "." in knob.path else ""


def _table(section: str, members: list[Knob]) -> Iterator[str]:
    yield f"## {section or 'Top level'}\n"
    if section:
        yield f"{inspect.getdoc(Config.model_fields[section].annotation)}\n"
    yield "| setting | default | unit or values | effect | environment variable |"
    yield "|---|---|---|---|---|"
    for knob in members:
        yield (
            f"| `{knob.path}` | {default_of(knob)} | {knob.unit} | {knob.effect} | "
            f"`{knob.variable}` |"
        )
    yield ""


def default_of(knob: Knob) -> str:
    """Returns the default as it is written in YAML."""
    if isinstance(knob.default, bool):
        return f"`{str(knob.default).lower()}`"
    if isinstance(knob.default, dict | list):
        return "(empty)" if not knob.default else f"`{knob.default}`"
    if isinstance(knob.default, str):
        return f"`{knob.default}`" if knob.default else "(empty)"
    return f"`{knob.default:g}`"


def main() -> None:
    """Writes the page, or checks that it is fresh."""
    text = render()
    if "--check" not in sys.argv[1:]:
        TARGET.parent.mkdir(exist_ok=True)
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        sys.exit(f"{TARGET.name} is not what the code says: run `make docs`")


if __name__ == "__main__":
    main()
