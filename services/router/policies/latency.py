"""One cost in seconds for a pair of workers, chosen jointly (the default policy).

    ttft = wait(p) + prefill(uncached on p) + transfer(bytes not yet on d, p -> d) + admit(d)
    tpot = step(d with one more)
    cost = ttft + price * tpot (+ what a local prefill does to the streams running on d)

Computing the prompt on the decode worker itself is one more option for each d. A cached prefix
makes its holder cheaper by what recomputing takes, so requests stick to it until the holder's
queue is longer than that; then another worker is cheaper, computes the prefix and holds it too.
Every coefficient comes from the workers' own measurements (baton/latency.py).

Only the transfer depends on both workers. So each side is ranked by itself first and pairs are
made of the best few of both: the work grows with the sum of the pools, not with their product.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import NamedTuple

from baton.latency import interference_s, local_prefill_s
from services.router.policies.terms import (
    TYPICAL,
    RankedDecodes,
    admit_s,
    idle_and_slow,
    prefill_s,
    rank_decodes,
    rank_prefills,
    tpot_s,
    wait_s,
)
from services.router.policy import (
    MAX_PREFILL_CANDIDATES,
    Decision,
    DecodeView,
    Option,
    PrefillView,
    RouteRequest,
    Terms,
    View,
    usable,
)

SHORTLIST = 4
"""Workers of each kind that enter the pairs."""

TIE = 0.02
"""Costs that differ by less than this share of the TTFT are equal: predictions are not better."""

SESSION_SLACK = 0.1
"""A session stays with its decode worker where that costs at most this share of the TTFT more."""

SLO_SHARE = 0.9
"""Share of a target that a prediction may take: the rest is for its error."""

EXPLORE_SHARE = 1 / 64
"""Share of requests that may go to an idle worker that was measured slow, to measure it again."""

MAX_OPTIONS = 8
"""Options that a decision keeps to explain itself."""

_cost = attrgetter("cost_s")

Ranked = tuple[float, View]


@dataclass(frozen=True, slots=True)
class LatencySettings:
    """What the fleet's configuration says about the trade.

    `tpot_price` is how many seconds of TTFT one second of TPOT is worth: the ratio of the fleet's
    targets. `chunk_tokens` is the most of a prompt that one step computes. While no prefill worker
    is measured, decode workers go by the chapter's rule, so its two bounds are followed here.
    """

    tpot_price: float = 10.0
    chunk_tokens: int = 256
    offload_above_tokens: int = 256
    prefill_queue_max: int = 16


class LatencyPolicy:
    """Lowest predicted cost; with targets of the request's own, the tightest fit that meets them.

    The tightest fit keeps idle workers for requests that need them. Where nothing meets the
    targets, the lowest cost is the best that can be done. Near ties fall at random.
    """

    name = "latency"

    def __init__(self, settings: LatencySettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng

    def choose(
        self,
        request: RouteRequest,
        prefill: Sequence[PrefillView],
        decode: Sequence[DecodeView],
    ) -> Decision:
        """See RoutingPolicy."""
        fronts = self._fronts(request, self._explored(request, usable(prefill)))
        decodes = self._decodes(
            request,
            self._explored(request, usable(decode)),
            TIE * fronts.fastest_s,
            has_prefill=bool(fronts.all),
        )
        options: list[Option] = []
        for view in decodes:
            options += self._options_on(request, view, fronts)
        options.sort(key=_cost)
        chosen = self._pick(request, options)
        return Decision(
            decode=chosen.decode,
            prefill_candidates=self._candidates(request, chosen, fronts.all, options),
            policy=self.name,
            options=_kept(options, chosen),
            chosen=chosen,
        )

    def _explored(self, request: RouteRequest, views: Sequence[View]) -> Sequence[View]:
        """Returns the workers, or now and then only one that idles because it was slow once.

        A worker that is never chosen is never measured, and so it would be slow for ever.
        """
        if len(views) < 2 or request.ttft_slo_s is not None or request.tpot_slo_s is not None:
            return views
        if self._rng.random() >= EXPLORE_SHARE:
            return views
        slow = idle_and_slow(views)
        return [self._rng.choice(slow)] if slow else views

    def prefill_keys(self, view: PrefillView) -> tuple[float]:
        """Returns where a prefill worker stands; see `Standing`."""
        return (wait_s(view),)

    def decode_keys(self, view: DecodeView) -> tuple[float, float]:
        """Returns where a decode worker stands as one that receives, and as one that computes."""
        ranked = self._rank(TYPICAL, [view])
        return ranked.receiving[0][0], ranked.computing[0][0]

    def _rank(self, request: RouteRequest, views: Sequence[DecodeView]) -> RankedDecodes:
        return rank_decodes(request, views, self._settings.tpot_price, self._settings.chunk_tokens)

    def evaluate(
        self, request: RouteRequest, prefill: PrefillView | None, decode: DecodeView
    ) -> Option:
        """Returns what one placement is predicted to take."""
        if prefill is None:
            terms = self._local(request, decode)
            return Option(decode, None, terms, self._cost_s(terms))
        front = _Front(prefill, wait_s(prefill), prefill_s(request.prompt_tokens, prefill))
        (option,) = self._remotes_on(request, decode, [front])
        return option

    def _cost_s(self, terms: Terms) -> float:
        return terms.ttft_s + self._settings.tpot_price * terms.tpot_s + terms.interference_s

    def _fronts(self, request: RouteRequest, views: Sequence[PrefillView]) -> "_Fronts":
        """Returns the prefill workers worth pairing, cheapest first."""
        fastest_s = 0.0
        if len(views) > SHORTLIST:
            ranked = rank_prefills(request, views)
            fastest_s = min(ranked, key=itemgetter(0))[0]
            views = self._shortlist(ranked, request, TIE * fastest_s)
        prompt, limit = request.prompt_tokens, self._settings.prefill_queue_max
        fronts = [_Front(view, wait_s(view), prefill_s(prompt, view)) for view in views]
        fronts.sort(key=_front_s)
        if fronts and not fastest_s:
            fastest_s = _front_s(fronts[0])
        takers = [front for front in fronts if front.view.queue_length < limit]
        are_measured = any(front.view.costs.knows_prefill for front in takers)
        return _Fronts(fronts, takers, fastest_s, are_measured)

    def _local(self, request: RouteRequest, decode: DecodeView) -> Terms:
        settings, costs, standing = self._settings, decode.costs, decode.standing
        uncached = max(1, request.prompt_tokens - decode.cached_tokens)
        alone_s, load = costs.prefill_s(uncached, decode.cached_tokens), decode.decode_load
        return Terms(
            wait_s=standing.ahead_s,
            prefill_s=local_prefill_s(
                alone_s, uncached, settings.chunk_tokens, load, standing.join_s
            ),
            transfer_s=0.0,
            admit_s=admit_s(request, decode, is_local=True),
            tpot_s=tpot_s(request, decode),
            interference_s=interference_s(alone_s, load, settings.tpot_price, costs.output_tokens),
        )

    def _decodes(
        self,
        request: RouteRequest,
        views: Sequence[DecodeView],
        tie_s: float,
        *,
        has_prefill: bool,
    ) -> Sequence[DecodeView]:
        """Returns those worth pairing: best to receive, best to compute, and the session's."""
        if len(views) <= SHORTLIST:
            return views
        ranked = self._rank(request, views)
        computing = self._shortlist(ranked.computing, request, tie_s)
        receiving = self._shortlist(ranked.receiving, request, tie_s) if has_prefill else []
        preferred = [v for v in views if v.worker_id == request.preferred_decode]
        by_id = {view.worker_id: view for view in (*computing, *receiving, *preferred)}
        return list(by_id.values())

    def _shortlist(
        self, ranked: "list[Ranked[View]]", request: RouteRequest, tie_s: float
    ) -> "list[View]":
        """Returns the cheapest few, near ties at random; with targets also the fullest that fit."""
        limit_s = tie_s + min(ranked, key=itemgetter(0))[0]
        near = [entry for entry in ranked if entry[0] <= limit_s]
        if len(near) > SHORTLIST:
            best = self._rng.sample(near, SHORTLIST)
        else:
            best = sorted(ranked, key=itemgetter(0))[:SHORTLIST]
        if request.ttft_slo_s is not None:
            within = [entry for entry in ranked if entry[0] <= SLO_SHARE * request.ttft_slo_s]
            best += sorted(within, key=itemgetter(0), reverse=True)[:SHORTLIST]
        return list({view.worker_id: view for _, view in best}.values())

    def _options_on(
        self, request: RouteRequest, decode: DecodeView, fronts: "_Fronts"
    ) -> list[Option]:
        """Returns what the decode worker may do; where nobody is measured, what it will do."""
        if not (decode.prefills_locally and decode.takes_prefilled):
            return self._only_options_on(request, decode, fronts)
        missing = request.prompt_tokens - decode.cached_tokens
        is_remote = bool(fronts.takers) and missing > self._settings.offload_above_tokens
        if fronts.are_measured:
            options = self._remotes_on(request, decode, fronts.takers)
            options.append(self.evaluate(request, None, decode))
            return options
        if is_remote:
            return self._remotes_on(request, decode, fronts.takers)
        return [self.evaluate(request, None, decode)]

    def _only_options_on(
        self, request: RouteRequest, decode: DecodeView, fronts: "_Fronts"
    ) -> list[Option]:
        """Returns the one way of an engine that has no choice; without prefill workers it fails."""
        if decode.takes_prefilled and fronts.all:
            return self._remotes_on(request, decode, fronts.takers or fronts.all)
        return [self.evaluate(request, None, decode)]

    def _remotes_on(
        self, request: RouteRequest, decode: DecodeView, fronts: "Sequence[_Front]"
    ) -> list[Option]:
        """Returns the pairs of one decode worker; what depends on it alone is predicted once."""
        admitted_s = admit_s(request, decode, is_local=False)
        token_s = tpot_s(request, decode)
        back_s = admitted_s + self._settings.tpot_price * token_s
        kv_bytes = _missing_bytes(request, decode)
        move_s = decode.costs.transfer_s
        options = []
        for prefill, ahead_s, compute_s in fronts:
            moved_s = move_s(prefill.worker_id, kv_bytes)
            terms = Terms(ahead_s, compute_s, moved_s, admitted_s, token_s)
            cost_s = ahead_s + compute_s + moved_s + back_s
            options.append(Option(decode, prefill, terms, cost_s))
        return options

    def _pick(self, request: RouteRequest, options: Sequence[Option]) -> Option:
        own = [o for o in options if o.decode.worker_id == request.preferred_decode]
        if request.ttft_slo_s is not None or request.tpot_slo_s is not None:
            fitting = [option for option in options if _meets(request, option.terms)]
            # A session's own worker is as good a fit as any that meets the targets.
            fitting = [option for option in fitting if option in own] or fitting
            if fitting:
                tightest = min(_headroom(request, option.terms) for option in fitting)
                near = [o for o in fitting if _headroom(request, o.terms) <= (1 + TIE) * tightest]
                return self._rng.choice(near)
        best = options[0]
        # A share of the cost would be another thing: most of it is the price of steps that every
        # worker takes, and equal would be what differs by more than a whole prefill.
        if own and own[0].cost_s <= best.cost_s + SESSION_SLACK * best.terms.ttft_s:
            return own[0]
        limit_s = best.cost_s + TIE * best.terms.ttft_s
        return self._rng.choice([o for o in options if o.cost_s <= limit_s])

    def _candidates(
        self,
        request: RouteRequest,
        chosen: Option,
        fronts: "Sequence[_Front]",
        options: Sequence[Option],
    ) -> tuple[PrefillView, ...]:
        """Returns the prefill workers for the chosen decode worker, the chosen one first."""
        first, decode = chosen.prefill, chosen.decode
        views = [first] if first is not None else []
        for option in options:
            view = option.prefill
            if option.decode is decode and view is not None and view is not first:
                views.append(view)
        if len(views) < min(len(fronts), MAX_PREFILL_CANDIDATES):
            # Those that were no option, such as the ones whose queue is full, come last.
            known = {view.worker_id for view in views}
            rest = [front for front in fronts if front.view.worker_id not in known]
            kv_bytes = _missing_bytes(request, decode)
            move_s = decode.costs.transfer_s
            rest.sort(key=lambda it: it.wait_s + it.prefill_s + move_s(it.view.worker_id, kv_bytes))
            views += [front.view for front in rest]
        return tuple(views[:MAX_PREFILL_CANDIDATES])


