// Small charts on a canvas: lines and bands, bars, heat maps; axes with units, a tooltip, both themes.
// Plain functions without imports; monitor.js and tuner.js follow this text in their modules.

const COLOURS = {
  blue: ["#0072B2", "#56B4E9"], // Okabe–Ito; the second is for dark paper
  orange: ["#D98E00", "#E69F00"],
  green: ["#009E73", "#1FC79A"],
  vermillion: ["#D55E00", "#F0763A"],
  purple: ["#B8619B", "#DE9CC2"],
  sky: ["#3A9BD9", "#56B4E9"],
  grey: ["#8A8F98", "#8A8F98"],
};

/** Create an element: tag.class.class, attributes, children. */
function make(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const node = document.createElement(name);
  node.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** Keep the notebook's one-key commands (x cuts a cell) away from a widget; Ctrl+S and its like get through. */
function keepKeys(root) {
  root.addEventListener("keydown", (e) => {
    if (!e.ctrlKey && !e.metaKey) e.stopPropagation();
  });
}

/** The colours of the page the widget stands on; dark is told from the paper itself. */
function themeOf(root) {
  const style = getComputedStyle(root);
  const probe = make("span");
  probe.style.cssText = "display:none;color:var(--i-paper)";
  root.append(probe);
  const rgb = (getComputedStyle(probe).color.match(/[\d.]+/g) || [255, 255, 255]).map(Number);
  probe.remove();
  const dark = 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2] < 110;
  const theme = { dark, font: style.fontFamily };
  for (const name of ["ink", "soft", "line", "paper", "card"]) {
    theme[name] = style.getPropertyValue("--i-" + name).trim();
  }
  for (const [name, pair] of Object.entries(COLOURS)) theme[name] = pair[dark ? 1 : 0];
  return theme;
}

/** Call `change` whenever the page's theme may have changed; returns a function that stops it. */
function watchTheme(change) {
  const observer = new MutationObserver(change);
  const what = { attributes: true, attributeFilter: ["class", "data-jp-theme-light", "data-jp-theme-name", "data-vscode-theme-kind"] };
  for (const node of [document.documentElement, document.body]) observer.observe(node, what);
  const media = matchMedia("(prefers-color-scheme: dark)");
  media.addEventListener("change", change);
  return () => {
    observer.disconnect();
    media.removeEventListener("change", change);
  };
}

// ------------------------------------------------------------------------------------ numbers

function short(v) {
  if (v === null || v === undefined || Number.isNaN(v)) return "–";
  const a = Math.abs(v);
  if (a === 0) return "0";
  if (a >= 1e9) return +(v / 1e9).toPrecision(3) + "G";
  if (a >= 1e6) return +(v / 1e6).toPrecision(3) + "M";
  if (a >= 1e4) return +(v / 1e3).toPrecision(3) + "k";
  if (a >= 1e3) return whole(v);
  if (a >= 1e-3) return String(+v.toPrecision(3));
  return v.toExponential(1).replace("e-", "e−");
}

function whole(v) {
  return v === null || v === undefined ? "–" : Math.round(v).toLocaleString("en-US");
}

function clock(s) {
  if (s === null || s === undefined || !Number.isFinite(s)) return "–";
  if (s < 10) return s.toFixed(1) + " s";
  if (s < 120) return Math.round(s) + " s";
  if (s < 7200) return Math.floor(s / 60) + " min " + Math.round(s % 60) + " s";
  return (s / 3600).toFixed(1) + " h";
}

/** A duration, however short. */
function span(s) {
  if (s === null || s === undefined || !Number.isFinite(s)) return "–";
  if (s >= 1) return clock(s);
  return s >= 1e-3 ? +(1e3 * s).toPrecision(3) + " ms" : Math.round(1e6 * s) + " µs";
}

function bytes(n) {
  if (!n) return "–";
  return n >= 2 ** 30 ? (n / 2 ** 30).toFixed(2) + " GiB" : Math.round(n / 2 ** 20) + " MiB";
}

const SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹";
function power(k) {
  const digits = [...String(Math.abs(k))].map((d) => SUPERSCRIPT[d]).join("");
  return "10" + (k < 0 ? "⁻" : "") + digits;
}

// ------------------------------------------------------------------------------------- scales

