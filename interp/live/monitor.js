// The live view of a job: what FitMonitor, CaptureMonitor and LensMonitor show. Follows charts.js.
// Numbers come as traits: `head` (a dictionary) and `data` (float32 histories, laid out by head.series).

const ICONS = {
  pause: "M4 3h3v10H4zM9 3h3v10H9z",
  resume: "M4 2.5v11l9-5.5z",
  step: "M3 2.5v11l7-5.5zM11 3h2v10h-2z",
  leap: "M2 3v10l5-5zM7 3v10l5-5zM12 3h2v10h-2z",
  stop: "M3.5 3.5h9v9h-9z",
};
const GRADES = ["A", "B", "C", "U"];

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** The histories of a frame: {series: {column: Float32Array}}. */
function unpack(head, data) {
  const view = data && data.buffer ? data : new DataView(new ArrayBuffer(0));
  // A copy: the buffer of a message need not be aligned to four bytes.
  const all = new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
  const out = {};
  for (const [name, [columns, rows, offset]] of Object.entries(head.series || {})) {
    out[name] = {};
    columns.forEach((column, k) => {
      out[name][column] = all.subarray(offset + k * rows, offset + (k + 1) * rows);
    });
  }
  return out;
}

// ------------------------------------------------------------------------ what each job shows

