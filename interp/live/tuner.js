// The slab tuner: three sliders, a heat map of measured settings. Follows charts.js.

function render({ model, el }) {
  const root = make("div.interp-tuner", { role: "group", "aria-label": "interp slab tuner" });
  const hide = make("style", {}, `.interp-static[data-run="${CSS.escape(model.get("uid"))}"]{display:none}`);
  el.append(hide, root);
  keepKeys(root);

  const NAMES = [
    ["class_slab_size", "classes"],
    ["latent_block_size", "latents"],
    ["row_batch_size", "rows"],
  ];
  const send = (what, extra = {}) => model.send({ do: what, ...extra });
  const axes = () => model.get("axes");
  const two = (v) => short(+v.toPrecision(2));
  const chosen = {};
  let touched = false;
  let applied = null;
  let told = null; // the theme that the kernel draws its picture for

  const sliders = NAMES.map(([name, unit]) => {
    const input = make("input", { type: "range", min: "0", step: "1", "aria-label": name });
    const value = make("output");
    input.addEventListener("input", () => choose({ [name]: axes()[name][Number(input.value)] }));
    return { name, unit, input, value, node: make("label.i-slider", {}, make("b", {}, name), value, input) };
  });
  const facts = make("dl.i-facts");
  const measure = make("button.i-main", { type: "button" }, "Measure");
  const best = make("button", { type: "button" }, "Apply the best");
  const these = make("button", { type: "button" }, "Apply these");
  const status = make("p.i-status", { role: "status", "aria-live": "polite" });
  const map = make("div.i-heat");
  const strip = make("div.i-heat");
  root.append(
    make("div.i-head", {}, make("h3", {}, "Slab tuner"), make("div.i-buttons", {}, measure, best, these)),
    make(
      "div.i-tune", {},
      make("div", {}, ...sliders.map((s) => s.node), facts, status),
      make(
        "div", {},
        make("h4", {}, "Solve: ns per evaluation", make("small", {}, "class_slab_size ↓ × latent_block_size →")), map,
        make("h4", {}, "Pass over the data: ns per event", make("small", {}, "row_batch_size")), strip,
        make("p.i-status", {}, "the bluer, the faster · ★ fastest · a = what “auto” takes · medians"),
      ),
    ),
  );
  measure.addEventListener("click", () => send(model.get("busy") ? "stop" : "measure"));
  best.addEventListener("click", () => {
    applied = null; // the sliders go there even if the probe is there already
    send("apply_best");
    ask();
  });
  these.addEventListener("click", () => send("apply", { sizes: chosen }));

  function choose(change) {
    touched = true;
    Object.assign(chosen, change);
    draw();
  }

  /** One measured (or not yet measured) setting: a button that chooses it. */
  function cellOf(theme, setting, measured, range, marks) {
    const words = Object.values(setting).join(" × ") + (measured === undefined ? ": not measured" : `: ${short(+measured.toPrecision(3))} ns`) + marks.map((m) => m[1]).join("");
    const pressed = Object.entries(setting).every(([name, value]) => chosen[name] === value);
    const node = make("button.i-cell", { type: "button", "aria-label": words, title: words, "data-cell": Object.values(setting).join("|"), "aria-pressed": String(pressed) }, make("b", {}, measured === undefined ? "·" : two(measured)), make("sup", {}, marks.map((m) => m[0]).join("")));
    if (measured !== undefined) {
      const k = range[1] > range[0] ? 1 - Math.log(measured / range[0]) / Math.log(range[1] / range[0]) : 1;
      node.style.background = `color-mix(in srgb, ${theme.blue} ${Math.round(8 + 88 * k)}%, ${theme.paper})`;
      // Each ink up to the blue on which the other reads better.
      node.style.color = k > (theme.dark ? 0.6 : 0.8) ? (theme.dark ? "#0b1620" : "#fff") : theme.dark ? theme.ink : "#10141a";
    }
    node.addEventListener("click", () => choose(setting));
    return node;
  }

  function draw() {
    const theme = themeOf(root);
    root.classList.toggle("i-dark", theme.dark);
    if (theme.dark !== told) send("theme", { dark: (told = theme.dark) });
    const { class_slab_size: slabs, latent_block_size: blocks, row_batch_size: batches } = axes();
    const [top, topRows, auto] = [model.get("best"), model.get("best_rows"), model.get("auto")];
    if (!touched && auto) Object.assign(chosen, auto); // the sliders start at what "auto" takes
    if (model.get("applied") !== applied) {
      applied = model.get("applied"); // and go where the probe is set to, be it by a button or by a cell
      for (const [name, value] of Object.entries(applied)) if (axes()[name].includes(value)) chosen[name] = value;
      touched = touched || Object.keys(applied).length > 0;
    }
    for (const [name] of NAMES) if (!axes()[name].includes(chosen[name])) chosen[name] = axes()[name][0];
    for (const s of sliders) {
      const values = axes()[s.name];
      s.input.max = String(values.length - 1);
      s.input.value = String(values.indexOf(chosen[s.name]));
      s.value.textContent = typeof chosen[s.name] === "number" ? `${whole(chosen[s.name])} ${s.unit}` : chosen[s.name];
      s.input.setAttribute("aria-valuetext", s.value.textContent);
    }
    const cells = new Map(model.get("cells").map((c) => [`${c.class_slab_size}|${c.latent_block_size}`, c]));
    const passes = new Map(model.get("row_cells").map((c) => [c.row_batch_size, c]));
    const range = extent([[...cells.values()].map((c) => c.ns_per_eval)], true) || [1, 1];
    const passRange = extent([[...passes.values()].map((c) => c.ns_per_event)], true) || [1, 1];
    const active = document.activeElement;
    const focused = root.contains(active) ? active.dataset.cell : undefined;

    map.style.gridTemplateColumns = `auto repeat(${blocks.length}, minmax(0, 1fr))`;
    map.replaceChildren(
      make("span"),
      ...blocks.map((b) => make("span", {}, whole(b))),
      ...slabs.flatMap((s) => [
        make("span.i-row", {}, whole(s)),
        ...blocks.map((b) => {
          const marks = [];
          if (top && top.class_slab_size === s && top.latent_block_size === b) marks.push(["★", ", the fastest"]);
          if (auto && auto.class_slab_size === s && auto.latent_block_size === b) marks.push(["a", ", what auto takes"]);
          return cellOf(theme, { class_slab_size: s, latent_block_size: b }, cells.get(`${s}|${b}`)?.ns_per_eval, range, marks);
        }),
      ]),
    );
    strip.style.gridTemplateColumns = `repeat(${batches.length}, minmax(0, 1fr))`;
    strip.replaceChildren(
      ...batches.map((r) => make("span", {}, typeof r === "number" ? whole(r) : r)),
      ...batches.map((r) => cellOf(theme, { row_batch_size: r }, passes.get(r)?.ns_per_event, passRange, topRows && topRows.row_batch_size === r ? [["★", ", the fastest"]] : [])),
    );
    if (focused) root.querySelector(`[data-cell="${focused}"]`)?.focus();

    const cell = cells.get(`${chosen.class_slab_size}|${chosen.latent_block_size}`);
    facts.replaceChildren(
      ...[
        ["ns per evaluation", cell ? two(cell.ns_per_eval) : "–", cell ? `quartiles ${two(cell.ns_low)} … ${two(cell.ns_high)}` : ""],
        ["memory", cell ? bytes(cell.bytes) : "–", "estimate"],
        ["of the fastest", cell && top ? "× " + (cell.ns_per_eval / top.ns_per_eval).toFixed(2) : "–", ""],
      ].map(([name, value, more]) => make("div", {}, make("dt", {}, name), make("dd", {}, value), make("small", {}, more))),
    );
    const busy = model.get("busy");
    measure.textContent = busy ? "Stop" : "Measure";
    best.disabled = busy || !top;
    these.disabled = busy;
    status.textContent = model.get("message");
  }

  const WATCHED = ["axes", "cells", "row_cells", "auto", "best", "best_rows", "applied", "busy", "message"];
  let asked = 0;
  const ask = () => {
    if (!asked) asked = requestAnimationFrame(() => ((asked = 0), draw()));
  };
  for (const name of WATCHED) model.on("change:" + name, ask);
  const unwatch = watchTheme(ask);
  ask();
  return () => {
    for (const name of WATCHED) model.off("change:" + name, ask);
    cancelAnimationFrame(asked);
    unwatch();
    hide.remove();
  };
}

export default { render };
