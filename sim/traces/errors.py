"""What can be wrong with a workload."""


class TraceError(Exception):
    """A trace cannot be found or read; the message says which, where and why."""
