// What stands above the answers: tables, plots and the lists of what is most shifted, all from
// the summary. Needs tools.js.
"use strict";

function shareBar(m) {
  let x = 0;
  const bar = make("svg", { class: "share", role: "img", "aria-label": "the shares as a bar" });
  for (const name of [...CLASSES].reverse()) {
    const share = typeof m[name] === "number" ? m[name] : m[name].value; // published ones are bare
    const value = 100 * (share ?? 0);
    const place = { x: `${x}%`, width: `${value}%`, height: "100%" };
    bar.append(make("rect", { class: `c${CLASSES.indexOf(name)}`, ...place }));
    x += value;
  }
  return bar;
}

const MEASURES = [
  ["tokens", "Tokens", whole],
  ["unshifted", "Unshifted", percent],
  ["marginal", "Marginal", percent],
  ["shifted", "Shifted", percent],
  ["kl_aligned_base", "KL(aligned ‖ base), nats", fixed(3)],
  ["kl_base_aligned", "KL(base ‖ aligned), nats", fixed(3)],
  ["base_probability", "Base probability", percent],
  ["aligned_probability", "Aligned probability", percent],
  ["median_rank", "Median rank", (x) => whole(x)],
  ["share", "Of all tokens", percent],
  ["share_of_shifted", "Of shifted tokens", percent],
];

function measureTable(caption, first, rows, only) {
  const kept = MEASURES.filter(([name]) => only.includes(name));
  const heads = [first, make("span", { class: "hidden" }, "Shares"), ...kept.map(([, head]) => head)];
  return table(caption, heads, rows.map(([name, m]) =>
    [name, shareBar(m), ...kept.map(([key, , format]) => band(m[key] ?? null, format))]));
}

const PLAIN = ["tokens", ...CLASSES, "kl_aligned_base", "kl_base_aligned", "base_probability",
  "aligned_probability", "median_rank"];

function drawSummary() {
  const { summary } = core;
  const own = summary.contexts[state.context];
  const mark = (c, name) => (c === state.context ? make("strong", {}, name) : name);
  const shares = summary.contexts.map((x, c) => [mark(c, x.name), x.overall]);
  const paper = (summary.published_ratios ?? []).map((p) =>
    [`${p.base} → ${p.aligned}, published`, p]);
  const draws = summary.bootstrap;
  $("summary").replaceChildren(
    make("h2", {}, "Class shares"),
    make("p", { class: "note" }, `By context. Brackets: ${100 * draws.confidence} % intervals from ` +
      `${whole(draws.resamples)} resamples of ${draws.over}, seed ${draws.seed}.`),
    measureTable("Class shares and measures by context", "Context", shares, PLAIN),
    ...(paper.length ? [
      make("h3", {}, "What the paper reports of this pair"),
      make("p", { class: "note" }, "arXiv 2312.01552, section 2: as its own code counts (--paper), " +
        "with prompts of its own. Not the measures of the table above."),
      measureTable("What the paper reports", "Models", paper, ["unshifted", "marginal", "shifted"]),
    ] : []),
    ...(own.by_dataset.length ? [make("h3", {}, "By data set"), measureTable(
      `By data set, ${own.name}`, "Data set", own.by_dataset.map((d) => [d.dataset, d]), PLAIN)] : []),
    make("h2", {}, "By position in the answer"),
    make("p", { class: "note" }, "Positions count from 0; from 4 on a range is as long as its start. " +
      "Bold: the chosen context with its interval; thin: the others."),
    make("div", { class: "plots" }, sharesByPosition(own), ...[
      ["kl_aligned_base", "Mean KL(aligned ‖ base), nats", fixed(2)],
      ["base_probability", "Mean base probability", percent],
    ].map((measure) => lineByPosition(own, ...measure))),
    ...(own.groups.length ? [make("h2", {}, "Groups of tokens"), measureTable(
      `Groups by the lexicon, ${own.name}`, "Group", own.groups.map((g) => [g.group, g]),
      ["tokens", "share", ...CLASSES, "share_of_shifted"])] : []),
    ...(own.published ? publishedTables(own.published) : []),
    ...(summary.diversity
      ? [make("h2", {}, "Diversity of the answers"), ...anything(summary.diversity)] : []));
}

