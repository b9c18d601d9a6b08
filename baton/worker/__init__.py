"""What prefill and decode workers share: one process, one engine, one transport, one lifecycle."""
