"""Stands in for xgrammar (45 MB), which SGLang imports even without a grammar."""

from pydantic import BaseModel


class StructuralTag(BaseModel):
    """Named where SGLang describes tool calls; the benchmark makes none."""
