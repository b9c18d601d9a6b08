"""Prefill and decode apart against two workers that do both, on the same hardware."""
