// Where the time to first token goes: the mean of each part over the window.

import { byId, el } from "./dom.js";
import { ms, PARTS } from "./format.js";

export function bars(parts, total, kind) {
  return el("div", { class: kind }, ...PARTS.filter(([name]) => parts[name] > 0).map(([name, label]) =>
    el("i", { class: name, width: `${(100 * parts[name]) / total}%`, title: `${label} ${ms(parts[name])}` })));
}

export function legend(parts) {
  return el("dl", { class: "legend" }, ...PARTS.map(([name, label]) =>
    el("div", {}, el("i", { class: name }), el("dt", {}, label), el("dd", {}, ms(parts[name])))));
}

export function showSplit(requests) {
  const timed = requests.filter((request) => request.timing);
  const note = byId("split-note");
  if (!timed.length) {
    note.textContent = "";
    byId("split-body").replaceChildren(el("p", { class: "empty" }, "It appears with the first answer."));
    return;
  }
  const mean = {};
  for (const [name] of PARTS) {
    mean[name] = timed.reduce((sum, request) => sum + request.timing.parts[name], 0) / timed.length;
  }
  const total = timed.reduce((sum, request) => sum + request.timing.ttft_s, 0) / timed.length;
  note.textContent = `mean ${ms(total)} over ${timed.length} answer${timed.length > 1 ? "s" : ""}; the parts add up`;
  byId("split-body").replaceChildren(bars(mean, total, "split"), legend(mean));
}