const FIT = {
  tiles: (h) => [
    ["iterations", whole(h.steps)],
    ["slabs", h.n_slabs ? `${whole(h.slabs_done)} / ${whole(h.n_slabs)}` : "–"],
    ["pairs done", h.pairs_total ? `${short(h.pairs_done)} / ${short(h.pairs_total)}` : "–"],
    ["active now", whole(h.active)],
    ["n_fail", whole(h.n_fail), h.n_fail ? "warn" : ""],
    ["memory", bytes(h.bytes)],
  ],
  caption: (h) => {
    const p = h.problem;
    if (!p) return "";
    const sizes = `slab ${p.sizes[0]} · block ${p.sizes[1]} · rows ${p.sizes[2] ? whole(p.sizes[2]) : "auto"}`;
    return `${whole(p.latents)} latents × ${whole(p.classes)} classes · ${short(p.events)} events in ${short(p.nodes)} nodes · ${p.method} on ${p.device} · ${sizes}`;
  },
  panels: [
    ["Pairs by iteration", "Active, inert and failed pairs by iteration"],
    ["Damping λ", "Smallest, quartiles and largest lambda by iteration"],
    ["Seconds by slab", "Seconds of each slab; the slab under way is marked"],
    ["Loss and gradient", "Mean and largest loss, largest gradient by iteration"],
  ],
  draw(panels, h, s, t) {
    const it = s.iterations;
    const x = it.x;
    const stripes = [];
    if (h.n_slabs <= 60) {
      const ends = [0, ...s.slabs.x];
      for (let k = 1; k < ends.length; k += 2) stripes.push([ends[k], ends[k + 1] ?? h.steps]);
    }
    const common = { xlabel: "iteration", wholeX: true, xrange: x.length ? [Math.min(x[0], 1), Math.max(h.steps, 2)] : null, stripes };
    const live = h.state === "running" || h.state === "paused";
    const rare = it.loss_mean.filter(Number.isFinite).length < 0.5 * Math.min(x.length, 120);
    const where = (i) => [["iteration", whole(x[i])], ["slab", whole(it.slab[i])]];
    panels[0].draw(t, {
      ...common, y: "count", ylabel: "pairs",
      yrange: x.length ? [0, Math.max(...it.active, ...it.inert, 1)] : null,
      lines: [
        { x, y: it.inert, colour: t.grey, step: true },
        { x, y: it.active, colour: t.blue, step: true, area: true, dot: live },
        { x, y: it.fail, colour: t.vermillion, step: true },
      ],
      legend: [["active", t.blue], ["inert", t.grey], ["n_fail", t.vermillion]],
      tip: nearest(x, (i) => [...where(i), ["active", whole(it.active[i])], ["inert", whole(it.inert[i])], ["n_fail", short(it.fail[i])], ["retried", whole(it.rejected[i])]]),
      says: `Pairs by iteration: ${whole(h.active)} active, ${whole(h.inert)} inert, ${whole(h.n_fail)} failed`,
    });
    panels[1].draw(t, {
      ...common, y: "log", ylabel: "λ",
      bands: [
        { x, lo: it.lam_min, hi: it.lam_max, colour: t.orange, alpha: 0.16 },
        { x, lo: it.lam_q1, hi: it.lam_q3, colour: t.orange, alpha: 0.38 },
      ],
      lines: [{ x, y: it.lam_median, colour: t.orange, dot: live }],
      legend: [["min to max", t.orange, "pale"], ["quartiles", t.orange, "band"], ["median", t.orange]],
      tip: nearest(x, (i) => [...where(i), ["max", short(it.lam_max[i])], ["upper quartile", short(it.lam_q3[i])], ["median", short(it.lam_median[i])], ["lower quartile", short(it.lam_q1[i])], ["min", short(it.lam_min[i])]]),
      says: `Damping lambda by iteration: median ${short(it.lam_median.at(-1))}, from ${short(it.lam_min.at(-1))} to ${short(it.lam_max.at(-1))}`,
    });
    const sl = s.slabs;
    const n = sl.slab.length;
    const bars = [];
    for (let i = 0; i < n; i++) {
      bars.push({ x0: sl.start[i], x1: sl.stop[i], y: sl.seconds[i], colour: t.blue });
      // Failures mark the foot of their bar, so that its height still reads.
      if (sl.fail[i] > 0) bars.push({ x0: sl.start[i], x1: sl.stop[i], y: 0, colour: t.vermillion, foot: true });
    }
    if (h.slab) bars.push({ x0: h.slab[1], x1: h.slab[2], y: h.slab_seconds, colour: t.orange, now: true });
    const classes = h.problem ? h.problem.classes : Math.max(...sl.stop, 1);
    panels[2].draw(t, {
      y: "linear", zero: true, ylabel: "seconds", xlabel: "class", wholeX: true, xrange: [0, classes],
      bars, feet: true,
      legend: [["done", t.blue, "box"], ["current", t.orange, "box"], ["with n_fail", t.vermillion, "box"]],
      tip: (pointer, px) => {
        const b = bars.filter((b) => !b.foot).find((b) => px(b.x0) <= pointer && pointer < px(b.x1));
        if (!b) return null;
        const i = sl.start.indexOf(b.x0);
        const rows = [["classes", `${b.x0} … ${b.x1 - 1}`], ["seconds", short(b.y)]];
        if (!b.now) rows.push(["iterations", short(sl.n_iter[i])], ["n_fail", whole(sl.fail[i])]);
        return { x: (px(b.x0) + px(b.x1)) / 2, rows: b.now ? [["slab", "under way"], ...rows] : rows };
      },
      says: `Seconds by slab: ${whole(h.slabs_done)} of ${whole(h.n_slabs)} done`,
    });
    panels[3].draw(t, {
      ...common, y: "log", ylabel: "nats · scaled gradient",
      lines: [
        { x, y: it.loss_max, colour: t.sky, points: rare },
        { x, y: it.loss_mean, colour: t.green, points: rare },
        { x, y: it.grad, colour: t.purple, dot: live },
      ],
      levels: h.tol ? [{ y: h.tol, colour: t.soft, label: "tol", left: true }] : [],
      legend: [["mean loss", t.green], ["max loss", t.sky], ["max gradient", t.purple]],
      tip: nearest(x, (i) => [...where(i), ["mean loss", short(it.loss_mean[i])], ["max loss", short(it.loss_max[i])], ["max gradient", short(it.grad[i])]]),
      says: `Loss and gradient by iteration: largest gradient ${short(it.grad.at(-1))}, tolerance ${short(h.tol)}`,
    });
  },
};