/** Ticks of a linear axis: about `n` round numbers. */
function niceTicks(lo, hi, n) {
  const raw = (hi - lo) / Math.max(n, 1);
  const base = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * base).find((s) => s >= raw * 0.999);
  const out = [];
  for (let k = Math.ceil(lo / step - 1e-9); k * step <= hi + step * 1e-9; k++) out.push(k * step);
  return out;
}

/** A scale {f: value → 0…1, ticks: [[value, label]]} of kind linear, log, tight (log) or count (0, then log). */
function scale(kind, lo, hi, n) {
  if (kind === "tight") {
    const [a, b] = [Math.log10(lo), Math.log10(hi > lo ? hi : lo * 10)];
    const ticks = [];
    for (let k = Math.floor(a); k <= b; k++) {
      for (const m of b - a < 2.5 ? [1, 2, 5] : [1]) {
        const v = m * 10 ** k;
        if (v >= lo * 0.999 && v <= hi * 1.001) ticks.push([v, short(v)]);
      }
    }
    return { f: (v) => (v > 0 ? (Math.log10(v) - a) / (b - a) : 0), ticks };
  }
  if (kind === "log") {
    let a = Math.floor(Math.log10(lo) + 1e-9);
    let b = Math.ceil(Math.log10(hi) - 1e-9);
    if (b <= a) b = a + 1;
    const every = Math.ceil((b - a) / Math.max(n, 2));
    const ticks = [];
    for (let k = a; k <= b; k++) if ((k - a) % every === 0) ticks.push([10 ** k, power(k)]);
    return { f: (v) => (v > 0 ? (Math.log10(v) - a) / (b - a) : 0), ticks };
  }
  if (kind === "count") {
    const b = Math.max(Math.ceil(Math.log10(Math.max(hi, 1)) - 1e-9), 1);
    const g = (v) => (v <= 0 ? 0 : v < 1 ? 0.5 * v : 0.5 + Math.log10(v)); // half a decade below one
    const every = Math.ceil(b / Math.max(n - 1, 2));
    const ticks = [[0, "0"]];
    for (let k = 0; k <= b; k += every) ticks.push([10 ** k, k < 4 ? whole(10 ** k) : power(k)]);
    return { f: (v) => g(v) / (b + 0.5), ticks };
  }
  if (!(hi > lo)) hi = lo + (Math.abs(lo) || 1);
  const ticks = niceTicks(lo, hi, n).map((v) => [v, short(v)]);
  return { f: (v) => (v - lo) / (hi - lo), ticks };
}

function extent(arrays, positive) {
  let lo = Infinity;
  let hi = -Infinity;
  for (const values of arrays) {
    for (const v of values) {
      if (!Number.isFinite(v) || (positive && v <= 0)) continue;
      if (v < lo) lo = v;
      if (v > hi) hi = v;
    }
  }
  return lo <= hi ? [lo, hi] : null;
}

// ------------------------------------------------------------------------------------- charts

/** A panel: title, legend, canvas, tooltip. `panel.draw(theme, spec)` draws lines, bands and bars. */
function chart(title, label) {
  const canvas = make("canvas", { role: "img", "aria-label": label });
  const legend = make("div.i-legend");
  const tip = make("div.i-tip");
  const stage = make("div.i-stage", {}, canvas, tip);
  const node = make("section.i-panel", {}, make("header", {}, make("h4", {}, title), legend), stage);
  let last = null;
  let at = null; // the pointer, in CSS pixels

  const redraw = () => last && paint(canvas, tip, at, ...last);
  stage.addEventListener("pointermove", (e) => {
    const box = canvas.getBoundingClientRect();
    at = [e.clientX - box.left, e.clientY - box.top];
    redraw();
  });
  stage.addEventListener("pointerleave", () => {
    at = null;
    redraw();
  });

  const observer = new ResizeObserver(redraw);
  observer.observe(stage);
  return {
    node,
    stop: () => observer.disconnect(),
    draw(theme, spec) {
      last = [theme, spec];
      const items = (spec.legend || []).map(([name, colour, kind]) => {
        const key = make("i." + (kind || "line"));
        key.style.setProperty("--c", colour);
        return make("span", {}, key, name);
      });
      legend.replaceChildren(...items);
      if (spec.says) canvas.setAttribute("aria-label", spec.says);
      redraw();
    },
  };
}

const PAD = { left: 52, right: 10, top: 8, bottom: 32 };

