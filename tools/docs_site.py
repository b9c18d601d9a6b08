"""Builds the documentation as a static site in `site/`, and checks every link in it.

Pages are docs/*.md; the navigation lists those that are there. What a page links to outside docs/
is copied beside it. A warning of the generator and a link that leads nowhere end the build with 1.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

ROOT = Path(__file__).parents[1]
DOCS, STAGE, SITE = ROOT / "docs", ROOT / ".site", ROOT / "site"
NAVIGATION = {
    "Start": ("index", "tutorial", "gateway"),
    "How it works": (
        *("architecture", "lifecycle", "failures", "routing"),
        *("kv", "engine", "sglang", "qos"),
    ),
    "Run it": ("operations", "tuning", "telemetry", "alerts", "troubleshooting", "security"),
    "Numbers": ("benchmarks", "simulator", "what-if", "comparison"),
}
_OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")
_HEAD = """[project]
site_name = "Baton"
site_description = "Disaggregated prefill and decode for large language models"
docs_dir = "docs"
site_dir = "site"
use_directory_urls = false
extra_css = ["baton.css"]
nav = [
{nav}
]

[project.theme]
variant = "modern"
font = false
features = ["navigation.sections", "navigation.top", "content.code.copy", "toc.follow"]
icon.logo = "lucide/waypoints"

[[project.theme.palette]]
media = "(prefers-color-scheme: light)"
scheme = "default"
toggle.icon = "lucide/sun"
toggle.name = "Dark"

[[project.theme.palette]]
media = "(prefers-color-scheme: dark)"
scheme = "slate"
toggle.icon = "lucide/moon"
toggle.name = "Light"
"""


def stage() -> None:
    """Lays out what the generator reads."""
    shutil.rmtree(STAGE, ignore_errors=True)
    shutil.copytree(DOCS, STAGE / "docs")
    for page in sorted((STAGE / "docs").glob("*.md")):
        page.write_text(_OUTSIDE.sub(_bring, page.read_text("utf-8")), "utf-8")
    (STAGE / "site.toml").write_text(_HEAD.format(nav="\n".join(_navigation())), "utf-8")


def _bring(link: re.Match[str]) -> str:
    """Copies a file from outside docs/ and returns the link to the copy."""
    source = ROOT / link[1]
    if source.is_dir():
        return _listing(source)
    if not source.is_file():
        sys.exit(f"docs link to ../{link[1]}, which does not exist")
    name = f"files/{link[1]}.txt" if source.suffix in ("", ".md", ".py") else f"files/{link[1]}"
    target = STAGE / "docs" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    return f"]({name})"


def _listing(folder: Path) -> str:
    """Writes what a folder holds and returns the link to it."""
    name = f"files/{folder.relative_to(ROOT)}/index.txt"
    target = STAGE / "docs" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(sorted(each.name for each in folder.iterdir())), "utf-8")
    return f"]({name})"


def _navigation() -> Iterator[str]:
    known = {name for names in NAVIGATION.values() for name in names}
    unlisted = tuple(sorted({page.stem for page in DOCS.glob("*.md")} - known))
    for title, names in (NAVIGATION | {"More": unlisted}).items():
        pages = [f'"{name}.md"' for name in names if (DOCS / f"{name}.md").exists()]
        if pages:
            yield f'  {{ "{title}" = [{", ".join(pages)}] }},'


def build() -> None:
    """Runs the generator; its warnings are errors."""
    command = [str(Path(sys.executable).parent / "zensical"), "build", "--strict", "--clean"]
    result = subprocess.run(  # noqa: S603 - all of it is written here
        [*command, "-f", "site.toml"], cwd=STAGE, capture_output=True, text=True, check=False
    )
    output = result.stdout + result.stderr
    if result.returncode or "warning" in output.lower():
        sys.exit(output)
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.move(STAGE / "site", SITE)


class _Page(HTMLParser):
    """Collects a page's links and what can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name == "id" and value:
                self.anchors.add(value)


def broken_links() -> list[str]:
    """Returns each link of the site that leads nowhere, and each that loads something remote."""
    pages = {path: _Page(path.read_text("utf-8")) for path in SITE.rglob("*.html")}
    found = []
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        for link in page.links:
            if urlparse(link).scheme or link.startswith("//"):
                continue
            target, anchor = urldefrag(unquote(link))
            file = (path.parent / target).resolve() if target else path
            if file.is_dir():
                file /= "index.html"
            if not file.exists() or (file in pages and anchor not in pages[file].anchors):
                found.append(f"{path.relative_to(SITE)}: {link}")
    return found


def main() -> None:
    """Builds and checks."""
    stage()
    build()
    broken = broken_links()
    if broken:
        sys.exit("links that lead nowhere:\n" + "\n".join(sorted(set(broken))))
    shutil.rmtree(STAGE)
    print(f"site/index.html: {len(list(SITE.glob('*.html')))} pages, every link checked")


if __name__ == "__main__":
    main()
