// The page of a dashboard. All that comes from the farm is put into it as text: no markup is ever built from it.
"use strict";

const PALETTE = ["#0072b2", "#e69f00", "#009e73", "#56b4e9", "#cc79a7", "#7f7f7f", "#b8a800", "#4b3f8f", "#7fbf5f", "#8c6239"];
const BAD = "#d03020"; // with a notch: never colour alone
const MAX_PIECES = 20000;
const $ = id => document.getElementById(id);
let ink = {};

const state = { doc: null, arrived: 0, pieces: [], history: [], heat: [], failures: 0, span: 20, end: null, row: -1 };

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["dim", "line", "accent", "ink", "idle"]) ink[name] = style.getPropertyValue("--" + name).trim();
}
readColours();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", readColours);

const colour = number => PALETTE[number % PALETTE.length];
const many = number => typeof number === "number" ? number.toLocaleString("en").replace(/,/g, "\u202f") : String(number);
const seconds = s => s < 1e-3 ? (s * 1e6).toFixed(0) + " µs" : s < 1 ? (s * 1e3).toPrecision(3) + " ms" : s < 120 ? s.toPrecision(3) + " s" : (s / 60).toFixed(0) + " min";
const short = v => v >= 1e6 ? v / 1e6 + "M" : v >= 1e3 ? v / 1e3 + "k" : String(v);
const now = () => state.doc.now + (performance.now() - state.arrived) / 1000;

function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function fit(canvas, height) {
  const ratio = devicePixelRatio || 1, width = canvas.clientWidth;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = height + "px";
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "11px system-ui";
  pen.textBaseline = "middle";
  return [pen, width];
}

// -- the timeline -----------------------------------------------------------------------------------------

const collator = new Intl.Collator("en", { numeric: true });

function layout() { // once for what is told, not for each frame
  const doc = state.doc, rows = doc.rows;
  if (doc.layout) return doc.layout;
  const order = [...rows.keys()].sort((a, b) => collator.compare(rows[a], rows[b])), place = [];
  order.forEach((row, index) => place[row] = index);
  const high = Math.max(2, Math.min(26, Math.floor(480 / Math.max(rows.length, 1))));
  return doc.layout = { order, place, high, left: high >= 11 ? 150 : 12, height: Math.max(40, rows.length * high) + 22 };
}

function ticks(pen, box, width, start, end, x) {
  const step = [.1, .2, .5, 1, 2, 5, 10, 20, 60, 120, 300].find(one => state.span / one <= 10) || 600;
  pen.strokeStyle = ink.line;
  pen.fillStyle = ink.dim;
  pen.textAlign = "center";
  for (let t = Math.ceil(start / step) * step; t <= end; t += step) {
    pen.beginPath();
    pen.moveTo(x(t), 0);
    pen.lineTo(x(t), box.height - 18);
    pen.stroke();
    pen.fillText(step < 1 ? t.toFixed(1) + " s" : Math.round(t) + " s", x(t), box.height - 8);
  }
  pen.textAlign = "left";
}

function drawStream() {
  const doc = state.doc, box = layout(), canvas = $("stream");
  const [pen, width] = fit(canvas, box.height);
  const end = state.end ?? now() - .6, start = end - state.span;
  const x = t => box.left + (t - start) / state.span * (width - box.left);
  state.view = { box, start, end, width };
  pen.fillStyle = ink.dim;
  if (box.left > 12) box.order.forEach((row, index) => {
    const name = doc.rows[row];
    pen.fillStyle = row === state.row ? ink.ink : ink.dim;
    pen.fillText((row === state.row ? "▸" : "") + (name.length > 22 ? "…" + name.slice(-21) : name), 0, index * box.high + box.high / 2);
  });
  ticks(pen, box, width, start, end, x);
  pen.save();
  pen.beginPath();
  pen.rect(box.left, 0, width - box.left, box.height - 18);
  pen.clip();
  if (doc.hot) drawHeat(pen, box, x, start, end);
  else drawPieces(pen, box, x, start, end, width);
  pen.restore();
  if (state.row >= 0) {
    pen.strokeStyle = ink.accent;
    pen.strokeRect(box.left, box.place[state.row] * box.high + .5, width - box.left - 1, box.high - 1);
  }
}

