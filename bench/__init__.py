"""Benchmarks: load generators, a fleet of simulated workers, and what is measured with them."""
