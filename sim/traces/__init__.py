"""Workloads: readers of public traces and synthetic mixes."""
