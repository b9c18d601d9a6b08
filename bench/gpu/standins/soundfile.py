"""Stands in for soundfile, which SGLang and transformers import for audio models only."""

__version__ = "0.0.0"