const CAPTURE = {
  tiles: (h) => [
    ["prompts", `${whole(h.prompts_done)} / ${whole(h.prompts_total)}`],
    ["batches", `${whole(h.steps)} / ${whole(h.n_batches)}`],
    ["real tokens/s", short(h.real_per_s)],
    ["padded tokens/s", short(h.padded_per_s)],
    ["generated", short(h.tokens_generated)],
    [h.bytes_total ? `memory, ${((100 * h.bytes) / h.bytes_total).toFixed(0)} % of all` : "memory", bytes(h.bytes)],
  ],
  caption: (h) => {
    const sites = h.n_sites ? `${h.n_sites} sites: ${h.sites.join(", ")}${h.n_sites > h.sites.length ? ", …" : ""}` : "";
    return h.resumed ? `${sites} · ${h.resumed} prompts found finished` : sites;
  },
  panels: [
    ["Speed", "Tokens per second by batch, real and with padding"],
    ["Memory", "Memory in use by batch, against what there is"],
    ["Time by stage", "Seconds spent in each stage"],
    ["Projections", "Projection of each token of the latest prompt"],
  ],
  draw(panels, h, s, t) {
    const b = s.batches;
    const x = b.x;
    const each = Array.from(x, (v, i) => (i ? v - x[i - 1] : v));
    const xrange = [0.5, Math.max(h.n_batches, h.steps, 1) + 0.5];
    const rate = (name) => Array.from(x, (_, i) => b[name][i] / Math.max(b.seconds[i], 1e-9));
    const [real, padded] = [rate("real"), rate("padded")];
    const spans = Array.from(x, (v, i) => [v - each[i] + 0.5, v + 0.5]);
    const found = (pointer, px) => spans.findIndex(([a, z]) => px(a) <= pointer && pointer < px(z));
    const middle = (i, px) => (px(spans[i][0]) + px(spans[i][1])) / 2;
    panels[0].draw(t, {
      y: "linear", zero: true, ylabel: "tokens/s", xlabel: "batch", wholeX: true, xrange,
      bars: spans.flatMap(([x0, x1], i) => [
        { x0, x1, y: padded[i], colour: t.grey, alpha: 0.45 },
        { x0, x1, y: real[i], colour: t.blue },
      ]),
      legend: [["real", t.blue, "box"], ["with padding", t.grey, "box"]],
      tip: (pointer, px) => {
        const i = found(pointer, px);
        return i < 0 ? null : { x: middle(i, px), rows: [["batch", whole(x[i])], ["prompts", short(b.n_prompts[i])], ["real tokens/s", whole(real[i])], ["padded tokens/s", whole(padded[i])], ["seconds", short(b.seconds[i])]] };
      },
      says: `Tokens per second by batch: ${short(h.real_per_s)} real, ${short(h.padded_per_s)} with padding`,
    });
    const gib = Array.from(b.bytes, (v) => v / 2 ** 30);
    panels[1].draw(t, {
      y: "linear", zero: true, ylabel: "GiB", xlabel: "batch", wholeX: true, xrange,
      bars: spans.map(([x0, x1], i) => ({ x0, x1, y: gib[i], colour: t.purple })),
      levels: h.bytes_total ? [{ y: h.bytes_total / 2 ** 30, colour: t.soft, label: `of ${bytes(h.bytes_total)}` }] : [],
      legend: [["in use", t.purple, "box"]],
      tip: (pointer, px) => {
        const i = found(pointer, px);
        return i < 0 ? null : { x: middle(i, px), rows: [["batch", whole(x[i])], ["in use", bytes(b.bytes[i])], ["there is", bytes(h.bytes_total)]] };
      },
      says: `Memory in use by batch: ${bytes(h.bytes)} of ${bytes(h.bytes_total)}`,
    });
    panels[2].bars(t, Object.entries(h.stages).map(([name, v]) => [name, v, span(v), t.green]), "seconds");
    // Rows are named vector@site; what all of them share stands in the legend, once.
    const names = Object.keys(s.projections);
    const shared = names.length ? names[0].slice(0, names[0].lastIndexOf("@") + 1) : "";
    const one = shared && names.every((n) => n.startsWith(shared));
    const end = short(+heatEnd(Object.values(s.projections)).toPrecision(2));
    panels[3].draw(t, {
      heat: { rows: one ? names.map((n) => n.slice(shared.length)) : names, columns: h.tokens, values: Object.values(s.projections) },
      empty: "no vectors to project on",
      says: `Projections of ${h.tokens.length} tokens of ${h.prompt_id || "a prompt"}, ${names.length} rows`,
      legend: h.prompt_id ? [[one ? `${shared.slice(0, -1)} · ${h.prompt_id}` : h.prompt_id, t.soft, "none"], [`≤ −${end}`, diverging(-1, t), "box"], [`≥ ${end}`, diverging(1, t), "box"]] : [],
    });
  },
};