const layer = document.createElement("canvas"); // the pieces that have ended: they only move, and more are added
let painted = { next: 0 };
// As a pixel has them. Pixels are set one by one: a call for each of 20,000 pieces would take ten times as long.
const inks = [...PALETTE, BAD].map(hex => (0xff000000 | parseInt(hex.slice(5) + hex.slice(3, 5) + hex.slice(1, 3), 16)) >>> 0);

function box32(left, top, right, bottom, ink) {
  const { pixels, width } = painted;
  for (let y = top; y < bottom; y++) for (let i = y * width + left, last = y * width + right; i < last; i++) pixels[i] = ink;
}

function paintPieces(box, scale, high, gap, ratio) {
  const first = state.pieces.first ?? 0, { start, width, height } = painted, failed = [];
  const pixel = v => Math.max(0, Math.min(Math.round(v * ratio), width));
  const top = row => Math.round((box.place[row] * box.high + gap / 2) * ratio), tall = Math.max(Math.round(high * ratio), 1);
  let from = Math.max(painted.next - first, 0);
  if (from === state.pieces.length) return;
  for (; from < state.pieces.length; from++) {
    const piece = state.pieces[from];
    if (piece[2] < start) continue;
    const left = pixel((piece[1] - start) * scale), right = pixel((piece[2] - start) * scale), y = top(piece[0]);
    box32(left, y, Math.min(Math.max(right - (right - left > 3 ? 1 : 0), left + 1), width), Math.min(y + tall, height), inks[piece[3] % PALETTE.length]);
    if (piece[6]) failed.push([(piece[2] - start) * scale, y]);
  }
  for (const [right, y] of failed) {
    box32(pixel(right - 3), y, pixel(right), Math.min(y + tall, height), inks[PALETTE.length]);
    const middle = y + Math.round((high / 2 - 1.5) * ratio);
    if (box.high > 8) box32(pixel(right - 9), middle, pixel(right), middle + Math.round(3 * ratio), inks[PALETTE.length]);
  }
  painted.next = first + state.pieces.length;
  layer.getContext("2d").putImageData(painted.image, 0, 0);
}

function drawPieces(pen, box, x, start, end, width) {
  const doc = state.doc, scale = x(1) - x(0), ratio = devicePixelRatio || 1, gap = box.high > 4 ? 2 : 0, high = box.high - gap;
  const spare = state.span / 2; // seconds by which the layer is wider, as time goes on
  const key = [doc.started, doc.rows.length, state.span, width, ratio].join();
  if (painted.key !== key || start < painted.start || start > painted.start + spare) {
    layer.width = Math.max(Math.ceil((width - box.left + spare * scale) * ratio), 1);
    layer.height = Math.max(Math.ceil(box.order.length * box.high * ratio), 1);
    const image = layer.getContext("2d").createImageData(layer.width, layer.height), pixels = new Uint32Array(image.data.buffer);
    painted = { key, start, image, pixels, width: layer.width, height: layer.height, next: 0 };
  }
  paintPieces(box, scale, high, gap, ratio);
  const left = box.left - Math.round((start - painted.start) * scale * ratio) / ratio; // whole pixels stay sharp
  pen.drawImage(layer, left, 0, layer.width / ratio, layer.height / ratio);
  const until = Math.min(end, now());
  pen.globalAlpha = .45; // paler: not over yet
  for (const one of doc.running) {
    const from = Math.max(x(one[1]), box.left - 1);
    pen.fillStyle = colour(one[2]);
    pen.fillRect(from, box.place[one[0]] * box.high + gap / 2, Math.max(x(until) - from - .5, .7), high);
  }
  pen.globalAlpha = 1;
}

const heatmap = document.createElement("canvas");

function paintHeat(box) { // one pixel a worker and second: once for what is told, not for each frame
  const columns = state.heat, rows = state.doc.rows.length;
  heatmap.width = Math.max(columns.length, 1);
  heatmap.height = Math.max(rows, 1);
  const pen = heatmap.getContext("2d"), image = pen.createImageData(heatmap.width, heatmap.height);
  const pixels = new Uint32Array(image.data.buffer);
  const levels = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(level => level ? (Math.round(255 * (.1 + level / 10)) << 24 | 0xb27200) >>> 0 : 0);
  columns.forEach((column, i) => {
    for (let row = 0; row < column.length; row++) pixels[box.place[row] * heatmap.width + i] = levels[column.charCodeAt(row) - 48] || 0;
  });
  pen.putImageData(image, 0, 0);
}

