// Puts the page together: snapshots in, panels out, keys and the address bar.

import { explain, follow, keepKey } from "./connection.js";
import { showDetail } from "./detail.js";
import { byId } from "./dom.js";
import { showFleet } from "./fleet.js";
import { showNumbers, showWaiting } from "./numbers.js";
import { open, select, showRequests, step, whenOpened } from "./requests.js";
import { showSplit } from "./split.js";

const THEMES = ["system", "light", "dark"];
let last = null;
let isPaused = false;
let opened = null;
let explained = null;
let problem = "";
let before = null;
let painted;

function setLive(kind, text) {
  byId("live").className = `live ${kind}`;
  byId("live-text").textContent = text;
}

function trouble(text) {
  byId("banner").textContent = text;
  byId("banner").hidden = !text;
  byId("main").classList.toggle("stale", Boolean(text) && last !== null);
}

function render(snapshot) {
  last = snapshot;
  byId("main").setAttribute("aria-busy", "false");
  byId("model").textContent = snapshot.fleet.workers[0]?.model ?? "no worker";
  byId("router").textContent = `router ${snapshot.router}`;
  showNumbers(snapshot);
  showFleet(snapshot);
  showSplit(snapshot.requests);
  showRequests(snapshot.requests);
  const request = snapshot.requests.find((each) => each.request_id === opened);
  if (opened && JSON.stringify(request) !== painted) paint().focus({ preventScroll: true });
}

function onSnapshot(snapshot) {
  if (isPaused) return;
  if (snapshot.error) {
    setLive("lost", "no router");
    trouble(`${snapshot.error.message}. What is shown is the last that was known.`);
    return;
  }
  trouble("");
  setLive("ok", "live");
  render(snapshot);
}

function onLost(why) {
  setLive("lost", "lost");
  trouble(`Connection lost: ${why}. Trying again.`);
}

function onDenied(why) {
  setLive("lost", "locked");
  byId("door-why").textContent = why;
  const door = byId("door");
  if (!door.open) door.showModal();
  return new Promise((resolve) => door.addEventListener("close", () => {
    if (byId("key").value) keepKey(byId("key").value);
    resolve();
  }, { once: true }));
}

function paint() {
  const request = last?.requests.find((each) => each.request_id === opened);
  painted = JSON.stringify(request);
  return showDetail(opened, request, explained, problem, closeDetail);
}

async function openDetail(id) {
  if (opened === null) before = document.activeElement;
  opened = id;
  explained = null;
  problem = "";
  history.replaceState(null, "", `#/request/${encodeURIComponent(id)}`);
  paint().focus({ preventScroll: true });
  try {
    const answer = await explain(id);
    if (opened !== id) return;
    explained = answer;
  } catch (error) {
    if (opened !== id) return;
    problem = error.message;
  }
  paint().focus({ preventScroll: true });
}

function closeDetail() {
  opened = null;
  byId("detail").hidden = true;
  history.replaceState(null, "", location.pathname);
  before?.focus?.({ preventScroll: true });
}

function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  localStorage.setItem("baton-theme", theme);
  byId("theme").textContent = { system: "Theme", light: "Light", dark: "Dark" }[theme];
}

function nextTheme() {
  const now = localStorage.getItem("baton-theme") ?? "system";
  setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
}

function pause() {
  isPaused = !isPaused;
  setLive(isPaused ? "paused" : "ok", isPaused ? "paused" : "live");
}

const KEYS = {
  "/": () => byId("query").focus(),
  j: () => step(1),
  k: () => step(-1),
  Enter: () => open(),
  p: pause,
  t: nextTheme,
  "?": () => byId("keys").showModal(),
};

function onKey(event) {
  if (event.key === "Escape") {
    if (opened) closeDetail();
    else document.activeElement?.blur?.();
    return;
  }
  const isTyping = event.target.matches("input, textarea, button, a, dialog, dialog *");
  if (event.ctrlKey || event.metaKey || event.altKey || (isTyping && event.key !== "?")) return;
  if (event.target.matches("input")) return;
  const action = KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

function search(event) {
  event.preventDefault();
  const wished = byId("query").value.trim();
  if (!wished) return;
  const found = last?.requests.find((request) => request.request_id === wished) ??
    last?.requests.find((request) => request.request_id.includes(wished));
  const id = found?.request_id ?? wished;
  select(id);
  openDetail(id);
}

setTheme(localStorage.getItem("baton-theme") ?? "system");
showWaiting();
whenOpened(openDetail);
document.addEventListener("keydown", onKey);
byId("search").addEventListener("submit", search);
byId("theme").addEventListener("click", nextTheme);
byId("help").addEventListener("click", () => byId("keys").showModal());
const linked = location.hash.match(/^#\/request\/(.+)$/);
if (linked) openDetail(decodeURIComponent(linked[1]));
follow({ onSnapshot, onLost, onDenied });