const LENS = {
  tiles: (h) => [
    ["lenses graded", `${whole(h.n_done)} / ${whole(h.n_lenses)}`],
    ["still growing", whole(h.active)],
    ["fits", whole(h.fits)],
    ["prompts forwarded", short(h.forwarded)],
    ["F1 target", h.target === null ? "–" : short(h.target)],
    [h.blocking ? "blocking cost" : "blocking would cost", `${whole(h.extra)} fits`],
  ],
  caption: (h) => (h.site ? `${h.site} · validation is ${h.blocking ? "blocking" : "advisory"}` : ""),
  panels: [
    ["Grades", "Lenses by grade A, B, C, U"],
    ["Learning curves", "F1 of single lenses by number of samples"],
    ["All lenses", "Quartiles of F1 over all lenses by iteration"],
    ["Scores", "Score of each lens with its 95 % interval, sorted"],
    ["Concepts", "The latest lenses"],
  ],
  draw(panels, h, s, t, table) {
    const colour = { A: t.green, B: t.sky, C: t.orange, U: t.grey };
    panels[0].columns(t, GRADES.map((g) => [g, h.grades[g], colour[g]]), h.n_lenses);
    const curves = h.curves.filter((c) => c.length);
    panels[1].draw(t, {
      y: "linear", xkind: "tight", ylabel: "F1", xlabel: "samples",
      lines: curves.map((c) => ({ x: c.map((p) => p[0]), y: c.map((p) => p[1]), colour: t.blue, width: 1, alpha: 0.45 })),
      levels: h.target ? [{ y: h.target, colour: t.vermillion, label: "target", left: true }] : [],
      legend: [["a lens", t.blue]],
      says: `Learning curves of ${curves.length} lenses: F1 by number of samples, target ${short(h.target)}`,
    });
    const q = h.quartiles;
    const known = (v) => v.map((x) => (x === null ? NaN : x));
    panels[2].draw(t, {
      y: "linear", ylabel: "F1", xlabel: "iteration", wholeX: true,
      bands: [{ x: q.x, lo: known(q.q1), hi: known(q.q3), colour: t.blue, alpha: 0.25 }],
      lines: [{ x: q.x, y: known(q.median), colour: t.blue }],
      levels: h.target ? [{ y: h.target, colour: t.vermillion, label: "target", left: true }] : [],
      legend: [["quartiles", t.blue, "band"], ["median", t.blue]],
      tip: nearest(q.x, (i) => [["iteration", q.x[i]], ["lenses", whole(q.n[i])], ["upper quartile", short(q.q3[i])], ["median", short(q.median[i])], ["lower quartile", short(q.q1[i])]]),
      says: `F1 over all lenses by iteration: median ${short(q.median.at(-1))}, quartiles ${short(q.q1.at(-1))} and ${short(q.q3.at(-1))}`,
    });
    const scored = table.filter((r) => r.score !== null).sort((a, b) => a.score - b.score);
    panels[3].draw(t, {
      y: "linear", ylabel: "2·AUROC − 1", xlabel: "lenses by score", wholeX: true, xrange: [-0.5, Math.max(scored.length, 2) - 0.5],
      yrange: scored.length ? [Math.min(0, ...scored.map((r) => r.low ?? r.score)), 1] : null,
      marks: scored.map((r, x) => ({ x, y: r.score, lo: r.low ?? r.score, hi: r.high ?? r.score, colour: colour[r.grade] })),
      levels: [[0.5, "A"], [0.2, "B"]].map(([y, label]) => ({ y, label, colour: t.soft })),
      legend: GRADES.map((g) => [g, colour[g], "box"]),
      tip: nearest([...scored.keys()], (i) => [["concept", scored[i].term], ["grade", scored[i].grade], ["score", short(scored[i].score)], ["interval", `${short(scored[i].low)} … ${short(scored[i].high)}`]]),
      says: `Scores of ${scored.length} lenses with their intervals, sorted`,
    });
    panels[4].table(t, table, colour);
  },
};

