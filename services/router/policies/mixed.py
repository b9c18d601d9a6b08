"""Fleets in which some decode workers only pair and others only work alone, for any policy. Pure.

Policies that predict weigh both kinds by themselves. The others choose among workers, not between
ways to compute a prompt; so the chapter's rule chooses the kind and they choose within it.
"""

from collections.abc import Sequence

from services.router.policy import (
    Decision,
    DecodeView,
    PrefillView,
    RouteRequest,
    RoutingPolicy,
    usable,
)


class MixedFleetPolicy:
    """Sends long prompts to pairs, while a prefill worker has room, and short ones to the others.

    `inner` decides all the rest, and everything where each worker can do both.
    """

    def __init__(
        self, inner: RoutingPolicy, offload_above_tokens: int, prefill_queue_max: int
    ) -> None:
        self.name = inner.name
        self._inner = inner
        self._offload_above_tokens = offload_above_tokens
        self._prefill_queue_max = prefill_queue_max

    def choose(
        self,
        request: RouteRequest,
        prefill: Sequence[PrefillView],
        decode: Sequence[DecodeView],
    ) -> Decision:
        """See RoutingPolicy."""
        return self._inner.choose(request, prefill, self._of_one_kind(request, prefill, decode))

    def _of_one_kind(
        self,
        request: RouteRequest,
        prefill: Sequence[PrefillView],
        decode: Sequence[DecodeView],
    ) -> Sequence[DecodeView]:
        if all(view.prefills_locally and view.takes_prefilled for view in decode):
            return decode
        able = usable(decode)
        pairing = [view for view in able if view.takes_prefilled]
        computing = [view for view in able if view.prefills_locally]
        if not (pairing and computing):
            return decode
        uncached = request.prompt_tokens - max(view.cached_tokens for view in computing)
        has_room = any(view.queue_length < self._prefill_queue_max for view in usable(prefill))
        is_remote = uncached > self._offload_above_tokens and has_room
        return pairing if is_remote else computing
