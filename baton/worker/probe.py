"""What both sides of a probe transfer agree on."""

PROBE_TOKENS = 1
"""Tokens that a probe's receipt covers: it fills the one block of a one-token reservation."""
