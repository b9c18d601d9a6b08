// The fleet map: prefill workers left, decode workers right, what moved between them in the middle.

import { byId, el, svg } from "./dom.js";
import { bytes } from "./format.js";

const MANY = 8;
const STALE_S = 2;

function state(worker) {
  if (!worker.stats || worker.stats_age_s > STALE_S) return "stale";
  if (worker.stats.draining) return "draining";
  const { queued_requests, prefilling_requests, decoding_requests } = worker.stats;
  return queued_requests + prefilling_requests + decoding_requests ? "busy" : "idle";
}

function meter(name, shares, text) {
  const bars = shares.map(([kind, share]) => el("i", { class: kind, width: `${Math.min(100, 100 * share)}%` }));
  return el("div", { class: "meter" }, el("span", {}, name), el("span", { class: "track" }, ...bars), el("span", {}, text));
}

function card(worker) {
  const mood = state(worker);
  const stats = worker.stats;
  const body = [];
  if (stats) {
    const total = Math.max(1, stats.kv_blocks_total);
    const fact = (name, value) => el("span", {}, `${name} `, el("b", {}, String(value)));
    body.push(
      el("div", { class: "facts" },
        fact("queue", stats.queued_requests),
        worker.role === "prefill" ? fact("prefilling", stats.prefilling_requests) : fact("streams", stats.decoding_requests),
        stats.kv_leases ? fact("leases", stats.kv_leases) : null),
      meter("busy", [["busy-share", stats.busy_share]], `${(100 * stats.busy_share).toFixed(0)} %`),
      meter("KV", [["owned", stats.kv_blocks_owned / total], ["cached", stats.kv_blocks_cached / total]],
        `${(100 * stats.kv_blocks_owned / total).toFixed(0)} % + ${(100 * stats.kv_blocks_cached / total).toFixed(0)} % cached`));
  }
  const title = `${worker.worker_id} at ${worker.address}\nincarnation ${worker.incarnation}\n` +
    `KV by ${worker.transfer_backend}\n` +
    (stats ? `KV blocks: ${stats.kv_blocks_owned} owned, ${stats.kv_blocks_cached} cached, ${stats.kv_blocks_free} free\n` : "") +
    `figures ${worker.stats ? worker.stats_age_s.toFixed(1) + " s old" : "not here yet"}`;
  return el("article", { class: `worker ${mood === "stale" ? "stale" : ""}`, title, "data-worker": worker.worker_id },
    el("header", {}, el("b", {}, worker.worker_id), el("span", { class: `tag ${mood}` }, mood)), ...body);
}

function column(title, role, workers) {
  const cards = workers.length
    ? workers.map(card)
    : [el("p", { class: "empty" }, `No ${role} worker. `, el("code", {}, `baton up --${role} 1`))];
  return el("div", { class: "column" }, el("h3", {}, title), el("div", { class: "cards" }, ...cards));
}

// What moved in the window, by pair of prefill and decode worker.
function pairsOf(requests) {
  const pairs = new Map();
  for (const request of requests) {
    const p = request.placement;
    if (!p || p.prefill_mode !== "remote") continue;
    const key = `${p.prefill_worker_id}\n${p.decode_worker_id}`;
    const pair = pairs.get(key) ?? { from: p.prefill_worker_id, to: p.decode_worker_id, transfers: 0, bytes: 0, streams: 0 };
    pair.transfers += 1;
    pair.bytes += p.kv_bytes;
    if (request.stage === "decode") pair.streams += 1;
    pairs.set(key, pair);
  }
  return pairs;
}

function drawLinks(box, prefill, decode, pairs) {
  const frame = box.getBoundingClientRect();
  if (!frame.width) return;
  const middle = (id) => {
    const card = document.querySelector(`[data-worker="${CSS.escape(id)}"]`);
    const r = card?.getBoundingClientRect();
    return r ? r.top + r.height / 2 - frame.top : null;
  };
  const most = Math.max(1, ...[...pairs.values()].map((pair) => pair.bytes));
  const drawn = [];
  for (const from of prefill) {
    for (const to of decode) {
      const pair = pairs.get(`${from.worker_id}\n${to.worker_id}`);
      const [y1, y2] = [middle(from.worker_id), middle(to.worker_id)];
      if (y1 === null || y2 === null) continue;
      const w = frame.width;
      const d = `M 2 ${y1} C ${w * 0.45} ${y1}, ${w * 0.55} ${y2}, ${w - 2} ${y2}`;
      const path = svg("path", { d, class: pair ? "" : "idle", "stroke-width": pair ? 1.5 + 5 * (pair.bytes / most) : 1 });
      if (pair) path.append(svg("title", {}, `${pair.from} to ${pair.to}: ${pair.transfers} transfers, ${bytes(pair.bytes)}`));
      drawn.push(path);
      if (pair || prefill.length * decode.length === 1) {
        const label = pair ? `${bytes(pair.bytes)}, ${pair.transfers}\u00d7${pair.streams ? `, ${pair.streams} live` : ""}` : "nothing moved yet";
        drawn.push(svg("text", { x: w / 2, y: (y1 + y2) / 2 - 9, class: pair ? "" : "idle" }, label));
      }
    }
  }
  // Labels last, so that no line crosses them.
  drawn.sort((a, b) => (a.tagName === "text") - (b.tagName === "text"));
  box.replaceChildren(svg("svg", { "aria-hidden": "true" }, ...drawn));
}

let redraw = () => {};
window.addEventListener("resize", () => redraw());

export function showFleet(snapshot) {
  const { workers, state_age_s: age } = snapshot.fleet;
  const of = (role) => workers.filter((worker) => worker.role === role)
    .sort((a, b) => a.worker_id.localeCompare(b.worker_id, "en", { numeric: true }));
  const [prefill, decode] = [of("prefill"), of("decode")];
  const isMany = Math.max(prefill.length, decode.length) > MANY;
  const pairs = pairsOf(snapshot.requests);
  const box = el("div", { class: "links" });
  const map = byId("map");
  map.classList.toggle("many", isMany);
  map.replaceChildren(
    column(`Prefill (${prefill.length})`, "prefill", prefill), box,
    column(`Decode (${decode.length})`, "decode", decode),
    el("ul", { class: "pairs" }, ...[...pairs.values()].map((pair) =>
      el("li", {}, `${pair.from} to ${pair.to}: ${pair.transfers} transfers, ${bytes(pair.bytes)}`))));
  byId("fleet-note").textContent = age < 1e6 ? `state confirmed ${age.toFixed(1)} s ago` : "state never confirmed";
  redraw = () => { if (!isMany) drawLinks(box, prefill, decode, pairs); };
  redraw();
}