const VIEWS = { fit: FIT, capture: CAPTURE, lens: LENS };

// ------------------------------------------------------------- panels that need no canvas

/** Horizontal bars: [[name, value, text, colour]]. */
function barPanel(title, label) {
  const list = make("div.i-bars", { role: "img", "aria-label": label });
  return {
    node: make("section.i-panel", {}, make("header", {}, make("h4", {}, title), make("div.i-legend")), list),
    stop() {},
    draw() {},
    bars(t, items, unit) {
      const most = Math.max(...items.map((i) => i[1]), 1e-9);
      const rows = items.map(([name, value, text, colour]) => {
        const bar = make("i");
        bar.style.cssText = `width:${(100 * value) / most}%;background:${colour}`;
        return make("div", {}, make("span", {}, name), make("u", {}, bar), make("b", {}, text));
      });
      list.replaceChildren(...(rows.length ? rows : [make("em", {}, "nothing yet")]));
      list.setAttribute("aria-label", `${label} (${unit}): ` + items.map((i) => `${i[0]} ${i[2]}`).join(", "));
    },
  };
}

/** Growing columns: [[name, count, colour]]. */
function columnPanel(title, label) {
  const stage = make("div.i-columns", { role: "img", "aria-label": label });
  const parts = new Map();
  return {
    node: make("section.i-panel", {}, make("header", {}, make("h4", {}, title), make("div.i-legend", {}, "lenses by grade")), stage),
    stop() {},
    columns(t, items, total) {
      const most = Math.max(...items.map((i) => i[1]), 1);
      for (const [name, count, colour] of items) {
        if (!parts.has(name)) {
          const [bar, text] = [make("i"), make("b")];
          parts.set(name, [bar, text]);
          stage.append(make("div", {}, make("u", {}, text, bar), make("span", {}, name)));
        }
        const [bar, text] = parts.get(name);
        bar.style.cssText = `height:${(100 * count) / most}%;background:${colour}`;
        text.textContent = whole(count);
      }
      stage.setAttribute("aria-label", `${label}: ` + items.map((i) => `${i[0]} ${i[1]}`).join(", ") + ` of ${total}`);
    },
  };
}

