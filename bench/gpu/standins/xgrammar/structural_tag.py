"""Every name of xgrammar.structural_tag is the same empty class."""

from pydantic import BaseModel


class Format(BaseModel):
    """Describes nothing."""


def __getattr__(name: str) -> type[Format]:
    if name.startswith("__"):
        raise AttributeError(name)
    return Format