function paint(canvas, tip, at, theme, spec) {
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (!width || !height) return;
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const c = canvas.getContext("2d");
  c.setTransform(ratio, 0, 0, ratio, 0, 0);
  c.clearRect(0, 0, width, height);
  c.font = "10px " + theme.font;
  const box = { x: PAD.left, y: PAD.top, w: width - PAD.left - PAD.right, h: height - PAD.top - PAD.bottom };
  tip.hidden = true;
  if (spec.heat) return paintHeat(c, tip, at, theme, spec, box, width);

  const lines = spec.lines || [];
  const bands = spec.bands || [];
  const bars = spec.bars || [];
  const marks = spec.marks || [];
  const ys = [marks.flatMap((m) => [m.lo, m.hi]), ...lines.map((l) => l.y), ...bands.flatMap((b) => [b.lo, b.hi]), ...bars.map((b) => [b.y]), (spec.levels || []).map((l) => l.y)];
  const range = spec.yrange || extent(ys, spec.y === "log");
  const xs = spec.xrange || extent(lines.map((l) => l.x).concat(bands.map((b) => b.x)), spec.xkind === "tight");
  if (!range || !xs) {
    c.fillStyle = theme.soft;
    c.textAlign = "center";
    c.fillText(spec.empty || "nothing yet", box.x + box.w / 2, box.y + box.h / 2);
    axisLabels(c, theme, spec, box, height);
    return;
  }
  const top = spec.y === "log" || spec.y === "count" || spec.yrange ? range[1] : range[1] + 0.08 * (range[1] - Math.min(range[0], 0) || 1);
  const Y = scale(spec.y || "linear", spec.zero ? 0 : range[0], top, Math.max(2, Math.floor(box.h / 26)));
  const X = scale(spec.xkind || "linear", xs[0], xs[1], Math.max(2, Math.floor(box.w / 45)));
  const px = (v) => box.x + X.f(v) * box.w;
  const py = (v) => box.y + (1 - Math.min(Math.max(Y.f(v), 0), 1)) * box.h;

  for (const [from, to] of spec.stripes || []) {
    c.fillStyle = theme.line;
    c.globalAlpha = 0.28;
    c.fillRect(px(from), box.y, px(to) - px(from), box.h);
    c.globalAlpha = 1;
  }
  c.lineWidth = 1;
  c.textBaseline = "middle";
  c.textAlign = "right";
  for (const [v, text] of Y.ticks) {
    const y = Math.round(py(v)) + 0.5;
    c.strokeStyle = theme.line;
    c.globalAlpha = 0.7;
    c.beginPath();
    c.moveTo(box.x, y);
    c.lineTo(box.x + box.w, y);
    c.stroke();
    c.globalAlpha = 1;
    c.fillStyle = theme.soft;
    c.fillText(text, box.x - 6, y);
  }
  c.textAlign = "center";
  c.textBaseline = "top";
  for (const [v, text] of X.ticks) {
    if (spec.wholeX && !Number.isInteger(v)) continue;
    c.fillText(text, Math.min(px(v), width - 12), box.y + box.h + 5);
  }
  axisLabels(c, theme, spec, box, height);

  c.save();
  c.beginPath();
  c.rect(box.x, box.y - 1, box.w + 1, box.h + 2);
  c.clip();
  for (const b of bars) {
    const x0 = px(b.x0);
    const w = Math.max(px(b.x1) - x0 - (px(b.x1) - x0 > 3 ? 1 : 0), 1);
    c.globalAlpha = b.alpha || 1;
    c.fillStyle = b.colour;
    if (b.foot) {
      c.fillRect(x0, box.y + box.h - 4, w, 4);
      continue;
    }
    const y = py(b.y);
    c.beginPath();
    c.roundRect(x0, y, w, Math.max(box.y + box.h - y, 1), [Math.min(2, w / 2), Math.min(2, w / 2), 0, 0]);
    c.fill();
    c.globalAlpha = 1;
  }
  for (const b of bands) {
    c.globalAlpha = b.alpha;
    c.fillStyle = b.colour;
    c.beginPath();
    const known = [...b.x.keys()].filter((i) => Number.isFinite(b.lo[i]) && Number.isFinite(b.hi[i]));
    known.forEach((i, k) => c[k ? "lineTo" : "moveTo"](px(b.x[i]), py(b.hi[i])));
    known.reverse().forEach((i) => c.lineTo(px(b.x[i]), py(b.lo[i])));
    c.fill();
    c.globalAlpha = 1;
  }
  for (const m of spec.marks || []) {
    const x = px(m.x);
    c.strokeStyle = c.fillStyle = m.colour;
    c.globalAlpha = 0.5;
    c.lineWidth = Math.min(Math.max((0.6 * box.w) / spec.marks.length, 1), 5);
    c.beginPath();
    c.moveTo(x, py(m.lo));
    c.lineTo(x, py(m.hi));
    c.stroke();
    c.globalAlpha = 1;
    c.beginPath();
    c.arc(x, py(m.y), 2, 0, 7);
    c.fill();
  }
  c.lineWidth = 1;
  for (const level of spec.levels || []) {
    c.strokeStyle = level.colour || theme.soft;
    c.setLineDash([3, 3]);
    c.beginPath();
    c.moveTo(box.x, py(level.y));
    c.lineTo(box.x + box.w, py(level.y));
    c.stroke();
    c.setLineDash([]);
  }
  c.lineJoin = "round";
  for (let l of lines) {
    c.strokeStyle = l.colour;
    c.lineWidth = l.width || 1.6;
    c.globalAlpha = l.alpha || 1;
    const path = new Path2D();
    let first = null; // first and last drawn point, in pixels
    let end = null;
    for (let i = 0; i < l.x.length; i++) {
      if (!Number.isFinite(l.y[i]) || (spec.y === "log" && l.y[i] <= 0)) continue;
      const [x, y] = [px(l.x[i]), py(l.y[i])];
      if (end && l.step) path.lineTo(x, end[1]);
      path[end ? "lineTo" : "moveTo"](x, y);
      first = first || [x, y];
      end = [x, y];
    }
    c.stroke(path);
    if (end && end[0] === first[0]) l = { ...l, points: true }; // one number alone is no line
    if (l.area && end) {
      path.lineTo(end[0], box.y + box.h);
      path.lineTo(first[0], box.y + box.h);
      c.fillStyle = l.colour;
      c.globalAlpha = 0.12;
      c.fill(path);
    }
    c.globalAlpha = 1;
    if (l.points) {
      // Numbers that come rarely: without dots, one alone would be invisible.
      c.fillStyle = l.colour;
      for (let i = 0; i < l.x.length; i++) {
        if (!Number.isFinite(l.y[i]) || (spec.y === "log" && l.y[i] <= 0)) continue;
        c.beginPath();
        c.arc(px(l.x[i]), py(l.y[i]), 2, 0, 7);
        c.fill();
      }
    }
    if (l.dot && end) {
      c.fillStyle = l.colour;
      c.beginPath();
      c.arc(end[0], end[1], 2.6, 0, 7);
      c.fill();
    }
  }
  // Last, on a halo of paper: a label reads wherever its level lies, at the top below it.
  c.lineWidth = 3;
  c.strokeStyle = theme.paper;
  for (const level of spec.levels || []) {
    const y = py(level.y);
    const below = y - 14 < box.y;
    c.textBaseline = below ? "top" : "bottom";
    c.fillStyle = level.colour || theme.soft;
    c.textAlign = level.left ? "left" : "right";
    const where = [level.left ? box.x + 4 : box.x + box.w - 2, y + (below ? 4 : -2)];
    c.strokeText(level.label, ...where);
    c.fillText(level.label, ...where);
  }
  c.restore();

  if (at && spec.tip && at[0] >= box.x && at[0] <= box.x + box.w) {
    const found = spec.tip(at[0], px);
    if (found) {
      c.strokeStyle = theme.soft;
      c.beginPath();
      c.moveTo(Math.round(found.x) + 0.5, box.y);
      c.lineTo(Math.round(found.x) + 0.5, box.y + box.h);
      c.stroke();
      showTip(tip, found.x, found.rows, width);
    }
  }
}