function publishedTables(own) {
  const { tokens, without_counterpart: without, exact, published, difference, agreement } = own;
  const kept = MEASURES.filter(([name]) => name in exact);
  const rows = kept.map(([name, head, format]) =>
    [head, ...[exact, published, difference].map((side) => band(side[name], format))]);
  return [
    make("h2", {}, "In the published code’s conventions"),
    make("p", { class: "note" }, `Over ${plural(tokens, "token")} that both have; ` +
      `${whole(without)} have no counterpart there. Its rank is that of the aligned model’s ` +
      "first choice among the base’s ten likeliest, by their texts; its probabilities are shares of the thirty likeliest."),
    make("div", { class: "pair" },
      table("Exact and published", ["Measure", "Exact", "Published", "Difference"], rows),
      make("div", {},
        table("Tokens by both classes", ["Exact ╲ published", ...agreement.classes],
          agreement.classes.map((name, i) => [name, ...agreement.counts[i].map(whole)])),
        make("p", { class: "note" }, "Of one class in both: ", band(agreement.share, percent)))),
  ];
}

// For what has no fixed form: numbers and texts by name, lists of rows as tables.
function anything(value) {
  const isBand = (x) => x === null || typeof x !== "object" || "value" in x;
  const say = (x) =>
    ["string", "boolean"].includes(typeof x) ? `${x}` : band(x, (n) => `${+n.toPrecision(4)}`);
  const name = (key) => key.replaceAll("_", " ");
  const plain = Object.entries(value).filter(([, x]) => isBand(x));
  const facts = plain.length
    ? [make("dl", { class: "about" }, plain.map(([key, x]) =>
        make("div", {}, make("dt", {}, name(key)), make("dd", {}, ...[say(x)].flat()))))]
    : [];
  return facts.concat(Object.entries(value).filter(([, x]) => !isBand(x)).map(([key, x]) => {
    if (!Array.isArray(x)) return make("div", {}, make("h3", {}, name(key)), ...anything(x));
    const keys = [...new Set(x.flatMap(Object.keys))];
    const rows = table(name(key), keys.map(name), x.map((row) => keys.map((k) => say(row[k] ?? null))));
    const folded = make("summary", {}, `${name(key)}, ${plural(x.length, "row")}`);
    return x.length <= 20 ? rows : make("details", {}, folded, rows);
  }));
}

// Plots.

const BOX = { left: 42, right: 334, top: 10, bottom: 170 };
const range = ({ from, to }) => (to - from === 1 ? `${from}` : `${from}–${to - 1}`);

function axes(bins, top, format) {
  const y = (value) => BOX.bottom - ((BOX.bottom - BOX.top) * value) / top;
  const step = (BOX.right - BOX.left) / Math.max(bins.length, 1);
  const x = (i) => BOX.left + step * (i + 0.5);
  const frame = make("g", { class: "axes" });
  for (const value of [0, top / 2, top]) {
    frame.append(make("line", { x1: BOX.left, x2: BOX.right, y1: y(value), y2: y(value) }),
      make("text", { x: BOX.left - 6, y: y(value) + 4, "text-anchor": "end" }, format(value)));
  }
  bins.forEach((bin, i) => {
    const place = { x: x(i), y: BOX.bottom + 16, "text-anchor": "middle" };
    frame.append(make("text", place, String(bin.from)));
  });
  const middle = { x: (BOX.left + BOX.right) / 2, y: BOX.bottom + 34, "text-anchor": "middle" };
  frame.append(make("text", middle, "position (start of the range)"));
  return { x, y, step, frame };
}

function figure(title, drawn, alternative) {
  const label = `${title} by position; the table below has the numbers`;
  const image = make("svg", { viewBox: "0 0 340 208", role: "img", "aria-label": label }, ...drawn);
  return make("figure", {}, make("figcaption", {}, title), image,
    make("details", {}, make("summary", {}, "Table"), alternative));
}

