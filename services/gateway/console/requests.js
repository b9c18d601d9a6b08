// The table of running and recent requests; rows are kept, so that a selection survives updates.

import { byId, el } from "./dom.js";
import { clock, count, ms } from "./format.js";
import { bars } from "./split.js";

const rows = new Map();
let selected = null;
let order = [];
let onOpen = () => {};

export function whenOpened(callback) { onOpen = callback; }

function outcome(request) {
  if (request.stage !== "ended") return el("span", { class: "tag busy" }, request.stage);
  if (request.error_type) return el("span", { class: `tag ${request.error_type === "CANCELLED" ? "" : "failed"}` }, request.error_type.toLowerCase().replaceAll("_", " "));
  return request.met_targets ? el("span", { class: "tag met" }, "met") : el("span", { class: "tag missed" }, "missed target");
}

function placement(request) {
  const p = request.placement;
  if (!p) return "";
  if (p.prefill_mode === "remote") return `${p.prefill_worker_id} \u2192 ${p.decode_worker_id}`;
  return p.prefill_mode ? `${p.decode_worker_id} (local)` : p.decode_worker_id;
}

function cells(request) {
  const { timing } = request;
  const cell = (value, attributes) => el("td", attributes, value);
  return [
    cell(clock(request.arrived_at_s), {}),
    cell(el("span", { class: "id", title: request.request_id }, request.request_id || "-"), {}),
    cell(outcome(request), {}),
    cell(request.priority, { class: request.priority }),
    cell(count(request.prompt_tokens), { class: "n" }),
    cell(count(request.cached_tokens), { class: "n" }),
    cell(count(request.completion_tokens), { class: "n" }),
    cell(placement(request), { title: request.placement?.prefill_reason }),
    cell(timing ? ms(timing.ttft_s) : "", { class: "n" }),
    cell(timing ? bars(timing.parts, timing.ttft_s, "mini") : "", {}),
    cell(timing?.tpot_s != null ? ms(timing.tpot_s) : "", { class: "n" }),
  ];
}

function row(request) {
  const text = JSON.stringify(request);
  let kept = rows.get(request.request_id);
  if (!kept) {
    const id = request.request_id;
    kept = { node: el("tr", { tabindex: "-1", onclick: () => open(id) }), text: "" };
    rows.set(id, kept);
  }
  if (kept.text !== text) {
    kept.node.replaceChildren(...cells(request));
    kept.text = text;
  }
  return kept.node;
}

export function showRequests(requests) {
  const named = requests.filter((request) => request.request_id);
  order = named.map((request) => request.request_id);
  const shown = new Set(order);
  for (const id of rows.keys()) if (!shown.has(id)) rows.delete(id);
  const nodes = named.map(row);
  const body = byId("rows");
  if (nodes.length !== body.children.length || nodes.some((node, at) => body.children[at] !== node)) {
    const focused = document.activeElement;
    body.replaceChildren(...nodes);
    if (nodes.includes(focused)) focused.focus({ preventScroll: true });
  }
  byId("requests").querySelector(".scroll").hidden = !nodes.length;
  byId("no-requests").hidden = nodes.length > 0;
  byId("try").textContent = `curl ${location.origin}/v1/completions -H 'content-type: application/json' \\\n  -d '{"model": "baton-tiny", "prompt": "The with statement", "max_tokens": 32}'`;
  const running = requests.filter((request) => request.stage !== "ended").length;
  byId("requests-note").textContent = nodes.length ? `${running} running, ${requests.length - running} recent` : "";
  mark();
}

function mark() {
  for (const [id, { node }] of rows) node.setAttribute("aria-selected", String(id === selected));
}

export function select(id) {
  selected = id;
  mark();
}

export function step(by) {
  if (!order.length) return;
  const at = order.indexOf(selected);
  select(order[Math.max(0, Math.min(order.length - 1, at < 0 ? 0 : at + by))]);
  const node = rows.get(selected)?.node;
  node?.focus({ preventScroll: true });
  node?.scrollIntoView({ block: "nearest" });
}

export function open(id = selected) {
  if (id === null) return;
  select(id);
  onOpen(id);
}
