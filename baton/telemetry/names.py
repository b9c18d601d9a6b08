"""Every span, attribute and metric name of Baton, with its meaning and unit.

The GenAI names follow the OpenTelemetry semantic conventions for generative AI (development
status); the rest is prefixed `baton.`. Nothing else in the code spells a telemetry name.
"""

from dataclasses import dataclass

SPAN_GATEWAY = "baton.gateway"
SPAN_REQUEST = "baton.request"
SPAN_ADMIT = "baton.admit"
SPAN_ROUTE = "baton.route"
SPAN_PREFILL = "baton.prefill"
SPAN_PREFILL_QUEUE = "baton.prefill.queue"
SPAN_PREFILL_COMPUTE = "baton.prefill.compute"
SPAN_KV_TRANSFER = "baton.kv_transfer"
SPAN_DECODE = "baton.decode"

SPANS: dict[str, str] = {
    SPAN_GATEWAY: "Gateway: one HTTP request; parent of baton.request.",
    SPAN_REQUEST: "Router: the whole request; parent of all stages.",
    SPAN_ADMIT: "Admission: from asking for the permit to its grant or rejection.",
    SPAN_ROUTE: "Router: tokens, hashes, look-up and choice of workers.",
    SPAN_PREFILL: "The worker that computes the prompt: from its arrival to the first token.",
    SPAN_PREFILL_QUEUE: "Part of baton.prefill: waiting for the engine.",
    SPAN_PREFILL_COMPUTE: "Part of baton.prefill: the engine computes.",
    SPAN_KV_TRANSFER: "Prefill worker: writing KV blocks into the decode worker's pool.",
    SPAN_DECODE: "Decode worker: from the request's arrival to its last token.",
}

ATTR_REQUEST_ID = "baton.request_id"
ATTR_PRIORITY = "baton.priority"
ATTR_TENANT = "baton.tenant"
ATTR_PREFILL_WORKER = "baton.worker.prefill"
ATTR_DECODE_WORKER = "baton.worker.decode"
ATTR_PREFILL_MODE = "baton.prefill.mode"
ATTR_PREFILL_REASON = "baton.prefill.reason"
ATTR_FAILED_ATTEMPTS = "baton.prefill.failed_attempts"
ATTR_MATCHED_TOKENS = "baton.prefix.matched_tokens"
ATTR_KV_BYTES = "baton.kv.bytes"
ATTR_KV_BLOCKS = "baton.kv.blocks"
ATTR_MIGRATIONS = "baton.migrations"
ATTR_POLICY = "baton.policy"
ATTR_ADMISSION_VERDICT = "baton.admission.verdict"
ATTR_DEGRADATION = "baton.admission.degradation"
ATTR_STAGE = "baton.stage"
"""Of requests: admission (waiting) or running. Of permits: prefill or decode."""
ATTR_WINDOW = "baton.slo.window"
"""A sliding window, such as 5m or 1h."""
ATTR_TARGET = "baton.slo.target"
"""Which target: ttft, tpot or both."""
ATTR_PREDICTED_TTFT_S = "baton.predicted.ttft_s"
ATTR_PREDICTED_TPOT_S = "baton.predicted.tpot_s"
PREDICTED_PART_PREFIX = "baton.predicted."
"""`baton.predicted.<part>_s` for wait, prefill, transfer and admit; they add up to the TTFT."""
ATTR_ROLE = "baton.role"
ATTR_STATE = "state"
ATTR_SPAN_KIND = "openinference.span.kind"
ATTR_SLO_OUTCOME = "baton.slo.outcome"
"""met, or what was missed first: failed, ttft or tpot."""
ATTR_POOL = "baton.pool"
"""Which pool: prefill or decode."""
ATTR_REASON = "baton.reason"
"""Why a pool was resized: a reason of services/autoscaler/state.py."""
ATTR_COST = "baton.cost"
"""Which fitted cost: prefill, step or transfer."""
ATTR_PREDICTION_ERROR = "baton.prediction.error"
ATTR_TTFT_S = "baton.ttft_s"
ATTR_TPOT_S = "baton.tpot_s"
TTFT_PART_PREFIX = "baton.ttft."
"""`baton.ttft.<part>_s` for each part of the TTFT; they add up to baton.ttft_s."""

