"""Traces and metrics: names in one module, providers in another."""
