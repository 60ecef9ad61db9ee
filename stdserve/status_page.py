"""The status server's page for people: live numbers, a plot of the last minutes, the open sessions. Pure.

One document that asks for nothing but ``live``, a JSON object, once a second (see ``status``). What it has seen stays
in its memory: the plot begins when the page is opened. Peers' texts reach it as text, never as markup.
"""

from __future__ import annotations

__all__ = ["PAGE", "SCRIPT", "STYLE"]

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f7f7f5; --card: #fff; --line: #e5e5e0; --ink: #1d2329; --soft: #656d76;
  --one: #2f6bd0; --two: #c0672b; --good: #2e7d4f; --wait: #9a6700; --bad: #c03535;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1b1f24; --line: #2b3138; --ink: #e4e7ea; --soft: #98a2ac;
    --one: #79a8f7; --two: #e3a271; --good: #6cc493; --wait: #dcae54; --bad: #f08a85;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1.25rem 3rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 0.9375rem/1.45 system-ui, sans-serif; font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%;
}
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0.25rem 0.9rem; margin-bottom: 1.25rem; }
h1 { margin: 0; font-size: 1.25rem; font-weight: 650; letter-spacing: -0.01em; }
h2 { margin: 0; font-size: 0.8125rem; font-weight: 600; color: var(--soft); }
#state { font-weight: 600; }
#state::before {
  content: ""; display: inline-block; width: 0.55em; height: 0.55em; margin-right: 0.45em; border-radius: 50%;
  background: currentColor;
}
.good { color: var(--good); } .wait { color: var(--wait); } .bad { color: var(--bad); }
#about { margin-left: auto; color: var(--soft); }
main { display: grid; gap: 0.9rem; grid-template-columns: repeat(6, minmax(0, 1fr)); transition: opacity 0.3s; }
.stale main { opacity: 0.45; }
section {
  grid-column: span 2; padding: 0.85rem 1rem 0.9rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 0.6rem; min-width: 0;
}
.half { grid-column: span 3; } .full { grid-column: 1 / -1; }
#tiles {
  grid-column: 1 / -1; display: grid; gap: 0.9rem; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
}
#tiles section { grid-column: auto; }
.figure { margin: 0.15rem 0 0; font-size: 1.75rem; line-height: 1.2; font-weight: 600; letter-spacing: -0.02em; }
.figure small { font-size: 0.9375rem; font-weight: 400; letter-spacing: 0; color: var(--soft); }
.note { margin: 0; color: var(--soft); font-size: 0.8125rem; }
.head { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; }
.key { font-size: 0.8125rem; color: var(--soft); }
.key b { font-weight: 600; } .key .one { color: var(--one); } .key .two { color: var(--two); }
.key span + span { margin-left: 0.9em; } .key span:empty { display: none; }
.plot { position: relative; height: 8.5rem; margin: 1.35rem 0 0.25rem; touch-action: pan-y; cursor: crosshair; }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.plot path { fill: none; stroke-width: 1.75; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
.plot .one { stroke: var(--one); } .plot .two { stroke: var(--two); }
.plot .under { stroke: none; fill: var(--one); opacity: 0.1; }
.plot .grid { stroke: var(--line); stroke-width: 1; } .plot .here { stroke: var(--soft); stroke-width: 1; }
.plot i { position: absolute; left: 0; font-style: normal; font-size: 0.75rem; line-height: 1; color: var(--soft); }
.plot i { padding-bottom: 0.25rem; pointer-events: none; text-shadow: 0 0 2px var(--card), 0 0 4px var(--card); }
.plot .top { bottom: 100%; } .plot .mid { bottom: 50%; }
.axis { display: flex; justify-content: space-between; font-size: 0.75rem; color: var(--soft); }
table { width: 100%; margin-top: 0.35rem; border-collapse: collapse; }
th { font-size: 0.8125rem; font-weight: 400; color: var(--soft); text-align: right; }
th, td { padding: 0.3rem 0 0.3rem 0.9rem; white-space: nowrap; }
td { border-top: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
table[hidden] { display: none; }
#sessions td:first-child { width: 45%; white-space: normal; overflow-wrap: anywhere; }
a { color: inherit; text-decoration-color: var(--line); text-underline-offset: 0.2em; }
footer { margin-top: 1.25rem; color: var(--soft); font-size: 0.8125rem; } footer a { margin-right: 0.9rem; }
@media (max-width: 52rem) { section, .half { grid-column: 1 / -1; } }
@media (max-width: 34rem) {
  body { padding: 1rem 0.8rem 2rem; }
  #about { margin-left: 0; flex-basis: 100%; }
  #tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0.6rem; }
  #tiles section:first-child { grid-column: 1 / -1; }
  main { gap: 0.6rem; } section { padding: 0.7rem 0.8rem; } .figure { font-size: 1.5rem; }
  #sessions thead { display: none; }
  #sessions tr { display: grid; grid-template-columns: 1.2fr 1fr 1fr 1fr; border-top: 1px solid var(--line); }
  #sessions tr { padding: 0.45rem 0; gap: 0.1rem 0.3rem; }
  #sessions td { border: 0; padding: 0; text-align: left; }
  #sessions td:first-child { grid-column: 1 / -1; width: auto; }
  #sessions td:not(:first-child) { font-size: 0.75rem; color: var(--soft); }
  #sessions td:last-child { display: none; }
  #sessions td[data-is]::after { content: " " attr(data-is); }
}
"""

SCRIPT = """
"use strict";
const EVERY = 1000, MINUTES = 5;
const points = [];
const $ = id => document.getElementById(id);
const count = n => Math.round(n).toLocaleString("en");
const short = n => n.toLocaleString("en", {notation: "compact", maximumFractionDigits: 1});
const rate = n => n > 0 && n < 9.95 ? n.toFixed(1) : count(n);

function size(n) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  for (; n >= 999.5 && unit < 5; unit++) n /= 1000;
  return (unit && n < 9.95 ? n.toFixed(1) : Math.round(n)) + " " + units[unit];
}

function time(seconds) {
  const [s, m, h] = [seconds, seconds / 60, seconds / 3600].map(Math.floor);
  if (s < 60) return s + " s";
  if (m < 60) return m + " min" + (m < 10 && s % 60 ? " " + s % 60 + " s" : "");
  if (h < 24) return h + " h" + (m % 60 ? " " + m % 60 + " min" : "");
  return Math.floor(h / 24) + " d" + (h % 24 ? " " + h % 24 + " h" : "");
}

function text(id, words) {
  if ($(id).textContent !== words) $(id).textContent = words;
}

function unit(id, figure) {
  const [number, ...rest] = figure.split(" ");
  const small = document.createElement("small");
  small.textContent = " " + rest.join(" ");
  $(id).replaceChildren(number, small);
}

function fill(id, rows, labels = []) {
  $(id).replaceChildren(...rows.map(cells => {
    const row = document.createElement("tr");
    cells.forEach((cell, i) => {
      const data = row.insertCell();
      data.textContent = cell;
      if (labels[i]) data.dataset.is = labels[i];
    });
    return row;
  }));
}

function reasons(id, counts, none) {
  const rows = Object.entries(counts).filter(([, n]) => n).sort((a, b) => b[1] - a[1]);
  fill(id, rows.map(([word, n]) => [word.replaceAll("_", " "), count(n)]));
  text(id + "-none", rows.length ? "" : none);
}

function above(most) {
  const ten = 10 ** Math.floor(Math.log10(Math.max(most, 1)));
  return [1, 2, 4, 6, 8, 10].map(n => n * ten).find(n => n >= most && n >= 2);
}

function plot(id, names, show) {
  const box = $(id), now = points.at(-1).time, start = now - MINUTES * 60;
  const top = above(Math.max(...points.flatMap(point => names.map(name => point[name]))));
  const x = point => (100 * (point.time - start) / (MINUTES * 60)).toFixed(2);
  const y = value => (100 - 100 * value / top).toFixed(2);
  let drawn = '<path class="grid" d="M0 0H100M0 50H100M0 100H100"/>';
  names.forEach((name, i) => {
    const runs = [[]];
    points.forEach((point, n) => {
      if (n && point.time - points[n - 1].time > 5) runs.push([]);
      runs.at(-1).push(x(point) + " " + y(point[name]));
    });
    const line = runs.map(run => "M" + run.join("L")).join("");
    const floor = runs.map(run => `M${run[0].split(" ")[0]} 100L${run.join("L")}V100Z`).join("");
    if (names.length === 1) drawn += `<path class="under" d="${floor}"/>`;
    drawn += `<path class="${["one", "two"][i]}" d="${line}"/>`;
  });
  const at = box.dataset.at === undefined ? null : start + box.dataset.at * MINUTES * 60;
  const gap = point => Math.abs(point.time - at);
  const point = at === null ? points.at(-1) : points.reduce((a, b) => gap(b) < gap(a) ? b : a);
  if (at !== null) drawn += `<path class="here" d="M${x(point)} 0V100"/>`;
  box.querySelector("svg").innerHTML = drawn;
  box.querySelector(".top").textContent = count(top);
  box.querySelector(".mid").textContent = count(top / 2);
  names.forEach(name => text(id + "-" + name, show(point[name])));
  text(id + "-when", at === null ? "" : time(now - point.time) + " ago");
}

function draw() {
  if (!points.length) return;
  plot("load", ["open"], count);
  plot("lines", ["in", "out"], rate);
}

function remember(live) {
  if (points.length && live.uptime < points.at(-1).time) points.length = 0;
  const before = points.at(-1);
  if (before && live.uptime === before.time) return before;
  const per = key => before ? Math.max(0, live[key] - before.live[key]) / (live.uptime - before.time) : 0;
  const rates = {in: per("lines_in"), out: per("lines_out"), received: per("received"), sent: per("sent"),
    opened: per("total")};
  // The first point has no rates of its own; those of the second are as good a guess as any.
  if (points.length === 1) Object.assign(before, rates);
  const point = {time: live.uptime, open: live.open, ...rates, live};
  if (before) before.live = null;
  points.push(point);
  while (points[0].time < live.uptime - MINUTES * 60) points.shift();
  return point;
}

function show(live) {
  const now = remember(live);
  document.title = count(live.open) + " open \\u00b7 stdserve";
  state(live.not_ready || "Ready", live.draining ? "wait" : live.not_ready ? "bad" : "good");
  text("about", `version ${live.version}, up ${time(live.uptime)}`);
  text("open", count(live.open));
  text("oldest", live.sessions.length ? "oldest " + time(live.sessions[0].age) : "none");
  unit("opened", rate(now.opened) + " /s");
  text("total", count(live.total) + " in all");
  unit("received", size(now.received) + "/s");
  text("received-all", size(live.received) + ", " + short(live.lines_in) + " lines");
  unit("sent", size(now.sent) + "/s");
  text("sent-all", size(live.sent) + ", " + short(live.lines_out) + " lines");
  const queued = live.backlogs.reduce((sum, one) => sum + one.waiting, 0);
  const drops = live.backlogs.reduce((sum, one) => sum + one.drops, 0);
  text("queued", live.backlogs.length ? count(queued) : "\\u2013");
  text("drops", live.backlogs.length ? count(drops) + " dropped" : "not told here");
  draw();
  fill("workers", live.workers.map(one =>
    [one.number + 1, one.pid, one.state, time(one.heartbeat), count(one.open)]));
  const restarts = live.restarts ? count(live.restarts) + " restarted after a death. " : "";
  text("workers-note", restarts + (live.accept_errors ? count(live.accept_errors) + " failed accepts." : ""));
  reasons("ended", live.ended, "None has ended yet.");
  reasons("rejected", live.rejected, "None.");
  fill("table", live.sessions.map(one => [one.peer, time(one.age), size(one.received), size(one.sent),
    one.lines_in < 1e5 ? count(one.lines_in) : short(one.lines_in), one.worker]), ["", "", "in", "out", "lines"]);
  $("table").parentNode.hidden = !live.sessions.length;
  const more = live.open - live.sessions.length;
  text("more", !live.open ? "No session is open." : more > 0 ? `The oldest; ${count(more)} more are open.` : "");
}

function state(words, kind) {
  text("state", words[0].toUpperCase() + words.slice(1));
  $("state").className = kind;
}

async function follow() {
  try {
    const answer = await fetch("live", {cache: "no-store", signal: AbortSignal.timeout(5000)});
    if (!answer.ok) throw answer.status;
    show(await answer.json());
    document.body.className = "";
  } catch (error) {
    state("no answer", "bad");
    document.body.className = "stale";
  }
  setTimeout(follow, EVERY);
}

for (const box of document.querySelectorAll(".plot")) {
  box.onpointermove = event => {
    const frame = box.getBoundingClientRect();
    box.dataset.at = Math.min(1, Math.max(0, (event.clientX - frame.left) / frame.width));
    draw();
  };
  box.onpointerleave = () => { delete box.dataset.at; draw(); };
}
follow();
"""

_BODY = """
<header><h1>stdserve</h1><span id="state" class="wait" role="status">Connecting</span><span id="about"></span></header>
<noscript><p>This page needs JavaScript. The same numbers: <a href="metrics">metrics</a>,
<a href="sessions">sessions</a>.</p></noscript>
<main>
<div id="tiles">
<section><h2>Open sessions</h2><p class="figure" id="open">&ndash;</p><p class="note" id="oldest">&nbsp;</p></section>
<section><h2>New sessions</h2><p class="figure" id="opened">&ndash;</p><p class="note" id="total">&nbsp;</p></section>
<section><h2>Received</h2><p class="figure" id="received">&ndash;</p>
<p class="note" id="received-all">&nbsp;</p></section>
<section><h2>Sent</h2><p class="figure" id="sent">&ndash;</p><p class="note" id="sent-all">&nbsp;</p></section>
<section><h2>In the backlog</h2><p class="figure" id="queued">&ndash;</p>
<p class="note" id="drops">&nbsp;</p></section>
</div>
<section class="half"><div class="head"><h2>Open sessions</h2>
<span class="key"><span class="one"><b id="load-open"></b></span> <span id="load-when"></span></span></div>
<div class="plot" id="load"><svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img"
aria-label="Open sessions in the last five minutes"></svg><i class="top"></i><i class="mid"></i></div>
<div class="axis"><span>5 min ago</span><span>now</span></div></section>
<section class="half"><div class="head"><h2>Lines per second</h2>
<span class="key"><span class="one"><b id="lines-in"></b> in</span><span class="two"><b id="lines-out"></b> out</span>
<span id="lines-when"></span></span></div>
<div class="plot" id="lines"><svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img"
aria-label="Lines in and out per second in the last five minutes"></svg><i class="top"></i><i class="mid"></i></div>
<div class="axis"><span>5 min ago</span><span>now</span></div></section>
<section class="full" id="sessions"><h2>Sessions</h2>
<table><thead><tr><th scope="col">Peer</th><th scope="col">Age</th><th scope="col">Received</th>
<th scope="col">Sent</th><th scope="col">Lines</th><th scope="col">Worker</th></tr></thead>
<tbody id="table"></tbody></table>
<p class="note" id="more"></p></section>
<section><h2>Workers</h2>
<table><thead><tr><th scope="col">No.</th><th scope="col">PID</th><th scope="col">State</th>
<th scope="col">Heartbeat</th><th scope="col">Open</th></tr></thead><tbody id="workers"></tbody></table>
<p class="note" id="workers-note"></p></section>
<section><h2>Why sessions ended</h2><table><tbody id="ended"></tbody></table>
<p class="note" id="ended-none"></p></section>
<section><h2>Rejected</h2><table><tbody id="rejected"></tbody></table><p class="note" id="rejected-none"></p></section>
</main>
<footer><a href="metrics">metrics</a><a href="sessions">sessions as JSON</a><a href="readyz">readiness</a></footer>
"""

# The empty icon keeps the browser from asking for /favicon.ico.
PAGE = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>stdserve</title><style>{STYLE}</style></head>
<body>{_BODY}<script>{SCRIPT}</script></body></html>
"""
