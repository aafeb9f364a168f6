"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const files = JSON.parse(document.getElementById("csv").textContent);
const runs = data.runs;
const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes = {}, parent = null, text = null) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
}
function html(name, attributes = {}, parent = null, text = null) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
}
const colour = i => `var(--run${i % 8})`;
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];

function mark(parent, i, x, y, r = 5) {
  const shape = data.markers[i % data.markers.length];
  const style = { style: `fill:${colour(i)};stroke:var(--paper);stroke-width:1`, transform: `translate(${x} ${y})` };
  if (shape === "circle") return svg("circle", { ...style, r }, parent);
  const paths = {
    square: `M${-r} ${-r}H${r}V${r}H${-r}Z`,
    triangle: `M0 ${-1.2 * r}L${1.15 * r} ${0.9 * r}H${-1.15 * r}Z`,
    diamond: `M0 ${-1.3 * r}L${1.3 * r} 0L0 ${1.3 * r}L${-1.3 * r} 0Z`,
    cross: `M${-r} ${-r * 0.5}L${-r * 0.5} ${-r}L0 ${-r * 0.5}L${r * 0.5} ${-r}L${r} ${-r * 0.5}L${r * 0.5} 0L${r} ${r * 0.5}L${r * 0.5} ${r}L0 ${r * 0.5}L${-r * 0.5} ${r}L${-r} ${r * 0.5}L${-r * 0.5} 0Z`,
  };
  return svg("path", { ...style, d: paths[shape] }, parent);
}

// A tip follows the pointer, a tap or the focus.
const tip = html("div", { id: "tip", role: "status" }, document.body);
function tell(node, text) {
  node.setAttribute("tabindex", "0");
  node.setAttribute("aria-label", text.replaceAll("\n", ", "));
  const show = event => {
    const box = node.getBoundingClientRect();
    const x = event.clientX || box.x + box.width / 2, y = event.clientY || box.y;
    tip.textContent = text;
    tip.style.display = "block";
    tip.style.left = Math.max(4, Math.min(x + 12, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = Math.max(4, y - tip.offsetHeight - 10) + "px";
  };
  const hide = () => { tip.style.display = "none"; };
  node.addEventListener("pointermove", show);
  node.addEventListener("pointerleave", hide);
  node.addEventListener("focus", show);
  node.addEventListener("blur", hide);
}

const shown = v => v === null ? "–" : Math.abs(v) >= 100 ? v.toFixed(0) : Math.abs(v) >= 10 ? v.toFixed(1) : v.toFixed(2);
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= raw) || raw;
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) found.push(Number(v.toPrecision(10)));
  return found;
}
const tickText = v => v === 0 ? "0" : Math.abs(v) >= 1e4 ? `${v / 1e3}k` : String(Number(v.toPrecision(6)));
function extent(values, pad) {
  let low = Math.min(...values), high = Math.max(...values);
  if (low === high) { low -= Math.abs(low) * 0.1 || 1; high += Math.abs(high) * 0.1 || 1; }
  const room = (high - low) * pad;
  return [low - room, high + room];
}

