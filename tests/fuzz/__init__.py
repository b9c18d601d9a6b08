"""Hostile input: every reader of bytes from outside, fed with anything.

Each target (targets.py) takes bytes and raises only what its reader promises. `make test` draws a
fixed number of inputs for each with hypothesis; `python -m tests.fuzz TARGET --seconds N` runs the
coverage-guided fuzzer on one of them for as long as one likes.
"""
