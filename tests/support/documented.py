"""The commands that the documentation tells people to type."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(?:console|bash|shell)\n(.*?)^```", re.M | re.S)
_YAML = re.compile(r"^```yaml\n(.*?)^```", re.M | re.S)


def commands(page: Path) -> Iterator[str]:
    """Yields what follows a prompt, with continued lines joined and remarks left out."""
    for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in re.findall(r"^\$ (.*(?:\\\n.*)*)", block, re.M):
            yield re.split(r"\s{2,}# ", line.replace("\\\n", " "))[0].strip()


def files(page: Path) -> dict[str, str]:
    """Returns the YAML files that a page shows, by the name in their first line's remark."""
    found = {}
    for block in _YAML.findall(page.read_text(encoding="utf-8")):
        first, _, rest = block.partition("\n")
        if first.startswith("# "):
            found[first.removeprefix("# ")] = rest
    return found