/** The table of concepts; the score's interval is drawn as a bar over −1 … 1. */
function tablePanel(title, label) {
  const body = make("tbody");
  const names = ["concept", "level", "grade", "score, 95 % interval", "F1", "samples", "fits", "why it stopped"];
  const head = make("thead", {}, make("tr", {}, ...names.map((n) => make("th", { scope: "col" }, n))));
  const scroll = make("div.i-scroll", { tabindex: "0", role: "region", "aria-label": label }, make("table", {}, head, body));
  let shown = null;
  return {
    node: make("section.i-panel.i-wide", {}, make("header", {}, make("h4", {}, title), make("div.i-legend")), scroll),
    stop() {},
    table(t, rows, colour) {
      if (rows === shown) return;
      shown = rows;
      const at = (v) => (100 * (Math.min(Math.max(v, -1), 1) + 1)) / 2;
      body.replaceChildren(
        ...rows.map((r) => {
          const badge = make("b.i-grade", {}, r.grade);
          badge.style.background = colour[r.grade];
          const range = make("u.i-range");
          if (r.score !== null) {
            const [lo, hi] = [r.low ?? r.score, r.high ?? r.score];
            const [band, dot] = [make("i"), make("s")];
            band.style.cssText = `left:${at(lo)}%;width:${at(hi) - at(lo)}%;background:${colour[r.grade]}`;
            dot.style.cssText = `left:${at(r.score)}%`;
            range.append(band, dot);
          }
          const cells = [r.term, r.level, badge, [range, " " + short(r.score)], short(r.f1), whole(r.samples), whole(r.iterations), r.reason];
          const row = make("tr", {}, ...cells.map((c) => make("td", {}, ...[c].flat().map((x) => (x instanceof Node ? x : String(x))))));
          for (const cell of [row.firstChild, row.lastChild]) cell.title = cell.textContent; // long ones are cut
          return row;
        }),
      );
    },
  };
}

const PANELS = { "Time by stage": barPanel, Grades: columnPanel, Concepts: tablePanel };

// ------------------------------------------------------------------------------- the widget

