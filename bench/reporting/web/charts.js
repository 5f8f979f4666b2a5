"use strict";
// The figures, drawn by Vega-Lite from the table's rows: recall and cost, and training curves.
(() => {
  const { $, data, values, spread, titles, units, state, options, format, label, block, many, name, visible, pin, listeners } = bench;
  const dark = matchMedia("(prefers-color-scheme: dark)"), narrow = matchMedia("(max-width: 40rem)");
  const X = ["trainable_params", "share", "train_seconds", "peak_bytes", "flops_per_pair"];
  const Y = ["mean_recall", "i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "val_mean_recall"];
  const COLOURS = {  // Okabe and Ito's; lighter ones on dark
    light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C98A00", "#3E9CD0", "#6E6E6E"],
    dark: ["#4AA8E0", "#F08A3C", "#2FC79A", "#E39AC4", "#F0B93A", "#8FD0F5", "#A9A9A9"],
  };
  const SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right", "triangle-left"];
  const LONGEST = 28;  // characters of a name in a legend
  const shorten = text => { const letters = [...text]; return letters.length > LONGEST ? letters.slice(0, LONGEST - 1).join("") + "…" : text; };
  const AXIS = {  // Vega expressions: no text of the data is in them
    count: "datum.value >= 1e9 ? format(datum.value / 1e9, '~g') + 'B' : datum.value >= 1e6 ? format(datum.value / 1e6, '~g') + 'M' : datum.value >= 1e3 ? format(datum.value / 1e3, '~g') + 'k' : format(datum.value, '~g')",
    percent: "format(datum.value, '~g') + '%'",
    seconds: "datum.value >= 3600 ? format(datum.value / 3600, '~r') + ' h' : datum.value >= 60 ? format(datum.value / 60, '.2~r') + ' min' : format(datum.value, '~g') + ' s'",
    bytes: "datum.value >= 1e9 ? format(datum.value / 1e9, '~r') + ' GB' : format(datum.value / 1e6, '~r') + ' MB'",
    flops: "datum.value >= 1e9 ? format(datum.value / 1e9, '~r') + ' G' : format(datum.value / 1e6, '~r') + ' M'",
  };
  const CLOCK = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 18000, 36000, 86400];
  const DECADES = Array.from({ length: 30 }, (_, k) => 10 ** (k - 6));
  // Ticks of a log axis: 1, 2 and 5 of each decade, or 1 alone; times as clocks have them. Vega's own leave gaps.
  function ticks(at, unit, wide) {
    const low = Math.min(...at), high = Math.max(...at), pad = (high / low) ** (24 / wide);
    const choices = unit === "seconds" ? [CLOCK, [1, 10, 60, 600, 3600, 36000]] : [[1, 2, 5], [1]].map(each => DECADES.flatMap(ten => each.map(k => k * ten)));
    return choices.map(list => list.filter(v => v >= low / pad && v <= high * pad)).find(list => list.length > 1 && list.length <= wide / 60);
  }
  const methods = [...new Set(values.method)];
  // Names that look alike when shortened stay apart: the scale's domain has the whole names.
  const scales = () => {
    const palette = COLOURS[dark.matches ? "dark" : "light"];
    return { colour: { domain: methods, range: methods.map((_, k) => palette[k % palette.length]) }, shape: { domain: methods, range: methods.map((_, k) => SHAPES[k % SHAPES.length]) } };
  };
  const config = () => {
    const ink = dark.matches ? { text: "#e6e6e6", faint: "#a3a8ae", grid: "#2b3036" } : { text: "#1a1a1a", faint: "#5f6368", grid: "#e8e8e8" };
    const axis = { labelColor: ink.faint, titleColor: ink.text, gridColor: ink.grid, domainColor: ink.faint, tickColor: ink.faint, labelFontSize: 12, titleFontSize: 13, titleFontWeight: 500 };
    return { ink, config: { background: "transparent", font: "system-ui, sans-serif", view: { stroke: null }, axis, header: { labelColor: ink.text, labelFontSize: 13, labelLimit: 600 },
      legend: { labelColor: ink.text, titleColor: ink.text, labelFontSize: 12, symbolSize: 90, labelLimit: narrow.matches ? 130 : 260, orient: narrow.matches ? "bottom" : "right", columns: narrow.matches ? 2 : Math.ceil(methods.length / 22) } } };
  };
  const LEGEND = { title: null, symbolOpacity: 1, labelExpr: `length(datum.label) > ${LONGEST} ? substring(datum.label, 0, ${LONGEST - 1}) + '…' : datum.label` };
  const width = (place, across) => {
    const legends = narrow.matches ? 0 : Math.min(280, 60 + 7 * Math.max(0, ...methods.map(each => Math.min(LONGEST, each.length))));
    return Math.max(200, (Math.min(1280, place.clientWidth) - legends) / across - 70);
  };
  const embed = (place, spec, many) => vegaEmbed(place, spec, {
    renderer: many ? "canvas" : "svg", actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
    tooltip: { theme: dark.matches ? "dark" : "light" }, downloadFileName: "figure",
  });

  // --- recall and cost ---
  function points(x, y) {
    return visible().filter(i => values[y][i] !== null).map(i => {
      const at = values[x][i], up = values[y][i], around = spread[y]?.[i] ?? 0;
      const about = { title: label(i) };
      if (many) about["data"] = block(i);
      for (const key of ["mean_recall", y, x, "trainable_params", "train_seconds", "peak_bytes", "flops_per_pair", "seeds"])
        about[titles[key]] = format(key, values[key][i]) + (spread[key]?.[i] != null ? ` ± ${format(key, spread[key][i])}` : "");
      const own = Object.entries(bench.settings.rows[i]).filter(([, value]) => value !== null).slice(0, 10);
      for (const [key, value] of own) about[key] = String(value).slice(0, 120);
      return { i, method: values.method[i], block: block(i), x: at, y: up, low: up - around, high: up + around,
        flat: at === null || at <= 0, pinned: state.pins.includes(i), about, text: `${shorten(label(i))} ${format(y, up)}` };
    });
  }
  function front(list) {  // of each block: rows that no other beats at its cost or less
    const found = [];
    for (const where of new Set(list.map(p => p.block))) {
      let best = -Infinity;
      for (const p of list.filter(p => p.block === where && !p.flat).sort((a, b) => a.x - b.x || b.y - a.y))
        if (p.y > best) { best = p.y; found.push({ block: where, x: p.x, y: p.y }); }
    }
    return found;
  }
  async function drawChart() {
    const x = $("x").value, y = $("y").value, list = points(x, y), { ink, config: look } = config(), { colour, shape } = scales();
    const blocks = new Set(list.map(p => p.block)).size, across = blocks > 1 && !narrow.matches ? 2 : 1;
    const size = { width: width($("chart"), across), height: narrow.matches ? 300 : blocks > 1 ? 320 : 420 };
    const spec = (() => {
      const steep = list.filter(p => !p.flat), flat = list.some(p => p.flat);
      const named = new Set(steep.map(p => p.method)), legend = { ...LEGEND, values: methods.filter(each => named.has(each)) };
      const round = ticks(steep.map(p => p.x), units[x], size.width);
      const X_ = { field: "x", type: "quantitative", scale: { type: "log", nice: false, padding: 24 }, title: titles[x] + (units[x] === "flops" ? " (G = 1e9)" : ""), axis: { labelExpr: AXIS[units[x]], ...(round ? { values: round } : { tickCount: 6, labelOverlap: true }) } };
      const Y_ = { field: "y", type: "quantitative", scale: { zero: false, padding: 16 }, title: `${titles[y]} (%)` };
      const tooltip = { field: "about" }, detail = { field: "i" };
      const filter = test => [{ filter: test }];
      const layer = [
        steep.length && { data: { name: "front", values: front(list) }, mark: { type: "line", interpolate: "step-after", color: ink.faint, strokeWidth: 1, opacity: 0.6 }, encoding: { x: X_, y: Y_ } },
        flat && { transform: filter("datum.flat"), mark: { type: "rule", strokeDash: [6, 4], color: ink.faint, strokeWidth: 2, cursor: "pointer" }, encoding: { y: Y_, tooltip, detail } },
        flat && { transform: filter("datum.flat"), mark: { type: "text", align: "left", baseline: "bottom", dx: 4, dy: -3, color: ink.faint, fontSize: 11.5 }, encoding: { x: { value: 0 }, y: Y_, text: { field: "text" } } },
        steep.length && { transform: filter("!datum.flat"), mark: { type: "rule", strokeWidth: 1.2 }, encoding: { x: X_, y: { ...Y_, field: "low" }, y2: { field: "high" }, color: { field: "method", type: "nominal", scale: colour, legend } } },
        steep.length && { params: [{ name: "only", select: { type: "point", fields: ["method"] }, bind: "legend" }], transform: filter("!datum.flat"),
          mark: { type: "point", filled: true, cursor: "pointer", tooltip: true, opacity: 1 },
          encoding: { x: X_, y: Y_, tooltip, detail, order: { field: "pinned", type: "quantitative" },
            color: { field: "method", type: "nominal", scale: colour, legend }, shape: { field: "method", type: "nominal", scale: shape, legend },
            size: { condition: { test: "datum.pinned", value: 260 }, value: 100 }, stroke: { condition: { test: "datum.pinned", value: ink.text }, value: null }, strokeWidth: { value: 2 },
            opacity: { condition: { param: "only", value: 1 }, value: 0.12 } } },
      ];
      const drawn = layer.filter(Boolean);
      const base = { $schema: "https://vega.github.io/schema/vega-lite/v6.json", description: `${titles[y]} over ${titles[x]}, one mark for each row of the table`, config: look, data: { name: "rows", values: list } };
      if (blocks < 2) return { ...base, ...size, layer: drawn };
      return { ...base, facet: { field: "block", type: "nominal", title: null, header: { labelLimit: size.width } }, columns: across, spec: { ...size, layer: drawn.filter(each => !each.data) } };
    })();
    delete spec.$schema;
    if (!list.length) return $("chart").replaceChildren(bench.el("p", { class: "note" }, "No row here has both numbers."));
    const { view } = await embed($("chart"), spec, list.length > 1500);
    view.addEventListener("click", (_, item) => { if (Number.isInteger(item?.datum?.i)) pin(item.datum.i); });
  }

  // --- training curves ---
  const trained = Object.keys(data.curves.rows).map(Number);
  const MOST = 8;
  function curved() {
    const pinned = state.pins.filter(i => i in data.curves.rows);
    if (pinned.length) return [pinned, "Of the compared rows."];
    const seen = new Set(), first = visible().filter(i => i in data.curves.rows).sort((a, b) => (values.mean_recall[b] ?? 0) - (values.mean_recall[a] ?? 0))
      .filter(i => { const key = `${block(i)} ${values.method[i]}`; return !seen.has(key) && seen.add(key); });
    return [first.slice(0, MOST), `Of the best row of each method${first.length > MOST ? `, the first ${MOST} of ${first.length}` : ""}; compare rows to see theirs.`];
  }
  async function drawCurves() {
    const [list, words] = curved(), of = $("curve").value, { config: look } = config(), points = [];
    Object.assign(look.legend, { columns: 1, labelLimit: 260 });
    const names = list.map(name);
    for (const i of list) for (const [seed, epochs, validation, loss] of data.curves.rows[i]) {
      const top = validation.indexOf(Math.max(...validation.filter(v => v !== null)));
      const line = of === "val" ? validation : loss;
      epochs.forEach((epoch, k) => points.push({ name: name(i), seed, epoch, value: line[k], chosen: k === top,
        about: { title: name(i), seed: String(seed), epoch: String(epoch), "validation mR": format("mean_recall", validation[k]), "training loss": loss[k] === null ? "–" : loss[k].toPrecision(4), ...(k === top ? { chosen: "this epoch" } : {}) } }));
    }
    $("curves-note").textContent = `${words} One line a seed; the ring is the epoch that validation chose.`
      + (data.curves.left_out ? ` The curves of ${data.curves.left_out} further rows are not on this page; they are in the runs' history.csv.` : "");
    const palette = COLOURS[dark.matches ? "dark" : "light"];
    const color = { field: "name", type: "nominal", scale: { domain: names, range: names.map((_, k) => palette[k % palette.length]) }, legend: LEGEND };
    const strokeDash = { field: "name", type: "nominal", scale: { domain: names, range: names.map((_, k) => [[1, 0], [6, 3], [2, 2]][Math.floor(k / palette.length) % 3]) }, legend: LEGEND };
    const last = Math.max(1, ...points.map(p => p.epoch)), step = Math.ceil(last / (narrow.matches ? 8 : 20));
    const ticks = Array.from({ length: Math.floor(last / step) }, (_, k) => (k + 1) * step);
    const x = { field: "epoch", type: "quantitative", title: "epoch", axis: { values: ticks, format: "d" }, scale: { zero: false, nice: false, padding: 10 } };
    const y = { field: "value", type: "quantitative", title: of === "val" ? "validation mean recall (%)" : "training loss", scale: { zero: false } };
    await embed($("curves"), {
      description: `${of === "val" ? "Validation mean recall" : "Training loss"} over epochs`, config: look, data: { values: points }, width: width($("curves"), 1), height: narrow.matches ? 240 : 300,
      layer: [
        { mark: { type: "line", strokeWidth: 1.6 }, encoding: { x, y, color, strokeDash, detail: { field: "seed" } } },
        { mark: { type: "point", filled: true, size: 40, opacity: 0.001 }, encoding: { x, y, color, tooltip: { field: "about" }, detail: { field: "seed" } } },
        { transform: [{ filter: "datum.chosen" }], mark: { type: "point", size: 110, strokeWidth: 2, filled: false }, encoding: { x, y, color, tooltip: { field: "about" }, detail: { field: "seed" } } },
      ],
    }, points.length > 5000);
  }

  async function draw() {
    try {
      await drawChart();
      if (trained.length) await drawCurves();
      document.documentElement.classList.add("js");
    } catch (error) {
      $("explore").hidden = true;  // the static figure stays
      throw error;
    }
  }
  let wait;
  const later = () => { clearTimeout(wait); wait = setTimeout(draw, 40); };
  const known = keys => keys.filter(key => values[key].some(v => v !== null));
  options($("x"), known(X).map(key => [key, titles[key]]));
  options($("y"), known(Y).map(key => [key, titles[key]]));
  if (!$("x").options.length || !$("y").options.length) return;  // nothing is finished yet
  $("explore").hidden = false;
  $("training").hidden = !trained.length;
  for (const id of ["x", "y", "curve"]) $(id).addEventListener("change", later);
  listeners.push(later);
  dark.addEventListener("change", later);
  let before = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== before) { before = innerWidth; later(); } });
  draw();
})();
