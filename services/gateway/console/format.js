// Numbers as people read them.

export function ms(seconds) {
  if (seconds === null || seconds === undefined) return "-";
  const value = seconds * 1000;
  if (value >= 10000) return `${(value / 1000).toFixed(1)} s`;
  if (value >= 100) return `${value.toFixed(0)} ms`;
  return `${value.toFixed(value >= 10 ? 1 : 2)} ms`;
}

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (count >= 1024 && at < units.length - 1) { count /= 1024; at += 1; }
  return `${at === 0 || count >= 100 ? count.toFixed(0) : count.toFixed(1)} ${units[at]}`;
}

export function percent(share) {
  const value = 100 * share;
  const isNearAnEnd = (value > 99 && value < 100) || (value > 0 && value < 10);
  return value.toFixed(isNearAnEnd ? 1 : 0);
}

export const error = (share) => (share < 2 ? `${(100 * share).toFixed(0)} %` : `${share.toFixed(0)} times`);

export const count = (value) => value.toLocaleString("en-US");

export function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString("en-GB");
}

export function quantile(values, share) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

export const PARTS = [
  ["tokenize", "tokenize"], ["admission", "admission"], ["route", "route"],
  ["decode_admit", "reserve"], ["prefill_queue", "prefill queue"],
  ["prefill_compute", "prefill compute"], ["kv_transfer", "KV transfer"],
  ["first_step", "first step"],
];