function axisLabels(c, theme, spec, box, height) {
  c.fillStyle = theme.soft;
  c.textAlign = "center";
  c.textBaseline = "bottom";
  c.fillText(spec.xlabel || "", box.x + box.w / 2, height - 2);
  c.save();
  c.translate(9, box.y + box.h / 2);
  c.rotate(-Math.PI / 2);
  c.textBaseline = "middle";
  c.fillText(spec.ylabel || "", 0, 0);
  c.restore();
}

function showTip(tip, x, rows, width) {
  tip.hidden = false;
  tip.replaceChildren(...rows.map(([name, value]) => make("div", {}, make("span", {}, name), make("b", {}, value))));
  const left = x > width / 2;
  tip.style.left = left ? "auto" : x + 10 + "px";
  tip.style.right = left ? width - x + 10 + "px" : "auto";
}

/** A tip for line charts: the nearest x, and what `rows(i)` says of it. */
function nearest(x, rows) {
  return (pointer, px) => {
    let best = -1;
    let far = Infinity;
    for (let i = 0; i < x.length; i++) {
      const d = Math.abs(px(x[i]) - pointer);
      if (d < far) [best, far] = [i, d];
    }
    return best < 0 ? null : { x: px(x[best]), rows: rows(best) };
  };
}

/** Blue – paper – red for v in −1 … 1. */
function diverging(v, theme) {
  const end = v < 0 ? (theme.dark ? [86, 180, 233] : [0, 114, 178]) : theme.dark ? [240, 118, 58] : [213, 94, 0];
  return `rgba(${end},${Math.min(Math.abs(v), 1).toFixed(3)})`;
}