function drawHeat(pen, box, x) {
  const times = state.history.slice(-state.heat.length);
  if (times.length < 2) return;
  if (state.painted !== state.doc) { paintHeat(box); state.painted = state.doc; }
  const from = x(times[0][0]), to = x(times[times.length - 1][0]), wide = (to - from) / (times.length - 1);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(heatmap, from - wide, 0, to - from + wide, box.order.length * box.high);
}

// -- curves -----------------------------------------------------------------------------------------------

function drawCurves(id, series) {
  const height = 110, [pen, width] = fit($(id), height), points = state.history, left = 44;
  if (points.length < 2) return;
  const end = points[points.length - 1][0], start = Math.max(end - 120, points[0][0]);
  const seen = points.filter(point => point[0] >= start);
  const scale = v => Math.log10(1 + v); // floods beside what is slow: else all but the floods would be flat
  const top = Math.max(1, ...seen.flatMap(point => series.map(one => scale(point[one.index]))));
  const x = t => left + (t - start) / Math.max(end - start, 1) * (width - left - 4);
  const y = v => height - 14 - scale(v) / top * (height - 26);
  for (const v of [0, 1, 10, 100, 1e3, 1e4, 1e5, 1e6].filter(v => scale(v) <= top * 1.02)) {
    pen.strokeStyle = ink.line;
    pen.beginPath();
    pen.moveTo(left, y(v));
    pen.lineTo(width, y(v));
    pen.stroke();
    pen.fillStyle = ink.dim;
    pen.textAlign = "right";
    pen.fillText(short(v), left - 6, y(v));
  }
  pen.textAlign = "left";
  series.forEach((one, number) => {
    pen.beginPath();
    seen.forEach((point, i) => i ? pen.lineTo(x(point[0]), y(point[one.index])) : pen.moveTo(x(point[0]), y(point[one.index])));
    pen.strokeStyle = one.colour;
    pen.lineWidth = 1.6;
    pen.setLineDash(number ? [5, 3] : []);
    pen.stroke();
    pen.setLineDash([]);
    pen.lineWidth = 1;
    if (one.name) {
      pen.fillStyle = ink.dim;
      pen.fillText((number ? "- - " : "— ") + one.name, left + 8 + number * 90, 6);
    }
  });
}

// -- figures and tables -----------------------------------------------------------------------------------

function cell(value, into) {
  if (typeof value === "number") { into.className = "n"; into.textContent = many(value); }
  else if (value === null || typeof value !== "object") { into.textContent = value; into.title = value; }
  else if ("bad" in value) { into.className = typeof value.bad === "number" ? "n bad" : "bad"; into.textContent = typeof value.bad === "number" ? "! " + many(value.bad) : value.bad; into.title = value.bad; }
  else if ("cells" in value) {
    const cells = element("span", undefined, "cells");
    for (const level of value.cells) cells.append(element("i", undefined, level > "0" ? "on" : ""));
    into.append(cells, `${many(value.busy)} of ${many(value.of)} busy`);
  } else if ("part" in value) {
    const bar = element("div", undefined, "part");
    bar.style.background = colour(value.colour);
    bar.style.width = (value.part * 100).toFixed(1) + "%";
    into.append(bar);
    into.title = (value.part * 100).toFixed(1) + " %";
  }
  return into;
}

const shown = new Map();

function drawTable({ 0: title, 1: columns, 2: rows }) {
  let table = shown.get(title);
  if (!table) {
    const card = element("section", undefined, "card"), wide = element("div", undefined, "wide");
    table = element("table");
    const head = table.createTHead().insertRow();
    columns.forEach(name => { const th = element("th", name); th.scope = "col"; head.append(th); });
    table.createTBody();
    wide.tabIndex = 0;
    wide.setAttribute("role", "region");
    wide.setAttribute("aria-label", title);
    wide.append(table);
    card.append(element("h2", title), wide);
    $("tables").append(card);
    shown.set(title, table);
  }
  table.tBodies[0].replaceChildren(...rows.map(row => {
    const line = element("tr");
    line.append(...row.map(value => cell(value, element("td"))));
    return line;
  }));
  const first = rows[0] || [];
  [...table.tHead.rows[0].cells].forEach((th, i) => th.className = typeof first[i] === "number" || (first[i] && typeof first[i].bad === "number") ? "n" : "");
}

