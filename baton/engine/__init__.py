"""Engines: what computes prompts and tokens on a worker."""
