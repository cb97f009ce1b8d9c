// What pages do beyond links and forms: live updates, times, clocks, keys, choosing. No page needs it to be read.
"use strict";

document.documentElement.classList.add("js");
const live = () => document.getElementById("live");
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// Live updates: one request at a time, and none while nobody looks.
// A change shows after what the receiver says again for half a second to all of us.
const EVERY = 1000;
const SETTLES = 800;
let due = false;
let last = 0;
let timer = 0;

function changed() {
  due = true;
  refresh();
}

function refresh() {
  if (!due || timer || document.hidden || !live() || isBusy()) return;
  timer = setTimeout(() => {
    timer = 0;
    if (document.hidden || isBusy()) return;
    due = false;
    last = Date.now();
    htmx.trigger(document.body, "outkeep");
  }, Math.max(SETTLES, last + EVERY - Date.now()));
}

// What somebody is choosing, listening to or reading further down must not be taken away.
function isBusy() {
  if (document.querySelector(".pick input:checked, dialog[open]")) return true;
  if (all("audio, video").some((player) => !player.paused)) return true;
  return live().dataset.live === "first" && (window.scrollY > 400 || location.search.includes("cursor="));
}

function listen() {
  if (!live() || !window.EventSource) return;
  const only = live().dataset.live;
  const source = new EventSource(only.includes(":") ? `/changes?of=${encodeURIComponent(only)}` : "/changes");
  source.addEventListener("message", changed);
  let opened = false;
  source.addEventListener("open", () => { if (opened) changed(); opened = true; });
  window.addEventListener("pagehide", () => source.close());
  window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
}

// Times: relative, the exact one in the reader's zone on hover; the clock of the hour.
const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

function relative(seconds) {
  const span = Math.abs(seconds);
  if (span < 5) return "just now";
  const [unit, name] = UNITS.find(([size]) => span >= size);
  const text = `${Math.floor(span / unit)} ${name}`;
  return seconds > 0 ? `${text} ago` : `in ${text}`;
}

function tick() {
  const now = Date.now();
  for (const one of all("time[datetime]")) {
    const moment = new Date(one.dateTime);
    const seconds = (now - moment) / 1000;
    if (Number.isNaN(seconds)) continue;
    if (!one.dataset.seen) {
      one.dataset.seen = "yes";
      one.title = moment.toLocaleString(undefined, { dateStyle: "full", timeStyle: "long" });
    }
    if (Math.abs(seconds) < 30 * 86400) {
      const text = relative(seconds);
      if (one.textContent !== text) one.textContent = text;
    }
  }
  for (const clock of all(".clock[data-until]")) {
    const left = (new Date(clock.dataset.until) - now) / 1000;
    const seconds = Math.max(0, Math.min(3600, Math.floor(left)));
    clock.querySelector(".left").setAttribute("stroke-dasharray", `${seconds} 3600`);
    clock.classList.toggle("soon", left < 900);
    const text = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")} left`;
    clock.lastElementChild.textContent = left > 0 ? text : "its hour is over";
  }
}

// Keys
function items() { return all("[data-item]"); }

function linkOf(item) { return item.querySelector("a.open, a"); }

function move(step) {
  const list = items();
  if (!list.length) return;
  const at = list.findIndex((item) => item.contains(document.activeElement));
  const next = at < 0 ? (step > 0 ? 0 : list.length - 1) : Math.max(0, Math.min(list.length - 1, at + step));
  const link = linkOf(list[next]);
  link.focus({ preventScroll: true });
  list[next].scrollIntoView({ block: "nearest" });
}

let lastPicked = null;

function pick(box, isRange) {
  const boxes = all(".pick input");
  if (isRange && lastPicked && boxes.includes(lastPicked)) {
    const [from, to] = [boxes.indexOf(lastPicked), boxes.indexOf(box)].sort((a, b) => a - b);
    for (const one of boxes.slice(from, to + 1)) one.checked = box.checked;
  }
  lastPicked = box;
  count();
}

function count() {
  const chosen = all(".pick input:checked").length;
  for (const one of all("[data-chosen]")) one.textContent = `${chosen} chosen`;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.closest("input:not([type=checkbox]), textarea, select, audio, video");
  if (field) {
    if (event.key === "Escape") field.blur();
    return;
  }
  const keys = document.getElementById("keys");
  if (event.key === "?" && keys) keys.open ? keys.close() : keys.showModal();
  else if (keys?.open) return;
  else if (event.key === "j") move(1);
  else if (event.key === "k") move(-1);
  else if (event.key === "/" && document.getElementById("q")) document.getElementById("q").focus();
  else if (event.key === "x" || event.key === "X") {
    const box = document.activeElement.closest("[data-item]")?.querySelector(".pick input");
    if (!box) return;
    box.checked = !box.checked;
    pick(box, event.shiftKey);
  } else return;
  event.preventDefault();
});

document.addEventListener("click", (event) => {
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    navigator.clipboard?.writeText(copy.dataset.copy).then(() => {
      copy.textContent = "Copied";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
  }
  if (event.target.matches(".pick input")) pick(event.target, event.shiftKey);
});

document.addEventListener("change", (event) => {
  const form = event.target.closest("form.filters");
  if (form && event.target.matches("select, input[type=checkbox]")) form.requestSubmit();
});

// What was open stays open, and what is read at its end stays there, when a part is replaced.
let open = [];
document.addEventListener("htmx:beforeSwap", () => { open = all("details[open][id]").map((one) => one.id); });
function settle() {
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  for (const one of all("[data-end]")) one.scrollTop = one.scrollHeight;
  for (const one of all("[data-copy][hidden]")) if (navigator.clipboard) one.hidden = false;
  count();
  tick();
}
document.addEventListener("htmx:afterSettle", () => { settle(); refresh(); });
document.addEventListener("htmx:responseError", (event) => { if (event.detail.xhr.status === 401) location.reload(); });
document.addEventListener("visibilitychange", refresh);
document.addEventListener("pause", refresh, true);
window.addEventListener("scroll", refresh, { passive: true });

settle();
setInterval(tick, 1000);
listen();