function render({ model, el }) {
  const root = make("div.interp-monitor", { role: "group", "aria-label": "interp monitor" });
  // While this view lives, the static picture of the same run is not needed (it is for saved notebooks).
  const hide = make("style", {}, `.interp-static[data-run="${CSS.escape(model.get("uid"))}"]{display:none}`);
  el.append(hide, root);

  const title = make("h3");
  const state = make("span.i-state", { role: "status", "aria-live": "polite" });
  const buttons = make("div.i-buttons", { role: "toolbar", "aria-label": "Controls of the run" });
  const fill = make("i");
  const progress = make("div.i-progress", { role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": "Progress" }, fill);
  const times = make("div.i-times");
  const message = make("pre.i-message", { role: "alert" });
  const summary = make("p.i-caption");
  const jobs = make("div.i-jobs", { role: "listbox", "aria-label": "Jobs" });
  const tiles = make("dl.i-tiles");
  const caption = make("p.i-caption");
  const grid = make("div.i-grid");
  root.append(make("div.i-head", {}, title, state, buttons), progress, times, message, summary, jobs, tiles, grid, caption);

  const send = (what, extra = {}) => model.send({ do: what, ...extra });
  const button = {};
  const NAMES = { pause: "Pause", resume: "Resume", step: model.get("steps")[0], leap: model.get("steps")[1], stop: "Stop" };
  for (const name of ["pause", "resume", "step", "leap", "stop"]) {
    if (!NAMES[name]) continue;
    button[name] = make("button", { type: "button", "aria-label": NAMES[name], title: NAMES[name] }, icon(name), make("span", {}, NAMES[name]));
    button[name].addEventListener("click", () => send(name));
  }
  keepKeys(root);

  let kind = null;
  let panels = [];
  let theme = null;
  let told = null;
  const entries = new Map(); // of the jobs

  const build = (view) => {
    panels.forEach((p) => p.stop());
    panels = view.panels.map(([name, label]) => (PANELS[name] || chart)(name, label));
    grid.replaceChildren(...panels.map((p) => p.node));
  };

  function draw() {
    const head = model.get("head");
    const view = VIEWS[head.kind];
    if (!view) return;
    if (kind !== head.kind) {
      kind = head.kind;
      build(view);
    }
    theme = theme || themeOf(root);
    title.textContent = head.title;
    state.textContent = head.state;
    state.dataset.state = head.state;
    root.dataset.state = head.state;
    root.dataset.steps = head.steps;
    const percent = Math.round(1000 * head.fraction) / 10;
    fill.style.width = percent + "%";
    progress.setAttribute("aria-valuenow", Math.round(percent));
    const ended = ["done", "stopped", "failed"].includes(head.state);
    times.replaceChildren(
      make("span", {}, make("b", {}, percent.toFixed(percent < 10 ? 1 : 0) + " %")),
      make("span", {}, "elapsed ", make("b", {}, clock(head.elapsed))),
      ...(ended ? [] : [make("span", {}, "left ", make("b", {}, clock(head.eta)))]),
      make("span.i-note", {}, head.note || ""),
    );
    message.textContent = head.message || "";
    message.hidden = !head.message;
    message.dataset.kind = head.state === "failed" ? "error" : "note";

    const live = head.controls && !ended;
    const paused = head.state === "paused";
    const shown = !live ? [] : head.controls === "stop" ? [button.stop] : [paused ? button.resume : button.pause, button.step, button.leap, button.stop];
    // Only a change touches the toolbar, so that a focused button keeps its focus at every frame.
    const wanted = shown.filter(Boolean);
    if (wanted.length !== buttons.children.length || wanted.some((b, i) => buttons.children[i] !== b)) {
      const had = buttons.contains(document.activeElement);
      buttons.replaceChildren(...wanted);
      if (had && wanted.length && !buttons.contains(document.activeElement)) wanted[0].focus();
    }
    for (const name of ["step", "leap"]) if (button[name]) button[name].disabled = !paused;
    if (button.stop) button.stop.disabled = head.state === "stopping";

    const list = head.jobs || [];
    summary.textContent = head.jobs_say || "";
    summary.hidden = !head.jobs_say;
    jobs.hidden = list.length < 2;
    if (list.length > 1) {
      // Entries are kept: one that is replaced while the mouse is down would never be clicked.
      for (const [k, [name, jobState, fraction]] of list.entries()) {
        if (!entries.has(name)) {
          const entry = make("button", { type: "button", role: "option" }, make("span", {}, name), make("u", {}, make("i")), make("small"));
          entry.addEventListener("click", () => send("select", { job: name }));
          entries.set(name, entry);
          jobs.insertBefore(entry, jobs.children[k] || null);
        }
        const entry = entries.get(name);
        entry.setAttribute("aria-selected", name === head.job);
        entry.dataset.state = jobState;
        entry.title = `${name}: ${jobState}`;
        entry.querySelector("i").style.width = 100 * fraction + "%";
        entry.querySelector("small").textContent = jobState === "running" ? `${Math.round(100 * fraction)} %` : jobState;
      }
    }
    tiles.replaceChildren(...view.tiles(head).map(([name, value, mark]) => make("div." + (mark || "plain"), { title: `${name}: ${value}` }, make("dt", {}, name), make("dd", {}, value))));
    caption.textContent = [head.task, view.caption(head)].filter(Boolean).join(" · ");
    view.draw(panels, head, unpack(head, model.get("data")), theme, model.get("table"));
  }

  // One drawing per frame of the screen, however many traits changed.
  let asked = 0;
  const ask = () => {
    if (!asked) asked = requestAnimationFrame(() => ((asked = 0), draw()));
  };
  const retheme = () => {
    theme = null;
    requestAnimationFrame(() => {
      theme = themeOf(root);
      root.classList.toggle("i-dark", theme.dark);
      if (theme.dark !== told) send("theme", { dark: (told = theme.dark) });
      draw();
    });
  };
  model.on("change:head", ask);
  model.on("change:table", ask);
  const unwatch = watchTheme(retheme);
  retheme();
  return () => {
    model.off("change:head", ask);
    model.off("change:table", ask);
    cancelAnimationFrame(asked);
    unwatch();
    panels.forEach((p) => p.stop());
    hide.remove();
  };
}

export default { render };
