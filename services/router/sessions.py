"""Which decode worker served a session last: a soft preference, never more."""

from collections import OrderedDict

MAX_SESSIONS = 65_536


class Sessions:
    """Remembers a bounded number of sessions, those used last. Session names are per tenant."""

    def __init__(self, limit: int = MAX_SESSIONS) -> None:
        self._limit = limit
        self._workers: OrderedDict[tuple[str, str], str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._workers)

    def worker_of(self, tenant: str, session_id: str) -> str:
        """Returns the worker id that served the session last; empty when it is not known."""
        return self._workers.get((tenant, session_id), "") if session_id else ""

    def served(self, tenant: str, session_id: str, worker_id: str) -> None:
        """Notes who serves a session; requests without one leave nothing."""
        if not session_id:
            return
        self._workers[tenant, session_id] = worker_id
        self._workers.move_to_end((tenant, session_id))
        if len(self._workers) > self._limit:
            self._workers.popitem(last=False)