/** Where the colours end, the 95th percentile: a first token often outshines all others together. */
function heatEnd(values) {
  const sizes = values.flatMap((r) => [...r].map(Math.abs).filter(Number.isFinite)).sort((a, b) => a - b);
  return sizes[Math.floor(0.95 * (sizes.length - 1))] || sizes[sizes.length - 1] || 1;
}

function paintHeat(c, tip, at, theme, spec, box, width) {
  const { rows, columns, values } = spec.heat;
  if (!rows.length || !columns.length) {
    c.fillStyle = theme.soft;
    c.textAlign = "center";
    c.fillText(spec.empty || "nothing yet", box.x + box.w / 2, box.y + box.h / 2);
    return;
  }
  const longest = Math.max(...rows.map((r) => c.measureText(r).width));
  const left = Math.min(longest + 10, 0.36 * width);
  const inner = { x: left, y: 2, w: width - left - 6, h: box.y + box.h + PAD.bottom - 46 };
  const w = inner.w / columns.length;
  const h = inner.h / rows.length;
  const most = heatEnd(values);
  c.textBaseline = "middle";
  rows.forEach((name, i) => {
    c.fillStyle = theme.soft;
    c.textAlign = "right";
    if (h >= 9 || i % Math.ceil(9 / h) === 0) c.fillText(fitEnds(c, name, left - 8), left - 5, inner.y + (i + 0.5) * h);
    values[i].forEach((v, j) => {
      if (!Number.isFinite(v)) return;
      c.fillStyle = diverging(v / most, theme);
      c.fillRect(inner.x + j * w, inner.y + i * h, Math.max(w - (w > 5 ? 1 : 0), 0.5), Math.max(h - (h > 5 ? 1 : 0), 0.5));
    });
  });
  const every = Math.ceil(11 / w);
  c.textAlign = "right";
  c.fillStyle = theme.soft;
  columns.forEach((word, j) => {
    if (j % every) return;
    c.save();
    c.translate(inner.x + (j + 0.5) * w, inner.y + inner.h + 4);
    c.rotate(-Math.PI / 3);
    c.fillText(fit(c, word.trim(), 44), 0, 3);
    c.restore();
  });
  if (!at) return;
  const [i, j] = [Math.floor((at[1] - inner.y) / h), Math.floor((at[0] - inner.x) / w)];
  if (i < 0 || j < 0 || i >= rows.length || j >= columns.length) return;
  c.strokeStyle = theme.ink;
  c.strokeRect(inner.x + j * w, inner.y + i * h, w, h);
  showTip(tip, at[0], [["token", columns[j]], [rows[i], short(values[i][j])]], width);
}

/** The text cut in its middle: names often differ at their ends. */
function fitEnds(c, text, room) {
  let n = text.length;
  let cut = text;
  while (n > 2 && c.measureText(cut).width > room) {
    n--;
    cut = text.slice(0, Math.ceil(n / 2)) + "…" + text.slice(text.length - Math.floor(n / 2));
  }
  return cut;
}

function fit(c, text, room) {
  if (c.measureText(text).width <= room) return text;
  let n = text.length;
  while (n > 1 && c.measureText(text.slice(0, n) + "…").width > room) n--;
  return text.slice(0, n) + "…";
}
