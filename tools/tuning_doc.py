"""Writes docs/tuning.md from the configuration's own descriptions, so that it is never wrong.

python tools/tuning_doc.py           writes it
python tools/tuning_doc.py --check   exits with 1 when it is not fresh
"""

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from baton.config import Config, Knob, knobs

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "tuning.md"
RESULT = ROOT / "bench" / "results" / "knobs.json"
_HEAD = """# Tuning

Everything that can be set, {count} settings in one file. `baton config check FILE` says what is
wrong with a file, `baton config show [FILE]` says what is in force and where each value came from.

- The file is YAML or JSON, given by `--config FILE` or `$BATON_CONFIG`. What it leaves out has the
  default. An unknown or invalid field is refused with its path and the reason.
- An environment variable wins over the file: `BATON_QOS__TTFT_SLO_MS` is `qos.ttft_slo_ms`.
- `REDIS_URL` is read where `mesh.redis_url` is not set.
- [examples/chapter.yaml](../examples/chapter.yaml) is a complete example.

This page is made from the code by `make docs`; edit the descriptions in `baton/sections.py`.

**Measured effects** are from `make bench-knobs` ([recorded](../bench/results/knobs.json) at commit
{commit}): the same workload with the default and with another value, means over {seeds} seeds or
rounds. What is not outside the 95 % interval of their differences, or below 1 %, counts as no
difference. They say which way a setting pulls and how hard on that workload; on another it may
be another way.

- `split_policy`, `cache.min_cache_hit_ratio`: simulator, the first 2,500 requests of Mooncake's
  conversation trace at 0.9 times its speed, 4 prefill and 4 decode workers of 8 H100 each (Llama
  70B), targets 30 s and 50 ms; what belongs to `weighted` with that policy.
- `qos`: simulator, the same trace twice as fast as recorded on 3 and 4 workers, 20 % high and 30 %
  low priority, judged by 30 s and 100 ms; `tenants`: two that ask for the same, four times as fast.
- `autoscale`: simulator, a day's load in half an hour with spikes, 1 to 8 workers a pool, KV pools
  of 100,000 tokens, limits 2 s and 200 ms; thresholds with that policy, `scale_up.queue_length`
  with the bounds for busy time and KV out of reach.
- The other `cache`: a mesh on one machine, default model; a long prompt, six others, the first
  again.
- `mesh.otlp_endpoint`: a mesh on one machine, short prompts one after the other, spans taken by a
  receiver that drops them.
"""


def render() -> str:
    """Returns the page."""
    found = list(knobs())
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    measured = {path: each["text"] for path, each in result["details"].items()}
    head = _HEAD.format(
        count=len(found), commit=result["commit"], seeds=round(result["figures"]["seeds"])
    )
    parts = [head]
    for section, members in groupby(found, key=section_of):
        parts.append("\n".join(_table(section, list(members), measured)))
    return "\n".join(parts)


def section_of(knob: Knob) -> str:
    """Returns the section that a knob belongs to; empty at the top of the file."""
    return knob.path.partition(".")[0] if "." in knob.path else ""


def _table(section: str, members: list[Knob], measured: Mapping[str, str]) -> Iterator[str]:
    yield f"## {section or 'Top level'}\n"
    if section:
        yield f"{inspect.getdoc(Config.model_fields[section].annotation)}\n"
    yield "| setting | default | unit or values | what it does | measured effect |"
    yield "|---|---|---|---|---|"
    for knob in members:
        yield (
            f"| `{knob.path}` | {default_of(knob)} | {knob.unit} | {knob.effect} | "
            f"{measured.get(knob.path, 'not measured')} |"
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
