"use strict";
// What two rows found for the same queries, side by side, and the classes that they mistake.
(() => {
  const { $, el, data, options, name } = bench;
  const FIRST = 6, STEP = 12;
  let limit = FIRST;
  if (!data.galleries.length) return;
  const gallery = () => data.galleries[Number($("gallery-set").value)];

  function picture(g, image, classes) {
    const [file, , url] = g.images[image];
    return url ? el("img", { src: url, alt: file, title: file, class: classes, loading: "lazy" }) : null;
  }
  function item(g, side, index, query) {
    const image = side === "t2i" ? index : g.captions[index][1];
    const right = side === "t2i" ? g.captions[query][1] === index : image === query;
    const [file, label, url] = g.images[image];
    const inside = side === "t2i"
      ? [picture(g, image, null), url ? null : el("span", {}, file)]
      : [el("span", {}, g.captions[index][0])];
    return el("li", { class: right ? "hit right" : "hit wrong" }, ...inside,
      el("span", { class: "class" }, el("span", { class: right ? "good" : "bad" }, right ? "✓ right" : "✗ wrong"), label ? ` ${label}` : ""));
  }
  const finds = (g, row, side, k) => row[side][k].some(index => side === "t2i" ? g.captions[g.queries.t2i[k]][1] === index : g.captions[index][1] === g.queries.i2t[k]);

  function draw() {
    const g = gallery(), side = $("gallery-side").value, only = $("gallery-only").value;
    const a = g.rows[Number($("gallery-a").value)], b = g.rows[Number($("gallery-b").value)];
    const pairs = g.queries[side].map((query, k) => ({ query, k, a: finds(g, a, side, k), b: finds(g, b, side, k) }))
      .filter(p => only === "a" ? p.a && !p.b : only === "b" ? p.b && !p.a : only === "both" ? p.a && p.b : only === "neither" ? !p.a && !p.b : true);
    const [one, other] = [Number($("gallery-a").value), Number($("gallery-b").value)], wins = g.wins[side], what = side === "t2i" ? "captions" : "images";
    $("gallery-wins").textContent = `Of all ${g.counts[side].toLocaleString("en-US")} ${what}, A finds a right one among its first five where B does not for ${wins[one][other]}, and B where A does not for ${wins[other][one]}.`;
    $("gallery-note").textContent = `Shown are the ${g.queries[side].length} ${what} in which the rows differ most: an illustration, not a sample. `
      + "Of each row, the run with the lowest seed is shown. Right is the caption's own image, and the image's own captions."
      + (g.left_out ? ` ${g.left_out} further rows are left out.` : "")
      + (Object.values(g.images).some(([, , url]) => url) ? "" : " The pictures are not on the machine that made this page: names stand for them.");
    $("gallery-queries").replaceChildren(...pairs.slice(0, limit).map(p => el("div", { class: "gallery-query" },
      side === "t2i" ? el("p", {}, `“${g.captions[p.query][0]}” `, el("span", { class: "note" }, g.images[g.captions[p.query][1]][1] ?? "")) : el("p", {}, picture(g, p.query, "query-image"), `${g.images[p.query][0]} `, el("span", { class: "note" }, g.images[p.query][1] ?? "")),
      el("div", { class: "sides" }, ...[["A", a], ["B", b]].map(([letter, row]) => el("div", { class: "side" },
        el("h4", {}, `${letter}: ${name(row.row)}`), el("ol", { class: side === "t2i" ? "hits pictures" : "hits texts" }, ...row[side][p.k].map(index => item(g, side, index, p.query)))))))));
    if (!pairs.length) $("gallery-queries").append(el("p", { class: "note" }, "No such query among those that are here."));
    $("gallery-more").hidden = pairs.length <= limit;
    $("gallery-confused").replaceChildren(...[["A", a], ["B", b]].map(([letter, row]) => {
      const rows = row.confused[side];
      return el("div", {}, rows.length ? el("table", { class: "confused" }, el("caption", { class: "name" }, `${letter}: ${name(row.row)}`),
        el("thead", {}, el("tr", {}, ...["Class", "First find is of", "Times"].map((text, k) => el("th", { scope: "col", class: k < 2 ? "name" : null }, text)))),
        el("tbody", {}, ...rows.map(([wanted, got, count, of]) => el("tr", {}, el("th", { scope: "row", class: "name" }, wanted), el("td", { class: "name" }, got), el("td", {}, `${count} of ${of}`)))))
        : el("p", { class: "note" }, `${letter}: none, or the dataset names no classes.`));
    }));
  }
  function fill() {
    const g = gallery(), pairs = g.rows.map((row, k) => [k, name(row.row)]), recall = bench.values.mean_recall;
    options($("gallery-a"), pairs);
    options($("gallery-b"), pairs);
    const order = g.rows.map((_, k) => k).sort((i, j) => (recall[g.rows[j].row] ?? 0) - (recall[g.rows[i].row] ?? 0));
    $("gallery-a").value = order[0];
    const other = order.find(k => bench.values.method[g.rows[k].row] !== bench.values.method[g.rows[order[0]].row]);
    $("gallery-b").value = other ?? order[Math.min(1, order.length - 1)];
    draw();
  }
  options($("gallery-set"), data.galleries.map((g, k) => [k, g.title]));
  $("gallery-sets").hidden = data.galleries.length < 2;
  $("gallery-set").addEventListener("change", () => { limit = FIRST; fill(); });
  for (const id of ["side", "a", "b", "only"]) $(`gallery-${id}`).addEventListener("change", () => { limit = FIRST; draw(); });
  $("gallery-more").firstElementChild.addEventListener("click", () => { limit += STEP; draw(); });
  $("gallery").hidden = false;
  fill();
})();
