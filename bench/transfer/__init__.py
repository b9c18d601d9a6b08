"""How fast KV moves, what that costs, and what it adds to the time to the first token."""
