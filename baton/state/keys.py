"""Every Redis key that Baton uses. Bump the version when an old reader would misread a value."""

PREFIX = "baton:v1:"


def epoch() -> str:
    """A random mark of this data set: another or none means that Redis lost its data."""
    return f"{PREFIX}epoch"


def leases() -> str:
    """Sorted set of worker ids by the end of their lease, in milliseconds of Redis' clock."""
    return f"{PREFIX}leases"


def lease(worker_id: str) -> str:
    """The incarnation that holds the worker id; lives as long as the lease."""
    return f"{PREFIX}lease:{worker_id}"


def record(worker_id: str) -> str:
    """What the worker is (JSON); lives as long as the lease."""
    return f"{PREFIX}worker:{worker_id}"


def stats(worker_id: str) -> str:
    """The worker's latest figures (JSON)."""
    return f"{PREFIX}stats:{worker_id}"


def costs(model: str, device: str) -> str:
    """Hash of what computing and moving KV costs with a model on a kind of device (JSON fits).

    Outlives the workers that measured it, by a day.
    """
    return f"{PREFIX}costs:{model}:{device}"


def contract(model: str) -> str:
    """Hash of what all workers of a model agree on; lives as long as any of their leases."""
    return f"{PREFIX}contract:{model}"


def fleet_events() -> str:
    """Stream of joins, leaves and figures of the whole fleet, newest few only."""
    return f"{PREFIX}fleet-events"


def credits() -> str:
    """Stream of what each router dispatched lately, newest few reports only."""
    return f"{PREFIX}credits"


def traffic(incarnation: str) -> str:
    """What one router's clients offered so far (JSON counters)."""
    return f"{PREFIX}traffic:{incarnation}"


def autoscaler_leader() -> str:
    """Name of the autoscaler that acts; lives as long as its lease."""
    return f"{PREFIX}autoscaler:leader"


def autoscaler_override() -> str:
    """Hash of pool sizes set by hand; a day after the last change the policy decides again."""
    return f"{PREFIX}autoscaler:override"


def admission() -> str:
    """Hash of the parts of the permits that each admission service may grant, and its state."""
    return f"{PREFIX}admission"


def kv_events(incarnation: str) -> str:
    """Stream of one worker's prefix-cache changes; the entry id is the sequence number."""
    return f"{PREFIX}kv:{incarnation}:events"


def kv_blocks(incarnation: str) -> str:
    """Set of the hashes in one worker's prefix cache, each as a little-endian u64."""
    return f"{PREFIX}kv:{incarnation}:blocks"


def kv_staging(incarnation: str) -> str:
    """The next `kv_blocks` while a publisher uploads it."""
    return f"{PREFIX}kv:{incarnation}:staging"


def kv_cursor(incarnation: str) -> str:
    """Sequence number that `kv_blocks` has reached."""
    return f"{PREFIX}kv:{incarnation}:cursor"


def finished() -> str:
    """Stream of requests that ended, in lengths and hashes; written while somebody records."""
    return f"{PREFIX}finished"


def recording() -> str:
    """Present while somebody records; expires soon unless it is renewed."""
    return f"{PREFIX}recording"
