"""Shared state in Redis: the worker registry, workers' figures and the prefix index."""