// Axes of a plot: returns the two scales and the group to draw in.
function axes(holder, { x, y, height = 300, xLabel, yLabel, left = 56 }) {
  holder.textContent = "";
  const width = Math.max(240, holder.clientWidth), bottom = 40, top = 10, right = 14;
  const root = svg("svg", { class: "plot", width, height, viewBox: `0 0 ${width} ${height}`, role: "group" }, holder);
  const px = v => left + (v - x[0]) / (x[1] - x[0]) * (width - left - right);
  const py = v => height - bottom - (v - y[0]) / (y[1] - y[0]) * (height - bottom - top);
  for (const v of ticks(y[0], y[1], 5)) {
    svg("line", { class: "grid", x1: left, x2: width - right, y1: py(v), y2: py(v) }, root);
    svg("text", { x: left - 6, y: py(v) + 4, "text-anchor": "end" }, root, tickText(v));
  }
  for (const v of ticks(x[0], x[1], width < 420 ? 4 : 6)) {
    svg("line", { class: "axis", x1: px(v), x2: px(v), y1: height - bottom, y2: height - bottom + 4 }, root);
    svg("text", { x: px(v), y: height - bottom + 17, "text-anchor": "middle" }, root, tickText(v));
  }
  svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }, root);
  svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, root, xLabel);
  if (yLabel) svg("text", { x: 12, y: (top + height - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(top + height - bottom) / 2})` }, root, yLabel);
  return { root, px, py, width, height, left, right, top, bottom };
}

// Names beside points, where they cover neither a point nor another name.
function names(plot, points) {
  const taken = points.map(p => [p.x - 8, p.y - 8, p.x + 8, p.y + 8]);
  const hits = (a, b) => Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  for (const p of points) {
    const probe = svg("text", { class: "name" }, plot.root, p.text);
    const w = probe.getComputedTextLength ? probe.getComputedTextLength() : 7 * p.text.length;
    let best = null;
    for (const [dx, dy, anchor] of [[10, 4, 0], [-10, 4, 1], [0, -12, 0.5], [0, 22, 0.5], [10, -10, 0], [-10, -10, 1], [10, 18, 0], [-10, 18, 1], [0, -28, 0.5], [0, 38, 0.5]]) {
      const x0 = p.x + dx - w * anchor, box = [x0, p.y + dy - 11, x0 + w, p.y + dy + 3];
      const outside = Math.max(0, plot.left - box[0]) + Math.max(0, box[2] - plot.width) + Math.max(0, plot.top - 8 - box[1]) + Math.max(0, box[3] - plot.height + plot.bottom);
      const cost = taken.reduce((sum, other) => sum + hits(box, other), 0) + 40 * outside;
      if (best === null || cost < best.cost) best = { cost, x0, y: p.y + dy, box };
      if (cost === 0) break;
    }
    probe.setAttribute("x", best.x0);
    probe.setAttribute("y", best.y);
    taken.push(best.box);
  }
}

function pareto(holder, values, label) {
  const some = runs.map((run, i) => ({ run, i, cost: values[i] })).filter(p => p.cost !== null && p.run.score !== null);
  const low = some.map(p => p.run.score - (p.run.std || 0)), high = some.map(p => p.run.score + (p.run.std || 0));
  const plot = axes(holder, { x: extent(some.map(p => p.cost), 0.18), y: extent([...low, ...high], 0.14), xLabel: label, yLabel: `${data.score}, %` });
  const front = [];
  for (const p of [...some].sort((a, b) => a.cost - b.cost || b.run.score - a.run.score)) {
    if (!front.length || p.run.score > front[front.length - 1].run.score) front.push(p);
  }
  let path = "";
  front.forEach((p, k) => { path += k ? `H${plot.px(p.cost)}V${plot.py(p.run.score)}` : `M${plot.px(p.cost)} ${plot.py(p.run.score)}`; });
  if (front.length) svg("path", { class: "front", d: path + `H${plot.width - plot.right}` }, plot.root);
  const placed = some.map(p => ({ x: plot.px(p.cost), y: plot.py(p.run.score), text: p.run.name }));
  some.forEach((p, k) => {
    const { x, y } = placed[k];
    if (p.run.std) svg("path", { d: `M${x} ${plot.py(p.run.score - p.run.std)}V${plot.py(p.run.score + p.run.std)}`, style: `stroke:${colour(p.i)};stroke-width:1.5` }, plot.root);
    tell(mark(plot.root, p.i, x, y), `${p.run.name}\n${data.score} ${shown(p.run.score)}${p.run.std ? ` ± ${shown(p.run.std)}` : ""}\n${label}: ${shown(p.cost)}`);
  });
  names(plot, placed);
}

function curves(holder, key, label) {
  const all = runs.flatMap(run => run[key].flat());
  const y = extent(all.map(p => p[1]), 0.06);
  const plot = axes(holder, { x: [Math.min(0, ...all.map(p => p[0])), Math.max(...all.map(p => p[0]))], y: [key === "curves" ? Math.max(0, y[0]) : y[0], y[1]], xLabel: "optimiser steps", yLabel: label });
  runs.forEach((run, i) => run[key].forEach((curve, seed) => {
    if (!curve.length) return;
    const d = "M" + curve.map(p => `${plot.px(p[0]).toFixed(1)} ${plot.py(p[1]).toFixed(1)}`).join("L");
    svg("path", { class: "curve", d, style: `stroke:${colour(i)};stroke-dasharray:${DASHES[i % 4]};opacity:${seed ? 0.55 : 1}` }, plot.root);
    const last = curve[curve.length - 1];
    tell(mark(plot.root, i, plot.px(last[0]), plot.py(last[1]), 4), `${run.name}${run[key].length > 1 ? `, seed ${seed + 1} of ${run[key].length}` : ""}\nstep ${last[0]}: ${shown(last[1])}`);
  }));
}

function forest(holder) {
  const some = runs.map((run, i) => ({ run, i })).filter(p => p.run.difference);
  const left = Math.min(300, 16 + 6.8 * Math.max(...some.map(p => p.run.name.length)));
  const narrow = holder.clientWidth < 480, row = narrow ? 46 : 34;
  const plot = axes(holder, { x: extent([0, ...some.flatMap(p => p.run.difference)], 0.08), y: [0, 1], height: 54 + row * some.length, xLabel: `${data.score}, points`, left: narrow ? 14 : left });
  plot.root.querySelectorAll(".grid, text[text-anchor=end]").forEach(node => node.remove());
  svg("line", { class: "axis", x1: plot.px(0), x2: plot.px(0), y1: 4, y2: plot.height - plot.bottom }, plot.root);
  some.forEach((p, k) => {
    const [mid, low, high] = p.run.difference, y = 16 + row * k + (narrow ? 14 : 0);
    svg("path", { d: `M${plot.px(low)} ${y}H${plot.px(high)}M${plot.px(low)} ${y - 5}v10M${plot.px(high)} ${y - 5}v10`, style: `stroke:${colour(p.i)};stroke-width:2` }, plot.root);
    tell(mark(plot.root, p.i, plot.px(mid), y), `${p.run.name}\n${mid.toFixed(2)}, from ${low.toFixed(2)} to ${high.toFixed(2)}`);
    svg("text", { class: "name", x: narrow ? 14 : plot.left - 10, y: narrow ? y - 12 : y + 4, "text-anchor": narrow ? "start" : "end" }, plot.root, p.run.name);
  });
}

const FEW = 24;
let everyClass = false;
function heat() {
  const table = document.getElementById("heat");
  if (!table) return;
  const order = document.getElementById("heat-order").value, mode = (document.getElementById("heat-mode") || { value: "iou" }).value;
  const rows = data.classes.map((name, k) => {
    const values = runs.map(run => run.perClass[k]), known = values.filter(v => v !== null);
    const gains = values.slice(1).filter(v => v !== null && values[0] !== null).map(v => v - values[0]);
    return { name, k, values, spread: known.length ? Math.max(...known) - Math.min(...known) : -1, gain: gains.length ? Math.max(...gains) : -1e9 };
  });
  if (order !== "data") rows.sort((a, b) => b[order] - a[order]);
  const differences = rows.flatMap(r => r.values.map(v => v === null || r.values[0] === null ? 0 : Math.abs(v - r.values[0])));
  const most = mode === "iou" ? Math.max(1, ...rows.flatMap(r => r.values.map(v => v || 0))) : Math.max(1, ...differences);
  table.textContent = "";
  const head = html("tr", {}, html("thead", {}, table));
  html("th", { scope: "col" }, head, "class");
  runs.forEach(run => html("th", { scope: "col" }, head, run.name));
  const body = html("tbody", {}, table);
  for (const row of everyClass ? rows : rows.slice(0, FEW)) {
    const line = html("tr", {}, body), first = html("th", { scope: "row", title: row.name }, line, row.name);
    if (data.shares) html("span", { class: "share" }, first, `  ${(100 * data.shares[row.k]).toPrecision(2)} %`);
    row.values.forEach((value, i) => {
      const change = value === null || row.values[0] === null ? null : value - row.values[0];
      const relative = mode === "difference" && i > 0, v = relative ? change : value;
      const cell = html("td", {}, line, v === null ? "–" : relative ? (v > 0 ? "+" : "") + v.toFixed(1) : v.toFixed(1));
      if (v === null || (mode === "difference" && !relative)) return;
      const tone = relative ? (v > 0 ? "--gain" : "--loss") : "--heat";
      cell.style.background = `color-mix(in srgb, var(${tone}) calc(var(--heat-most) * ${(Math.abs(v) / most).toFixed(3)}), var(--paper))`;
    });
  }
  const more = document.getElementById("heat-more");
  more.hidden = rows.length <= FEW;
  more.textContent = everyClass ? "Fewer classes" : `All ${rows.length} classes`;
}

function figure(parent, caption) {
  const node = html("figure", {}, parent);
  html("figcaption", {}, node, caption);
  return html("div", {}, node);
}
function legend(parent) {
  const list = html("ul", { class: "legend" }, parent);
  runs.forEach((run, i) => {
    const item = html("li", {}, list), line = svg("svg", { width: 30, height: 14, viewBox: "-15 -7 30 14", "aria-hidden": "true" }, item);
    svg("path", { d: "M-15 0H15", style: `stroke:${colour(i)};stroke-width:2;stroke-dasharray:${DASHES[i % 4]}` }, line);
    mark(line, i, 0, 0, 4);
    html("span", {}, item, run.name);
  });
}

const drawings = [];
const costs = [[`Parameters`, "parameters, M", runs.map(r => r.params)], [`Multiply-accumulates at ${data.size}`, "GMACs", runs.map(r => r.macs)]];
data.settings.forEach((setting, k) => costs.push([`Latency on ${setting}`, "p50, ms", runs.map(r => r.latency[k])]));
for (const [caption, label, values] of costs) {
  if (values.filter(v => v !== null).length < 1) continue;
  const holder = figure(document.getElementById("pareto"), caption);
  drawings.push(() => pareto(holder, values, label));
}
const learning = document.getElementById("learning");
legend(learning);
for (const [key, caption, label] of [["curves", `Validation ${data.score}`, `${data.score}, %`], ["losses", "Training loss", "loss"]]) {
  if (!runs.some(run => run[key].some(curve => curve.length))) continue;
  const holder = figure(learning, caption);
  drawings.push(() => curves(holder, key, label));
}
if (document.getElementById("forest") && runs.some(run => run.difference)) drawings.push(() => forest(document.getElementById("forest")));
document.querySelectorAll("svg[data-mark]").forEach(node => mark(node, Number(node.dataset.mark), 0, 0, 5));

let width = 0;
function drawAll() {
  if (innerWidth === width) return;
  width = innerWidth;
  drawings.forEach(draw => draw());
}
drawAll();
heat();
addEventListener("resize", drawAll);
for (const id of ["heat-order", "heat-mode"]) {
  const select = document.getElementById(id);
  if (select) select.addEventListener("change", heat);
}
const more = document.getElementById("heat-more");
if (more) more.addEventListener("click", () => { everyClass = !everyClass; heat(); });

document.querySelectorAll("[data-csv]").forEach(button => button.addEventListener("click", () => {
  const link = html("a", { download: button.dataset.csv, href: URL.createObjectURL(new Blob([files[button.dataset.csv]], { type: "text/csv" })) });
  link.click();
}));
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

document.querySelectorAll("table.sortable").forEach(table => {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = html("button", { type: "button" });
    button.append(...head.childNodes);
    head.appendChild(button);
    head.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending" || (column === 0 && !head.hasAttribute("aria-sort"));
      heads.forEach(h => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => column === 0 ? row.cells[0].textContent.trim() : row.cells[column].dataset.value;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (column === 0) return x.localeCompare(y) * (up ? 1 : -1);
        if (x === "" || y === "") return (x === "") - (y === "");
        return (Number(x) - Number(y)) * (up ? 1 : -1);
      });
      table.tBodies[0].append(...rows);
    });
  });
});
