"""KV cache: the block pool, transfers between workers, leases and the ledger."""