ATTR_OPERATION = "gen_ai.operation.name"
ATTR_PROVIDER = "gen_ai.provider.name"
ATTR_REQUEST_MODEL = "gen_ai.request.model"
ATTR_MAX_TOKENS = "gen_ai.request.max_tokens"
ATTR_FINISH_REASONS = "gen_ai.response.finish_reasons"
ATTR_INPUT_TOKENS = "gen_ai.usage.input_tokens"
ATTR_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
ATTR_CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
ATTR_ERROR_TYPE = "error.type"
ATTR_HTTP_METHOD = "http.request.method"
ATTR_HTTP_ROUTE = "http.route"
ATTR_HTTP_STATUS = "http.response.status_code"

PROVIDER = "baton"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name, unit and meaning; histograms have bucket bounds in that unit."""

    name: str
    unit: str
    meaning: str
    bounds: tuple[float, ...] = ()

    @property
    def kind(self) -> str:
        """Returns "histogram", "gauge" or "counter"."""
        if self.bounds:
            return "histogram"
        return "gauge" if self in GAUGES else "counter"


TTFT = Metric(
    "gen_ai.server.time_to_first_token",
    "s",
    "Time to first token, queueing and KV transfer included.",
    (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
)
TPOT = Metric(
    "gen_ai.server.time_per_output_token",
    "s",
    "(end - first token) / (output tokens - 1).",
    (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5),
)
DURATION = Metric(
    "gen_ai.server.request.duration",
    "s",
    "From the request's arrival to its last byte.",
    (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
HTTP_DURATION = Metric(
    "http.server.request.duration",
    "s",
    "Gateway: from a request's arrival to its last byte, by route and status.",
    (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
)
REQUESTS = Metric("baton.requests", "{request}", "Finished requests by outcome (error.type).")
SLO_REQUESTS = Metric(
    "baton.slo.requests",
    "{request}",
    "Offered requests, rejected ones included, by baton.slo.outcome; goodput is the share met.",
)
PREFILLS = Metric("baton.prefills", "{request}", "Prompts computed, by mode and reason.")
CACHED_TOKENS = Metric("baton.cached_tokens", "{token}", "Prompt tokens found in prefix caches.")
PREDICTED_CACHED_TOKENS = Metric(
    "baton.cached_tokens.predicted",
    "{token}",
    "Prompt tokens that routers expected to be cached where the prompt was computed.",
)
KV_BYTES = Metric(
    "baton.kv.transferred", "By", "KV bytes received from prefill workers, by pair of workers."
)
KV_SECONDS = Metric(
    "baton.kv.transfer.time",
    "s",
    "Seconds in which at least one write of a transfer was under way, by pair of workers.",
)
ACTIVE = Metric(
    "baton.active_requests",
    "{request}",
    "Requests at a router, by baton.stage: admission, running.",
)
WORKERS = Metric("baton.workers", "{worker}", "Workers that a router knows, by role and state.")
MIGRATIONS = Metric("baton.migrations", "{request}", "Streams resumed on another decode worker.")
KV_BLOCKS = Metric(
    "baton.kv.blocks", "{block}", "KV blocks by state: free, cached, owned, host (evicted)."
)
KV_RESERVATIONS = Metric(
    "baton.kv.reservations",
    "{reservation}",
    "Decode worker: reservations by state: reserved, exposed, stopping, quarantined, overdue.",
)
KV_LEASES = Metric("baton.kv.leases", "{lease}", "Reservations that wait for a remote prefill.")
QUEUED = Metric("baton.queue.requests", "{request}", "Requests waiting for an engine.")
STATE_AGE = Metric("baton.state.age", "s", "Seconds since Redis last confirmed the fleet's state.")
LOOP_STALL = Metric(
    "baton.process.loop_stall",
    "s",
    "By how much a beat of the process's event loop came late; beats are 20 ms apart.",
    (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
)
PREDICTION_ERROR = Metric(
    "baton.prediction.error",
    "1",
    "|predicted - actual| / actual of the TTFT, from placement to first token.",
    (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10),
)
COST_ERROR = Metric(
    "baton.cost.error",
    "{ratio}",
    "Running mean of |predicted - actual| / actual of a worker's fitted costs, by baton.cost.",
)
INDEX_DRIFT = Metric(
    "baton.index.drift",
    "{ratio}",
    "Largest mean of |expected - found| cached tokens of any worker, as a share of the prompt.",
)
ADMISSION_VERDICTS = Metric(
    "baton.admission.verdicts",
    "{request}",
    "Answers to requests for a permit by class: granted, queued first, or the reason of a refusal.",
)
ADMISSION_DEGRADATIONS = Metric(
    "baton.admission.degradations", "{request}", "Permits granted with a degradation, by step."
)
ADMISSION_WAIT = Metric(
    "baton.admission.wait",
    "s",
    "From asking for a permit to its grant.",
    (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
ADMISSION_PERMITS = Metric("baton.admission.permits", "{request}", "Live permits by stage.")
ADMISSION_QUEUED = Metric(
    "baton.admission.queued", "{request}", "Requests that wait for a permit, by class."
)
WITHOUT_PERMIT = Metric(
    "baton.admission.bypassed",
    "{request}",
    "Requests that found no admission service, by class and whether they went on or were refused.",
)
SLO_ATTAINMENT = Metric(
    "baton.slo.attainment",
    "{ratio}",
    "Share of all requests, refused ones too, that met a target, by class, tenant and window.",
)
SLO_BURN_RATE = Metric(
    "baton.slo.burn_rate",
    "{ratio}",
    "How many times faster than allowed a class uses up its error budget, by window.",
)

POOL_WORKERS = Metric(
    "baton.autoscaler.workers",
    "{worker}",
    "Workers of a pool by state: ready, starting, draining, failed.",
)
POOL_TARGET = Metric("baton.autoscaler.target", "{worker}", "Workers that a pool is to have.")
SCALINGS = Metric(
    "baton.autoscaler.scalings", "{change}", "Changes of a pool's size, by pool and reason."
)
SCALING_FAILURES = Metric(
    "baton.autoscaler.failures", "{failure}", "Looks at which something was wrong."
)

METRICS = (
    TTFT, TPOT, DURATION, HTTP_DURATION, REQUESTS, SLO_REQUESTS, PREFILLS, CACHED_TOKENS,
    PREDICTED_CACHED_TOKENS, KV_BYTES, KV_SECONDS, ACTIVE, WORKERS,
    MIGRATIONS, KV_BLOCKS,
    KV_LEASES, KV_RESERVATIONS, QUEUED, STATE_AGE, PREDICTION_ERROR,
    INDEX_DRIFT, COST_ERROR, LOOP_STALL,
    ADMISSION_VERDICTS, ADMISSION_DEGRADATIONS, ADMISSION_WAIT, ADMISSION_PERMITS,
    ADMISSION_QUEUED, WITHOUT_PERMIT, SLO_ATTAINMENT, SLO_BURN_RATE,
    POOL_WORKERS, POOL_TARGET, SCALINGS, SCALING_FAILURES,
)  # fmt: skip

GAUGES = frozenset(
    (
        ACTIVE, WORKERS, KV_BLOCKS, KV_LEASES, KV_RESERVATIONS,
        QUEUED, STATE_AGE,
        POOL_TARGET, POOL_WORKERS,
        INDEX_DRIFT, COST_ERROR, ADMISSION_PERMITS, ADMISSION_QUEUED, SLO_ATTAINMENT,
        SLO_BURN_RATE,
    )
)  # fmt: skip
"""What is read at each export; counters only grow."""

ATTRIBUTES: dict[str, str] = {
    ATTR_POOL: "Worker pool: prefill or decode.",
    ATTR_REASON: "Why a pool was resized, such as FORECAST.",
    ATTR_REQUEST_ID: "The request's name, as clients and logs know it. Spans only.",
    ATTR_PRIORITY: "low, normal or high.",
    ATTR_TENANT: "Who the request is for: on spans; on baton.slo gauges only those that "
    "qos.tenants names.",
    ATTR_PREFILL_WORKER: "Worker that computes or computed the prompt.",
    ATTR_DECODE_WORKER: "Worker that generates the tokens.",
    ATTR_PREFILL_MODE: "local or remote.",
    ATTR_PREFILL_REASON: "Why local or remote, such as LONG_PREFILL.",
    ATTR_FAILED_ATTEMPTS: "Prefill workers that were asked in vain, with reasons.",
    ATTR_MATCHED_TOKENS: "Prompt tokens that the index expected, or the cache found.",
    ATTR_KV_BYTES: "KV bytes moved for the request.",
    ATTR_KV_BLOCKS: "KV blocks moved for the request.",
    ATTR_MIGRATIONS: "Times the stream moved to another decode worker.",
    ATTR_POLICY: "The policy that decided; `baton.policy.*` are the numbers of the split decision.",
    ATTR_ADMISSION_VERDICT: "granted, queued, ahead (started before the answer) or fail_open.",
    ATTR_PREDICTED_TTFT_S: "Predicted seconds from the placement to the first token.",
    ATTR_PREDICTED_TPOT_S: "Predicted seconds per output token.",
    f"{PREDICTED_PART_PREFIX}<part>_s": "Parts of the prediction: wait, prefill, transfer, admit.",
    ATTR_PREDICTION_ERROR: "|predicted - actual| / actual of the TTFT.",
    ATTR_TTFT_S: "Seconds from the request's arrival to its first token.",
    ATTR_TPOT_S: "(end - first token) / (output tokens - 1), in seconds.",
    f"{TTFT_PART_PREFIX}<part>_s": (
        "Parts of the TTFT: tokenize, admission, route, decode_admit, prefill_queue, "
        "prefill_compute, kv_transfer, first_step."
    ),
    ATTR_STAGE: "Of requests: admission (waiting) or running. Of permits: prefill or decode.",
    ATTR_DEGRADATION: "What admission took away, such as a cap on max_tokens.",
    ATTR_WINDOW: "A sliding window, such as 5m or 1h.",
    ATTR_TARGET: "Which target: ttft, tpot or both.",
    ATTR_ROLE: "prefill or decode.",
    ATTR_STATE: (
        "Of workers: ready, draining, stale. Of KV blocks: free, cached, owned, unaccounted."
    ),
    ATTR_SLO_OUTCOME: "met, or what was missed first: failed, ttft or tpot.",
    ATTR_COST: "Which fitted cost: prefill, step or transfer.",
    ATTR_SPAN_KIND: "LLM on baton.request, for consoles that tell kinds of spans apart.",
    ATTR_OPERATION: "chat or text_completion.",
    ATTR_PROVIDER: "baton.",
    ATTR_REQUEST_MODEL: "The model.",
    ATTR_MAX_TOKENS: "Most tokens to generate.",
    ATTR_FINISH_REASONS: "stop or length.",
    ATTR_INPUT_TOKENS: "Prompt tokens.",
    ATTR_OUTPUT_TOKENS: "Generated tokens.",
    ATTR_CACHED_TOKENS: "Prompt tokens found in a prefix cache.",
    ATTR_ERROR_TYPE: "Reason of a failure, such as QUEUE_FULL; absent when it ended well.",
    ATTR_HTTP_METHOD: "GET or POST.",
    ATTR_HTTP_ROUTE: "The endpoint.",
    ATTR_HTTP_STATUS: "The status; 499 when the client left.",
}
