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
"""What a permit's request is at: prefill or decode."""
ATTR_WINDOW = "baton.slo.window"
"""A sliding window, such as 5m or 1h."""
ATTR_TARGET = "baton.slo.target"
"""Which target: ttft, tpot or both."""
ATTR_PREDICTED_TTFT_S = "baton.predicted.ttft_s"
ATTR_PREDICTED_TPOT_S = "baton.predicted.tpot_s"
PREDICTED_PART_PREFIX = "baton.predicted."
"""`baton.predicted.<part>_s` for wait, prefill, transfer and admit; they add up to the TTFT."""
ATTR_SLO_OUTCOME = "baton.slo.outcome"
"""met, or what was missed first: failed, ttft or tpot."""
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
KV_BYTES = Metric("baton.kv.transferred", "By", "KV bytes received from prefill workers.")
MIGRATIONS = Metric("baton.migrations", "{request}", "Streams resumed on another decode worker.")
KV_BLOCKS = Metric("baton.kv.blocks", "{block}", "KV blocks by state: free, cached, owned.")
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
    "1",
    "Running mean of |predicted - actual| / actual of a worker's fitted costs, by baton.cost.",
)
INDEX_DRIFT = Metric(
    "baton.index.drift",
    "1",
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
    "1",
    "Share of all requests that met a target, those turned away included, by class and window.",
)
SLO_BURN_RATE = Metric(
    "baton.slo.burn_rate",
    "1",
    "How many times faster than allowed a class uses up its error budget, by window.",
)

METRICS = (
    TTFT, TPOT, DURATION, HTTP_DURATION, REQUESTS, SLO_REQUESTS, PREFILLS, CACHED_TOKENS,
    KV_BYTES, MIGRATIONS, KV_BLOCKS,
    KV_LEASES, QUEUED, STATE_AGE, PREDICTION_ERROR,
    INDEX_DRIFT, COST_ERROR, LOOP_STALL,
    ADMISSION_VERDICTS, ADMISSION_DEGRADATIONS, ADMISSION_WAIT, ADMISSION_PERMITS,
    ADMISSION_QUEUED, WITHOUT_PERMIT, SLO_ATTAINMENT, SLO_BURN_RATE,
)  # fmt: skip