function drawMaps(maps) {
  $("maps-card").hidden = !maps.length;
  $("maps").replaceChildren(...maps.map(one => {
    const line = element("div", undefined, "map"), bar = element("progress"), text = element("span");
    bar.setAttribute("aria-label", one.label);
    if (one.total !== null) { bar.max = Math.max(one.total, 1); bar.value = one.total ? one.done : 1; }
    text.textContent = `${many(one.done)} of ${one.total === null ? "?" : many(one.total)}`;
    if (one.failed) text.append(element("span", `, ${many(one.failed)} failed`, "bad"));
    line.append(element("span", one.label), bar, text);
    return line;
  }));
}

function drawFigures() {
  const doc = state.doc, last = state.history[state.history.length - 1];
  $("tiles").replaceChildren(...doc.tiles.map(([value, text, wrong]) => {
    const tile = element("div", undefined, "tile" + (wrong ? " bad" : ""));
    tile.append(element("b", (wrong ? "! " : "") + many(value)), element("span", text));
    return tile;
  }));
  drawMaps(doc.maps);
  doc.tables.forEach(drawTable);
  $("legend").replaceChildren(...doc.names.slice(0, 12).map((name, number) => {
    const entry = element("span"), swatch = element("i");
    swatch.style.background = colour(number);
    entry.append(swatch, name);
    return entry;
  }));
  $("where").textContent = [doc.title, doc.state, `${many(doc.rows.length)} workers`, "for " + seconds(doc.now)].filter(Boolean).join(" · ");
  drawCurves("rate", [{ index: 1, colour: ink.accent }]);
  drawCurves("queue", [{ index: 2, colour: "#e69f00", name: "waiting" }, { index: 3, colour: "#0072b2", name: "running" }]);
  if (last) {
    $("rate-now").textContent = `now ${many(Math.round(last[1]))} a second`;
    $("queue-now").textContent = `now ${many(last[2])} waiting, ${many(last[3])} running`;
  }
  if (state.row >= 0) describe();
}

function addFailures(told) {
  $("failures-card").hidden = told === null;
  if (!told || !told.new.length) return;
  const box = $("failures");
  if (!state.failures || told.first < state.failures) box.replaceChildren(); // a new connection tells all of them
  state.failures = told.first + told.new.length;
  for (const one of told.new) {
    const entry = element("details"), head = element("summary");
    head.append(new Date(one.at * 1000).toLocaleTimeString() + "  ", element("b", one.type), ` ${one.end} in ${one.function}: ${one.message}`);
    entry.append(head, scrolled(one.traceback, "Traceback"));
    if (one.output) entry.append(element("p", "The end of its output", "hint"), scrolled(one.output, "Output"));
    box.prepend(entry);
  }
  while (box.children.length > 100) box.lastChild.remove();
}

function scrolled(text, label) {
  const made = element("pre", text);
  made.tabIndex = 0;
  made.setAttribute("role", "region");
  made.setAttribute("aria-label", label);
  return made;
}

// -- what comes from the farm -----------------------------------------------------------------------------

function take(kept, told, most) {
  const from = kept.first ?? 0;
  if (told.first > from + kept.length) kept.length = 0; // what was between is gone
  kept.length = Math.max(Math.min(kept.length, told.first - from), 0);
  if (!kept.length) kept.first = told.first;
  for (const one of told.new) kept.push(one);
  const over = kept.length - most;
  if (over > 0) { kept.splice(0, over); kept.first += over; }
}

const source = new EventSource("events");
source.onmessage = event => {
  const doc = JSON.parse(event.data);
  if (state.doc && doc.started !== state.doc.started) {
    state.pieces = []; state.history = []; state.heat = []; state.failures = 0; state.row = -1;
    $("failures").replaceChildren(element("p", "none", "hint"));
  }
  state.doc = doc;
  state.arrived = performance.now();
  painted.next = Math.min(painted.next, doc.pieces.first); // the last ones may have grown
  take(state.pieces, doc.pieces, MAX_PIECES);
  take(state.history, doc.history, 600);
  take(state.heat, doc.heat, 600);
  addFailures(doc.failures);
  drawFigures();
  $("live").textContent = "live";
  $("live").className = "";
};
source.onerror = () => {
  $("live").textContent = state.doc ? "the program has ended, or cannot be reached" : "cannot connect: open the address that was printed";
  $("live").className = "off";
};

