"""The text that the default model learns from: what every Python brings along.

Two sources, both in the running Python: the documentation topics of `pydoc` and the docstrings of
the standard library. Modules written in Python are parsed, never imported; the few written in C
that everybody uses are imported, for their docstrings exist nowhere else. The result depends on
the Python version and on nothing else: everything is sorted, filtered by fixed rules and deduped.
"""

import ast
import enum
import importlib
import inspect
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

_C_MODULES = (
    "_collections",
    "_datetime",
    "_functools",
    "_io",
    "_socket",
    "_struct",
    "_thread",
    "array",
    "atexit",
    "binascii",
    "builtins",
    "cmath",
    "errno",
    "gc",
    "itertools",
    "marshal",
    "math",
    "operator",
    "posix",
    "select",
    "sys",
    "time",
    "unicodedata",
    "zlib",
)
_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})
_HELD_OUT_EVERY = 50
_MIN_CHARS = 30
_MIN_PROSE_SHARE = 0.84
_PROSE = re.compile(r"[A-Za-z ,.'\n]")
_HEADING = re.compile(r"^.*\n[*=\-~^\"]{3,}$", re.MULTILINE)
_VERSION_NOTE = re.compile(r"(New|Changed) in version [^ ]+$")
_LIST_ITEM = re.compile(r"^([*+\-]|\d+[.)]) ")


class Kind(enum.Enum):
    """What an entry describes; decides how a question about it is asked."""

    TOPIC = "topic"
    MODULE = "module"
    CLASS = "class"
    FUNCTION = "function"


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that Python documents: its dotted name and its prose, a paragraph per item."""

    kind: Kind
    name: str
    paragraphs: tuple[str, ...]


class Corpus(NamedTuple):
    """Entries to learn from, and those held out to measure with."""

    train: tuple[Entry, ...]
    held_out: tuple[Entry, ...]


def load_corpus() -> Corpus:
    """Returns the corpus of the running Python, always in the same order."""
    entries = _deduplicated([*_topic_entries(), *_module_entries(), *_c_module_entries()])
    held_out = tuple(entries[::_HELD_OUT_EVERY])
    train = tuple(entry for at, entry in enumerate(entries) if at % _HELD_OUT_EVERY)
    return Corpus(train, held_out)


def prose_paragraphs(text: str) -> tuple[str, ...]:
    """Returns the paragraphs of `text` that are mostly words, each flowed into one line.

    Code, grammar, tables, doctests and headings are left out.
    """
    body = _HEADING.sub("", inspect.cleandoc(text))
    blocks = (_flowed(block) for block in re.split(r"\n\s*\n", body))
    return tuple(block for block in blocks if _is_prose(block))


def _flowed(block: str) -> str:
    """Joins wrapped lines; list items keep a line each."""
    flowed = ""
    for line in block.splitlines():
        stripped = line.strip()
        joint = "\n" if _LIST_ITEM.match(stripped) else " "
        flowed += (joint if flowed else "") + stripped
    return re.sub(r" {2,}", " ", flowed)


def _is_prose(block: str) -> bool:
    if not block.isascii() or " " not in block or _VERSION_NOTE.match(block):
        return False
    if ">>>" in block or "::=" in block:
        return False
    return len(_PROSE.findall(block)) >= _MIN_PROSE_SHARE * len(block)


def _entry(kind: Kind, name: str, text: object) -> Iterator[Entry]:
    paragraphs = prose_paragraphs(text) if isinstance(text, str) else ()
    if sum(map(len, paragraphs)) >= _MIN_CHARS:
        yield Entry(kind, name, paragraphs)


def _topic_entries() -> Iterator[Entry]:
    for name in sorted(topics):
        yield from _entry(Kind.TOPIC, name, topics[name])


def _module_entries() -> Iterator[Entry]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED_FOLDERS.isdisjoint(parts):
            name = ".".join(part for part in parts if part != "__init__")
            tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
            yield from _entry(Kind.MODULE, name, ast.get_docstring(tree))
            yield from _member_entries(name, tree)


def _member_entries(name: str, scope: ast.Module | ast.ClassDef) -> Iterator[Entry]:
    for node in scope.body:
        if isinstance(node, ast.ClassDef):
            yield from _entry(Kind.CLASS, f"{name}.{node.name}", ast.get_docstring(node))
            yield from _member_entries(f"{name}.{node.name}", node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _entry(Kind.FUNCTION, f"{name}.{node.name}", ast.get_docstring(node))


def _c_module_entries() -> Iterator[Entry]:
    for module_name in _C_MODULES:
        module = importlib.import_module(module_name)
        name = module_name.lstrip("_")
        yield from _entry(Kind.MODULE, name, module.__doc__)
        yield from _object_entries(name, module)


def _object_entries(name: str, owner: object) -> Iterator[Entry]:
    for attribute, value in sorted(vars(owner).items()):
        kind = Kind.CLASS if inspect.isclass(value) else Kind.FUNCTION
        if kind is Kind.CLASS or inspect.isroutine(value):
            yield from _entry(kind, f"{name}.{attribute}", value.__doc__)
        if kind is Kind.CLASS and not inspect.isclass(owner):
            yield from _object_entries(f"{name}.{attribute}", value)


def _deduplicated(entries: Sequence[Entry]) -> list[Entry]:
    first: dict[tuple[str, ...], Entry] = {}
    for entry in entries:
        first.setdefault(entry.paragraphs, entry)
    return list(first.values())
