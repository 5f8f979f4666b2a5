"use strict";
// The page's table, filters and comparison. `bench` is what the page's scripts share; all text goes in as text nodes.
window.bench = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { columns, values, spread, best, marks, settings } = data.table;
  const rows = values.method.map((_, i) => i);
  const bold = Object.fromEntries(Object.entries(best).map(([key, list]) => [key, new Set(list)]));
  const titles = Object.fromEntries(columns.map(c => [c.key, c.title]));
  const units = Object.fromEntries(columns.map(c => [c.key, c.unit]));
  const state = { query: "", picked: {}, sort: null, down: true, limit: 50, pins: [], chosen: false };
  const passedOver = new Set(data.table.passed_over);
  const shown = new Set(columns.filter(c => c.shown).map(c => c.key));
  const listeners = [];
  const CHOICES = ["dataset", "backbone", "method"], MOST_PINS = 12, STEP = 50;

  const $ = id => document.getElementById(id);
  const el = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter(child => child !== null));
    return made;
  };
  const options = (select, pairs) => select.replaceChildren(...pairs.map(([value, text]) => el("option", { value }, text)));

  const FORMATS = {
    recall: v => v.toFixed(2),
    count: v => v.toLocaleString("en-US"),
    percent: v => (v >= 10 ? v.toFixed(1) : v === 0 ? "0" : Number(v.toPrecision(2)).toString()) + "%",
    seconds: v => v < 60 ? `${v.toFixed(1)} s` : v < 3600 ? `${(v / 60).toFixed(1)} min` : `${(v / 3600).toFixed(2)} h`,
    bytes: v => v >= 1e9 ? `${(v / 1e9).toFixed(2)} GB` : `${(v / 1e6).toFixed(0)} MB`,
    flops: v => v >= 1e9 ? `${(v / 1e9).toPrecision(3)} G` : `${(v / 1e6).toPrecision(3)} M`,
    text: v => v,
  };
  const format = (key, value) => value === null || value === undefined ? "–" : FORMATS[units[key]](value);
  const mark = (key, i) => marks[key]?.[i] ?? "";
  const label = i => [values.method[i], values.config[i]].filter(Boolean).join(" ");
  const block = i => `${values.dataset[i]}, ${values.backbone[i]}`;
  const many = new Set(rows.map(block)).size > 1;
  const name = i => many ? `${label(i)} (${block(i)})` : label(i);

  // Words are looked for in the names and in the settings in which a row differs from most.
  const haystack = rows.map(i => [
    ...["dataset", "backbone", "method", "config", "recipe"].map(key => values[key][i]),
    ...Object.entries(settings.rows[i]).map(([key, value]) => `${key}=${value}`),
  ].join(" ").toLowerCase());
  const visible = () => {
    const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
    return rows.filter(i => words.every(word => haystack[i].includes(word))
      && !(state.chosen && passedOver.has(i)) && CHOICES.every(key => !state.picked[key] || values[key][i] === state.picked[key]));
  };
  const sorted = list => {
    if (!state.sort) return list;
    const column = values[state.sort], text = units[state.sort] === "text", turn = state.down ? -1 : 1;
    return [...list].sort((a, b) => text
      ? turn * column[a].localeCompare(column[b], "en", { numeric: true })
      : (column[a] === null) - (column[b] === null) || turn * (column[a] - column[b]));  // dashes last, either way
  };

  function drawTable() {
    const list = sorted(visible()), here = columns.filter(c => shown.has(c.key));
    const head = here.map(c => el("th", {
      role: "columnheader", scope: "col", class: c.unit === "text" && c.key !== "seeds" ? "name" : null, title: c.about || null,
      "aria-sort": state.sort === c.key ? (state.down ? "descending" : "ascending") : null,
    }, el("button", { type: "button", "data-key": c.key, onclick: () => sortBy(c.key) }, c.title)));
    const body = list.slice(0, state.limit).map(i => el("tr", { role: "row", "data-row": i, class: state.pins.includes(i) ? "pinned" : null },
      ...here.map(c => cell(c, i)), el("td", { role: "cell", class: "tick", "data-label": "Compare" }, el("input", {
        type: "checkbox", "aria-label": `Compare ${name(i)}`, checked: state.pins.includes(i), onchange: () => pin(i),
      }))));
    $("table").replaceChildren(el("table", { class: "folds", role: "table", "aria-labelledby": "table-title" },
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...head, el("th", { role: "columnheader", scope: "col", title: "tick to compare rows" }, "Compare"))),
      el("tbody", { role: "rowgroup" }, ...body)));
    $("count").textContent = list.length === rows.length ? `${rows.length} rows` : `${list.length} of ${rows.length} rows`;
    $("more-rows").hidden = list.length <= state.limit;
    $("sort").value = state.sort ?? "";
  }
  function cell(column, i) {
    const { key, unit, title } = column, value = values[key][i];
    const attributes = { role: "cell", "data-label": title };
    if (key === "method") return el("th", { role: "rowheader", scope: "row", class: "name" }, value);
    if (unit === "text" && key !== "seeds") return el("td", { ...attributes, class: value ? "name" : "name empty" }, value + mark(key, i) || "–");
    const around = spread[key]?.[i] ?? null;
    const classes = ["number", bold[key]?.has(i) && "best", key === "seeds" && mark(key, i).includes("†") && "bad"];
    return el("td", { ...attributes, class: classes.filter(Boolean).join(" ") },
      format(key, value), mark(key, i) ? el("span", { class: "mark" }, mark(key, i)) : null, around === null ? null : el("small", {}, `± ${format(key, around)}`));
  }
  function sortBy(key) {
    state.down = state.sort === key ? !state.down : units[key] !== "text";
    state.sort = key;
    const had = document.activeElement?.dataset?.key;
    drawTable();
    if (had) document.querySelector(`#table button[data-key="${had}"]`)?.focus();
  }

  function pin(i) {
    state.pins = state.pins.includes(i) ? state.pins.filter(each => each !== i) : [...state.pins, i].slice(-MOST_PINS);
    const ticked = document.activeElement?.closest?.("tr[data-row]")?.dataset.row;
    changed();
    if (ticked) document.querySelector(`#table tr[data-row="${ticked}"] input`)?.focus();
  }
  const setting = (i, key) => key in settings.rows[i] ? settings.rows[i][key] : settings.common[key] ?? null;
  function drawCompared() {
    $("compare").hidden = !state.pins.length;
    if (!state.pins.length) return $("compared").replaceChildren();
    const keys = [...new Set(state.pins.flatMap(i => Object.keys(settings.rows[i])))].sort()
      .filter(key => new Set(state.pins.map(i => setting(i, key))).size > 1);
    const lines = columns.filter(c => !["method", "config"].includes(c.key) && (shown.has(c.key) || c.unit !== "text"))
      .map(c => [c.title, state.pins.map(i => format(c.key, values[c.key][i]) + mark(c.key, i)
        + (spread[c.key]?.[i] != null ? ` ± ${format(c.key, spread[c.key][i])}` : ""))]);
    lines.push(...keys.map(key => [key, state.pins.map(i => setting(i, key) ?? "–")]));
    $("compared").replaceChildren(
      el("div", { class: "wide", tabindex: 0 }, el("table", { class: "compare" },
        el("thead", {}, el("tr", {}, el("td"), ...state.pins.map(i => el("th", { scope: "col", class: "name" }, name(i), " ",
          el("button", { type: "button", class: "drop", "aria-label": `Remove ${name(i)}`, onclick: () => pin(i) }, "✕"))))),
        el("tbody", {}, ...lines.map(([title, cells]) => el("tr", {}, el("th", { scope: "row", class: "name" }, title), ...cells.map(text => el("td", { class: "name" }, text))))))),
      el("p", {}, el("button", { type: "button", onclick: () => { state.pins = []; changed(); } }, "Remove all")));
  }

  function changed() { drawTable(); drawCompared(); remember(); for (const each of listeners) each(); }

  // While a sweep runs the page loads itself again; what was chosen stays.
  const memory = `petl-bench ${location.pathname}`;
  function remember() {
    if (!data.live) return;
    const { query, picked, sort, down, chosen } = state;
    try { sessionStorage.setItem(memory, JSON.stringify({ query, picked, sort, down, chosen, pins: state.pins.map(name) })); } catch { /* no storage */ }
  }
  function recall() {
    try {
      const { pins, ...rest } = JSON.parse(sessionStorage.getItem(memory)) ?? { pins: [] };
      Object.assign(state, rest, { pins: rows.filter(i => pins.includes(name(i))) });
    } catch { /* no storage, or of an older page */ }
  }

  function start() {
    if (data.live) { recall(); setInterval(() => { remember(); location.reload(); }, 1000 * data.live); }
    for (const key of CHOICES) {
      const found = [...new Set(values[key])];
      if (found.length < 2) continue;
      const select = el("select", { id: `pick-${key}`, onchange: () => { state.picked[key] = select.value; state.limit = STEP; changed(); } });
      options(select, [["", `all (${found.length})`], ...found.map(text => [text, text])]);
      select.value = state.picked[key] ?? "";
      $("choices").append(el("label", {}, `${titles[key]} `, select));
    }
    options($("sort"), [["", "as in the report"], ...columns.map(c => [c.key, c.title])]);
    $("query").value = state.query;
    $("chosen").checked = state.chosen;
    $("chosen-label").hidden = !passedOver.size;
    $("chosen").addEventListener("change", () => { Object.assign(state, { chosen: $("chosen").checked, limit: STEP }); changed(); });
    let wait;
    $("query").addEventListener("input", () => {
      clearTimeout(wait);
      wait = setTimeout(() => { state.query = $("query").value; state.limit = STEP; changed(); }, rows.length > 2000 ? 250 : 60);
    });
    $("sort").addEventListener("change", () => { state.sort = null; if ($("sort").value) sortBy($("sort").value); else drawTable(); });
    $("turn").addEventListener("click", () => { if (state.sort) sortBy(state.sort); });
    $("filters").addEventListener("submit", event => event.preventDefault());
    $("filters").addEventListener("reset", () => { Object.assign(state, { query: "", picked: {}, sort: null, limit: STEP, chosen: false }); setTimeout(changed); });
    $("more-rows").firstElementChild.addEventListener("click", () => { state.limit += 4 * STEP; drawTable(); });
    $("columns").append(...columns.filter(c => c.key !== "method").map(c => el("label", {}, el("input", {
      type: "checkbox", checked: shown.has(c.key), "data-key": c.key,
      onchange: event => { event.target.checked ? shown.add(c.key) : shown.delete(c.key); drawTable(); drawCompared(); },
    }), ` ${c.title}`)));
    for (const id of ["filters", "picker"]) $(id).hidden = false;
    drawTable();
    drawCompared();
  }
  return { $, data, rows, values, spread, titles, units, settings, state, el, options, format, label, block, many, name, visible, pin, listeners, start };
})();
bench.start();