function sharesByPosition(own) {
  const bins = own.by_position;
  const { x, y, step, frame } = axes(bins, 1, (v) => `${100 * v} %`);
  const bars = bins.flatMap((bin, i) => {
    let base = 0;
    return [2, 1, 0].map((k) => {
      const value = bin[CLASSES[k]].value ?? 0;
      const rect = make("rect", { class: `c${k}`, x: x(i) - step * 0.42, width: step * 0.84,
        y: y(base + value), height: Math.max(y(base) - y(base + value), 0) },
      make("title", {}, `${range(bin)}: ${CLASSES[k]} ${percent(value)}`));
      base += value;
      return rect;
    });
  });
  const rows = bins.map((bin) =>
    [range(bin), whole(bin.tokens), ...CLASSES.map((k) => band(bin[k], percent))]);
  return figure("Classes", [frame, ...bars],
    table(`Classes by position, ${own.name}`, ["Position", "Tokens", ...CLASSES], rows));
}

function lineByPosition(own, key, title, format) {
  const others = core.summary.contexts.filter((context) => context !== own);
  const bins = own.by_position;
  const values = core.summary.contexts.flatMap((context) => context.by_position)
    .map((bin) => bin[key].value ?? 0);
  const most = Math.max(...values, ...bins.map((bin) => bin[key].high ?? 0), 1e-3);
  const ten = 10 ** Math.floor(Math.log10(most));
  const top = ten * [1, 2, 4, 5, 10].find((m) => m * ten >= most * 0.999);
  const { x, y, frame } = axes(bins, top, (v) =>
    format === percent ? `${+(100 * v).toPrecision(3)} %` : `${+v.toPrecision(3)}`);
  const path = (list, read) => list
    .map((bin, i) => [x(i), read(bin[key])])
    .filter(([, value]) => value !== null)
    .map(([px, value]) => `${px.toFixed(1)},${y(value).toFixed(1)}`);
  const certain = bins.map((bin) => (bin[key].low === null ? { [key]: { low: null, high: null } } : bin));
  const edge = [...path(certain, (b) => b.high), ...path(certain, (b) => b.low).reverse()];
  const line = (context, kind) => {
    const d = `M${path(context.by_position, (b) => b.value).join("L") || "0,0"}`;
    return make("path", { class: kind, d }, make("title", {}, context.name));
  };
  const dots = bins.filter((bin) => bin[key].value !== null).map((bin) =>
    make("circle", { cx: x(bins.indexOf(bin)), cy: y(bin[key].value), r: 2.6 },
      make("title", {}, `${range(bin)}: ${format(bin[key].value)}`)));
  const interval = { class: "interval", d: edge.length ? `M${edge.join("L")}Z` : "M0,0" };
  const drawn = [frame, make("path", interval), ...others.map((context) => line(context, "other")), line(own, "own"), ...dots];
  const rows = bins.map((bin) => [range(bin), whole(bin.tokens), band(bin[key], format)]);
  return figure(title, drawn,
    table(`${title}, by position, ${own.name}`, ["Position", "Tokens", "Mean"], rows));
}

// Most shifted.

function drawMost() {
  const own = core.summary.contexts[state.context];
  const heads = ["Shifted", "Ratio", "Lift"];
  const list = (caption, entries, kind) => table(caption, [caption.slice(0, -1), ...heads],
    entries.map((entry) => {
      const text = entry.token ?? entry.word;
      const value = kind === "id" ? String(entry.token_id) : entry.word;
      const name = make("bdi", {}, inLine(text));
      const act = { type: "button", class: "entry", onclick: () => choose({ [kind]: value }) };
      return [make("button", act, name),
        [whole(entry.count), make("small", {}, ` of ${whole(entry.occurrences)}`)],
        band(entry.ratio, percent), band(entry.lift, fixed(1))];
    }));
  $("most-lists").replaceChildren(
    list("Tokens", own.most_shifted, "id"), list("Words", own.most_shifted_words, "word"));
}