// -- frames, keys and the pointer -------------------------------------------------------------------------

const calm = matchMedia("(prefers-reduced-motion: reduce)");
let drawn = 0;
function frame(time) {
  if (state.doc && time - drawn > (calm.matches ? 900 : 50)) {
    drawn = time;
    const began = performance.now();
    drawStream();
    document.documentElement.dataset.frame = (performance.now() - began).toFixed(2);
  }
  requestAnimationFrame(frame);
}
requestAnimationFrame(frame);

function zoom(factor) { state.span = Math.min(600, Math.max(.05, state.span * factor)); }
function move(by) { if (state.doc) state.end = (state.end ?? now() - .6) + by; }

function describe() {
  const doc = state.doc, running = doc.running.find(one => one[0] === state.row);
  const ended = state.pieces.filter(piece => piece[0] === state.row).length;
  $("chosen").textContent = `${doc.rows[state.row]}: ${running ? `runs ${doc.names[running[2]]} for ${seconds(Math.max(now() - running[1], 0))}` : "idle"}${doc.hot ? "" : `, ${many(ended)} pieces before`}`;
}

const stream = $("stream");
stream.addEventListener("keydown", event => {
  if (!state.doc) return;
  const order = layout().order, at = order.indexOf(state.row);
  const keys = {
    ArrowLeft: () => move(-state.span / 10), ArrowRight: () => move(state.span / 10),
    "+": () => zoom(.8), "=": () => zoom(.8), "-": () => zoom(1.25), Home: () => { state.end = null; state.span = 20; },
    ArrowUp: () => { state.row = order[Math.max(at - 1, 0)] ?? -1; }, ArrowDown: () => { state.row = order[Math.min(at + 1, order.length - 1)] ?? -1; },
    Escape: () => { state.row = -1; $("chosen").textContent = ""; },
  };
  if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
  if (state.row >= 0) describe();
});
stream.addEventListener("wheel", event => { event.preventDefault(); zoom(event.deltaY > 0 ? 1.25 : .8); }, { passive: false });
stream.addEventListener("dblclick", () => { state.end = null; state.span = 20; });
let dragged = null;
stream.addEventListener("pointerdown", event => {
  if (!state.doc) return;
  dragged = [event.clientX, state.end ?? now() - .6, state.end];
  stream.setPointerCapture(event.pointerId);
});
stream.addEventListener("pointerup", () => dragged = null);
stream.addEventListener("pointerleave", () => $("tip").hidden = true);
stream.addEventListener("pointermove", event => {
  if (!state.view) return;
  const { box, start, width } = state.view, bounds = stream.getBoundingClientRect();
  if (dragged) {
    const by = (event.clientX - dragged[0]) / (width - box.left) * state.span;
    if (Math.abs(event.clientX - dragged[0]) > 3) state.end = dragged[1] - by;
    return;
  }
  const t = start + (event.clientX - bounds.left - box.left) / (width - box.left) * state.span;
  const row = box.order[Math.floor((event.clientY - bounds.top) / box.high)];
  const doc = state.doc, tip = $("tip");
  const piece = state.pieces.findLast(one => one[0] === row && one[1] <= t && one[2] >= t);
  const running = doc.running.find(one => one[0] === row && one[1] <= t);
  tip.hidden = row === undefined || event.clientX - bounds.left < box.left || !(piece || running || doc.hot);
  if (tip.hidden) return;
  tip.textContent = piece ? `${doc.names[piece[3]]} · ${piece[4] > 1 ? `${many(piece[4])} calls, ${seconds(piece[5] / piece[4])} each` : seconds(piece[5])} · ${doc.rows[row]}`
    : running ? `${doc.names[running[2]]} · runs for ${seconds(now() - running[1])} · ${doc.rows[row]}` : doc.rows[row];
  tip.style.left = Math.max(0, Math.min(event.clientX - bounds.left + 12, bounds.width - tip.offsetWidth)) + "px";
  tip.style.top = (stream.offsetTop + event.clientY - bounds.top + 16) + "px";
});