class _Front(NamedTuple):
    """A prefill worker with what does not depend on who decodes."""

    view: PrefillView
    wait_s: float
    prefill_s: float


def _front_s(front: _Front) -> float:
    return front.wait_s + front.prefill_s


class _Fronts(NamedTuple):
    """The prefill workers worth pairing, those that take prompts, what the fastest of
    the whole pool takes, and whether one of them is measured."""

    all: Sequence[_Front]
    takers: Sequence[_Front]
    fastest_s: float
    are_measured: bool


def _missing_bytes(request: RouteRequest, decode: DecodeView) -> int:
    return max(0, request.prompt_tokens - decode.cached_tokens) * request.kv_bytes_per_token


def _meets(request: RouteRequest, terms: Terms) -> bool:
    ttft_slo_s, tpot_slo_s = request.ttft_slo_s, request.tpot_slo_s
    return (ttft_slo_s is None or terms.ttft_s <= SLO_SHARE * ttft_slo_s) and (
        tpot_slo_s is None or terms.tpot_s <= SLO_SHARE * tpot_slo_s
    )


def _headroom(request: RouteRequest, terms: Terms) -> float:
    """Returns what is left of the targets, in shares of them."""
    left = 0.0
    if request.ttft_slo_s is not None:
        left += 1 - terms.ttft_s / request.ttft_slo_s
    if request.tpot_slo_s is not None:
        left += 1 - terms.tpot_s / request.tpot_slo_s
    return left


def _kept(options: Sequence[Option], chosen: Option) -> tuple[Option, ...]:
    best = options[:MAX_OPTIONS]
    return tuple(best) if chosen in best else (*best[:-1], chosen)
