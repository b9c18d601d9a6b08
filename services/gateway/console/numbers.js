// The row of numbers: what matters at a glance, over the requests of the window.

import { byId, el } from "./dom.js";
import { bytes, count, ms, percent, quantile } from "./format.js";

function number(title, value, unit, note, tone = "") {
  return el("dl", { class: `number ${tone}` },
    el("dt", {}, title),
    el("dd", {}, value, unit ? el("small", {}, unit) : null),
    el("p", { title: note }, note));
}

export function showWaiting() {
  const titles = ["Goodput", "Running", "TTFT p50", "TTFT p95", "TPOT p50", "Prefix hits", "KV moved"];
  byId("numbers").replaceChildren(...titles.map((title) => number(title, "-", "", "", "wait")));
}

function attainment(counts) {
  const offered = counts.reduce((sum, each) => sum + each.offered, 0);
  const met = counts.reduce((sum, each) => sum + each.met, 0);
  if (!offered) return number("Goodput", "-", "", "no request ended yet");
  const share = met / offered;
  const tone = share >= 0.95 ? "good" : share >= 0.8 ? "warn" : "bad";
  const each = counts.map((c) => `${c.priority} ${c.met} of ${c.offered}`).join(", ");
  const shown = number("Goodput", percent(share), "%", `${count(met)} of ${count(offered)} in time`, tone);
  shown.title = `Met both targets since the router started: ${each}`;
  return shown;
}

export function showNumbers(snapshot) {
  const ended = snapshot.requests.filter((r) => r.stage === "ended");
  const running = snapshot.requests.filter((r) => r.stage !== "ended");
  const ttft = ended.filter((r) => r.timing).map((r) => r.timing.ttft_s);
  const tpot = ended.filter((r) => r.timing?.tpot_s != null).map((r) => r.timing.tpot_s);
  const prompt = ended.reduce((sum, r) => sum + r.prompt_tokens, 0);
  const cached = ended.reduce((sum, r) => sum + r.cached_tokens, 0);
  const remote = ended.filter((r) => r.placement?.prefill_mode === "remote");
  const moved = ended.reduce((sum, r) => sum + (r.placement?.kv_bytes ?? 0), 0);
  const waiting = running.filter((r) => r.stage === "admission").length;
  const { targets } = snapshot;
  const late = (value, target) => (value === null ? "" : value > target ? "bad" : "");
  const [p50, p95] = [quantile(ttft, 0.5), quantile(ttft, 0.95)];
  const placed = ended.filter((r) => r.placement).length;
  const shown = (value) => { const [n, unit = ""] = ms(value).split(" "); return [n, unit]; };
  byId("numbers").replaceChildren(
    attainment(snapshot.attainment),
    number("Running", count(snapshot.fleet.active_requests), "", `${waiting} waiting for a permit`),
    number("TTFT p50", ...shown(p50), `target ${ms(targets.ttft_s)}`, late(p50, targets.ttft_s)),
    number("TTFT p95", ...shown(p95), `last ${ended.length} requests`, late(p95, targets.ttft_s)),
    number("TPOT p50", ...shown(quantile(tpot, 0.5)), `target ${ms(targets.tpot_s)}`, late(quantile(tpot, 0.5), targets.tpot_s)),
    number("Prefix hits", prompt ? percent(cached / prompt) : "-", prompt ? "%" : "", prompt ? `${count(cached)} of ${count(prompt)} tokens` : ""),
    number("KV moved", ...bytes(moved).split(" "), placed ? `${percent(remote.length / placed)} % prefilled remotely` : ""),
  );
}
