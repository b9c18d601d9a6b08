// One request: its time, where it ran, and why it was placed there.

import { byId, el } from "./dom.js";
import { bytes, clock, count, error, ms } from "./format.js";
import { bars, legend } from "./split.js";

const TERMS = ["wait", "prefill", "transfer", "admit"];

function facts(pairs) {
  return el("dl", { class: "facts-grid" }, ...pairs.filter(([, value]) => value).map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function summary(request) {
  const p = request.placement;
  return facts([
    ["arrived", clock(request.arrived_at_s)],
    ["priority", request.priority],
    ["tenant", request.tenant],
    ["admission", request.admission],
    ["tokens", `${count(request.prompt_tokens)} prompt, ${count(request.cached_tokens)} cached, ${count(request.completion_tokens)} out`],
    ["prefill", p?.prefill_mode ? `${p.prefill_mode} on ${p.prefill_worker_id}` : ""],
    ["because", p?.prefill_reason.toLowerCase().replaceAll("_", " ")],
    ["decode", p?.decode_worker_id],
    ["KV moved", p?.kv_bytes ? bytes(p.kv_bytes) : ""],
    ["migrations", p?.migrations ? String(p.migrations) : ""],
    ["error", request.error_type],
    ["trace", request.trace_id ? el("code", {}, request.trace_id) : ""],
  ]);
}

function timing(request) {
  const t = request.timing;
  if (!t) return null;
  return el("div", {}, el("h3", {}, `Time to first token ${ms(t.ttft_s)}, per token ${ms(t.tpot_s)}, total ${ms(t.total_s)}`),
    bars(t.parts, t.ttft_s, "split"), legend(t.parts));
}

function options(decision) {
  const head = ["Prefill", "Decode", "TTFT", ...TERMS, "TPOT", "cost"];
  const line = (option) => el("tr", { class: option.is_chosen ? "chosen" : "" },
    el("td", {}, option.prefill_worker_id || "local"), el("td", {}, option.decode_worker_id),
    el("td", { class: "n" }, ms(TERMS.reduce((sum, term) => sum + option[`${term}_s`], 0))),
    ...[...TERMS, "tpot", "cost"].map((term) => el("td", { class: "n" }, ms(option[`${term}_s`]))));
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ...head.map((name, at) => el("th", { scope: "col", class: at > 1 ? "n" : "" }, name)))),
    el("tbody", {}, ...decision.options.map(line))));
}

function candidates(decision) {
  const all = [["decode", decision.decode], ...decision.prefill_candidates.map((worker) => ["prefill", worker])];
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ...["Role", "Worker", "Cached tokens", "Waiting", "Points"].map((name, at) => el("th", { class: at > 1 ? "n" : "" }, name)))),
    el("tbody", {}, ...all.map(([role, worker]) => el("tr", {}, el("td", {}, role), el("td", {}, worker.worker_id),
      el("td", { class: "n" }, count(worker.cached_tokens)), el("td", { class: "n" }, String(worker.queue_length)),
      el("td", { class: "n" }, worker.score === null ? "-" : worker.score.toFixed(2)))))));
}

function reasons(explained) {
  const parts = explained.decisions.flatMap((decision, at) => [
    el("h3", {}, `${explained.decisions.length > 1 ? `Placement ${at + 1}` : "Placement"} by policy ${decision.policy}` +
      (decision.options.length ? `, ${decision.options.length} options, cheapest first` : "")),
    decision.options.length ? options(decision) : candidates(decision),
  ]);
  const outcome = explained.outcome;
  if (outcome) {
    parts.push(el("h3", {}, "Predicted and found"), facts([
      ["found", outcome.ttft_s !== null ? ms(outcome.ttft_s) : ""],
      ["prediction error", outcome.prediction_error !== null ? error(outcome.prediction_error) : ""],
      ["predicted if local", outcome.local_ttft_s !== null ? ms(outcome.local_ttft_s) : ""],
      ["predicted if remote", outcome.remote_ttft_s !== null ? ms(outcome.remote_ttft_s) : ""],
    ]));
  }
  return parts;
}

export function showDetail(id, request, explained, problem, onClose) {
  const box = byId("detail");
  const close = el("button", { type: "button", onclick: onClose, "aria-label": "Close (Esc)" }, "Close");
  box.replaceChildren(
    el("header", {}, el("h2", { class: "id" }, id), close),
    request ? summary(request) : "",
    request ? timing(request) ?? "" : "",
    ...(explained ? reasons(explained) : []),
    problem ? el("p", { class: "empty" }, problem) : "");
  if (!request && !explained && !problem) box.append(el("p", { class: "empty" }, "Asking the router ..."));
  box.hidden = false;
  return close;
}
