// The page of a token shift. Enters: the blocks that report/page_data.py writes (#core, #part-0 …).
// Letters: a an answer, t a token counted over all answers, c a context, row = one of the parts'.
"use strict";

const FILTERS = ["class", "dataset", "token", "from", "to", "query", "id", "word"];
const OR_MORE = 65534, NONE = 65535; // as page_data.py has them
const PRINTED = 50;
const LISTBOX = ["role", "aria-orientation", "aria-label"];
const form = $("filters");

let core; // the header of #core with its arrays, and what `openCore` adds
const state = { context: 0, focus: -1, ...Object.fromEntries(FILTERS.map((f) => [f, ""])) };
let hits = new Int32Array(0); // the tokens that the filters ask for, in order; see `filter`
let isHit, shown; // [T] and [A]: 1 where a token is one of them, and where an answer is shown
const views = []; // [A] {article, text, note, spans}: spans only while the answer is near the view
const near = new Set(); // the answers that are
let printing = false;
const opened = new Map(); // parts, by number

// Opening.

async function inflate(id) {
  const raw = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// Runs of numbers that stand one after another, each from a multiple of four bytes.
function runs(buffer, start, sizes) {
  const kinds = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array };
  return sizes.map(([width, count]) => {
    const run = new kinds[width](buffer, start, count);
    start += Math.ceil((width * count) / 4) * 4;
    return run;
  });
}

async function openCore() {
  const buffer = await inflate("core");
  const size = new DataView(buffer).getUint32(0, true);
  core = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  const arrays = runs(buffer, Math.ceil((4 + size) / 4) * 4, core.arrays.map((a) => a.slice(1)));
  core.arrays.forEach(([name], i) => (core[name] = arrays[i]));
  core.answers = core.answers.map(([id, sample, query, dataset, source, finish, tokens]) =>
    ({ id, sample, query, dataset: dataset ?? "(none)", source, finish, tokens, start: 0 }));
  let start = 0;
  for (const answer of core.answers) {
    answer.start = start;
    start += answer.tokens;
  }
  core.texts = core.pieces.map(visible);
  core.folded = core.pieces.map((piece) => piece.toLowerCase());
  core.queries = core.answers.map((answer) => answer.query.toLowerCase());
  isHit = new Uint8Array(core.token.length);
  shown = new Uint8Array(core.answers.length);
}

// The last place in a rising list whose number is not above x.
function last(list, x, number = (y) => y) {
  let low = 0, high = list.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (number(list[middle]) <= x) low = middle;
    else high = middle - 1;
  }
  return low;
}

// Of answers that start at one place all but the last are empty.
const answerOf = (t) => last(core.answers, t, (answer) => answer.start);

async function readPart(number) {
  if (!opened.has(number)) {
    // The parts stand below the script, and a large page is still being read when it runs.
    if (!$(`part-${number}`)?.nextSibling && document.readyState === "loading")
      await new Promise((done) => document.addEventListener("DOMContentLoaded", done));
    const first = core.answers[core.parts[number]].start;
    const next = core.answers[core.parts[number + 1]]?.start ?? core.token.length;
    const rows = (next - first) * core.contexts.length;
    const buffer = await inflate(`part-${number}`);
    const values = runs(buffer, 0, core.columns.map(([, width, k]) => [width, rows * k]));
    opened.set(number, Object.fromEntries(core.columns.map(([name, , k, step], i) =>
      [name, { values: values[i], k, step }])));
  }
  return opened.get(number);
}

// Every measure of a token under the picked context: numbers, null for none, lists of the top-k.
async function measures(t) {
  const a = answerOf(t);
  const number = last(core.parts, a);
  const part = await readPart(number);
  const { start, tokens } = core.answers[a];
  const before = (start - core.answers[core.parts[number]].start) * core.contexts.length;
  const row = before + state.context * tokens + (t - start);
  return Object.fromEntries(Object.entries(part).map(([name, { values, k, step }]) => {
    const all = Array.from(values.subarray(row * k, (row + 1) * k), (n) =>
      step === null ? n : n === NONE ? null : n === OR_MORE ? Infinity : n * step);
    return [name, name.includes("_top") ? all : all[0]];
  }));
}

// Filters.

// [pieces] 1 where a piece holds what is asked for, in any case; in quotes: where it is just that.
function wantedPieces(text) {
  const quoted = text.length > 1 && text.startsWith('"') && text.endsWith('"');
  if (!quoted) {
    const folded = text.toLowerCase();
    return Uint8Array.from(core.folded, (piece) => piece.includes(folded));
  }
  let exact = text.slice(1, -1);
  try {
    exact = JSON.parse(text); // "\n" and the like
  } catch {} // a text with a quote or a backslash of its own is meant as it stands
  return Uint8Array.from(core.pieces, (piece) => piece === exact);
}

function wordMask(name) {
  const mask = new Uint8Array(core.token.length);
  const wanted = core.words.indexOf(name);
  core.word.forEach((word, i) => { if (word === wanted) mask[core.wordStart[i]] = 1; });
  return mask;
}

// Sets `hits`, `isHit` and `shown` from the state. Without a filter of tokens every token of an
// answer that is shown is counted, and none is marked.
function search() {
  const { token, id, word, query, dataset } = state;
  const pieces = token === "" ? null : wantedPieces(token);
  const words = word === "" ? null : wordMask(word);
  const only = id === "" ? -1 : core.ids.indexOf(Number(id));
  const kind = CLASSES.indexOf(state.class);
  const from = Math.max(Math.ceil(state.from), 0);
  const to = state.to === "" ? Infinity : Math.floor(state.to);
  const some = ["class", "token", "id", "word", "from", "to"].some((name) => state[name] !== "");
  const classes = core.class.subarray(state.context * core.token.length);
  const asked = query.toLowerCase();
  const found = new Int32Array(core.token.length);
  let count = 0, tokens = 0;
  isHit.fill(0);
  core.answers.forEach((answer, a) => {
    shown[a] = (dataset === "" || answer.dataset === dataset) && core.queries[a].includes(asked);
    if (!shown[a]) return;
    tokens += answer.tokens;
    if (!some) return;
    const before = count;
    const end = answer.start + Math.min(answer.tokens, to + 1);
    for (let t = answer.start + from; t < end; t++) {
      if (pieces !== null && !pieces[core.piece[t]]) continue;
      if (words !== null && !words[t]) continue;
      if (id !== "" && core.token[t] !== only) continue;
      if (kind >= 0 && classes[t] !== kind) continue;
      found[count++] = t;
      isHit[t] = 1;
    }
    shown[a] = count > before;
  });
  hits = found.slice(0, count);
  return { some, tokens };
}

function filter() {
  const { some, tokens } = search();
  let answers = 0;
  views.forEach((view, a) => {
    answers += shown[a];
    if (view.article.hidden === Boolean(shown[a])) view.article.hidden = !shown[a];
  });
  const all = plural(views.length, "answer");
  const which = answers === views.length ? all : `${whole(answers)} of ${all}`;
  $("found").textContent = some
    ? `${plural(hits.length, "token")} in ${which}` : `${which}, ${plural(tokens, "token")}`;
  for (const name of ["previous", "next"]) $(name).disabled = hits.length === 0;
  for (const name of FILTERS) if (form.elements[name]) form.elements[name].value = state[name];
  drawChosen();
  views.forEach((view, a) => view.spans && paint(a));
  remember();
}

// The filters that only the list of the most shifted sets.
function drawChosen() {
  const token = core.vocabulary[core.ids.indexOf(Number(state.id))] ?? "?";
  const [kind, text] = state.id === "" ? ["Word", state.word] : [`Token ${state.id}`, token];
  $("chosen").hidden = text === "";
  $("chosen").replaceChildren(`${kind} `, make("bdi", {}, inLine(text)), " ×");
  $("chosen").setAttribute("aria-label", `Remove the filter: ${kind} ${inLine(text)}`);
}

// Only this filter, and its first occurrence.
function choose(filters) {
  for (const name of FILTERS) state[name] = filters[name] ?? "";
  filter();
  if (hits.length) go(hits[0]);
}

// The answers.

function drawList() {
  const samples = core.answers.some((answer) => answer.sample > 0);
  const watch = new IntersectionObserver((entries) => entries.forEach((entry) => {
    const a = Number(entry.target.dataset.a);
    if (entry.isIntersecting) {
      near.add(a);
      fill(a);
      return;
    }
    near.delete(a);
    if (!printing && !entry.target.contains(document.activeElement)) empty(a);
  }), { rootMargin: "100% 0px" });
  core.answers.forEach((answer, a) => {
    const told = [
      answer.dataset === "(none)" ? null : answer.dataset, `id ${answer.id}`,
      samples ? `sample ${answer.sample}` : null, answer.source.replace("_", " "),
      answer.finish && `ended by ${answer.finish}`,
    ].filter(Boolean).map(visible).join(" · ");
    const note = make("span", { class: "classes" });
    const text = make("div", { class: "text", dir: "auto", "data-a": a });
    const article = make("article", { "data-a": a, "aria-labelledby": `q${a}` },
      make("p", { class: "meta" }, make("b", {}, String(a + 1)), ` ${told}`, note),
      make("h3", { dir: "auto", id: `q${a}` }, visible(answer.query)), text);
    views.push({ article, text, note, spans: null });
    if (answer.tokens === 0) text.append(make("em", {}, "The answer is empty."));
    else empty(a);
    // About what it will be, so that the bar of scrolling hardly moves.
    const lines = Math.ceil(text.textContent.length / 68) + 4;
    article.style.containIntrinsicSize = `auto ${lines * 26}px`;
    watch.observe(article);
  });
  $("list").replaceChildren(...views.map((view) => view.article));
}

// Far from the view an answer is plain text: found by the browser's search, and reached by Tab.
function empty(a) {
  const { start, tokens } = core.answers[a];
  if (tokens === 0 || (!views[a].spans && views[a].text.firstChild)) return;
  views[a].spans = null;
  const pieces = core.piece.subarray(start, start + tokens);
  views[a].text.textContent = Array.from(pieces, (piece) => core.texts[piece]).join("");
  for (const name of LISTBOX) views[a].text.removeAttribute(name);
  views[a].text.tabIndex = 0;
}

function fill(a) {
  const view = views[a];
  const { start, tokens } = core.answers[a];
  if (view.spans || tokens === 0) return;
  view.spans = Array.from({ length: tokens }, (_, i) => {
    const text = core.texts[core.piece[start + i]];
    const span = make("span", { role: "option", tabindex: i ? -1 : 0 }, text);
    span.token = start + i;
    return span;
  });
  const told = ["listbox", "horizontal", `Tokens of answer ${a + 1}`];
  LISTBOX.forEach((name, i) => view.text.setAttribute(name, told[i]));
  view.text.removeAttribute("tabindex");
  view.text.replaceChildren(...view.spans);
  paint(a);
}

// The classes of the picked context and the marks of the filters.
function paint(a) {
  const { start, tokens } = core.answers[a];
  const { spans, note } = views[a];
  const classes = core.class.subarray(state.context * core.token.length + start).subarray(0, tokens);
  const count = [0, 0, 0];
  classes.forEach((kind, i) => {
    count[kind]++;
    const t = start + i;
    const name = `t c${kind}${isHit[t] ? " hit" : ""}${t === state.focus ? " now" : ""}`;
    if (spans[i].className !== name) spans[i].className = name;
    const label = `${inLine(core.pieces[core.piece[t]])}, ${CLASSES[kind]}`;
    if (spans[i].ariaLabel !== label) spans[i].ariaLabel = label;
  });
  if (tokens)
    note.textContent = `${count[2]} shifted, ${count[1]} marginal of ${plural(tokens, "token")}`;
}

function go(t) {
  const a = answerOf(t);
  fill(a);
  const span = views[a].spans[t - core.answers[a].start];
  const aside = document.querySelector("aside");
  const centre = () => {
    span.scrollIntoView({ block: "center" });
    // On a wide screen also as far as the panel beside the first answers can be read.
    const below = aside.getBoundingClientRect().top - $("context").closest("section").offsetHeight;
    if (getComputedStyle(aside).position === "sticky" && below > 16)
      scrollBy(0, Math.min(below - 16, span.getBoundingClientRect().top - 120));
  };
  span.focus({ preventScroll: true });
  centre();
  requestAnimationFrame(centre); // answers that came into view have their true heights now
}

function step(forward) {
  if (!hits.length) return;
  const at = last(hits, state.focus);
  if (state.focus < hits[0]) go(forward ? hits[0] : hits[hits.length - 1]);
  else if (forward) go(hits[(at + 1) % hits.length]);
  else go(hits[((hits[at] === state.focus ? at - 1 : at) + hits.length) % hits.length]);
}

// One token.

async function select(t) {
  const before = state.focus < 0 ? null : views[answerOf(state.focus)];
  state.focus = t;
  remember();
  if (before?.spans) paint(answerOf(before.spans[0].token));
  if (t < 0) return detail(t);
  const { spans } = views[answerOf(t)];
  for (const span of spans) span.tabIndex = span.token === t ? 0 : -1;
  for (const span of spans) span.ariaSelected = String(span.token === t);
  paint(answerOf(t));
  return detail(t);
}

const nats = (x) => (x === null ? "–" : x === Infinity ? "≥ 65.5" : x.toFixed(3));
const chance = (x) => (x === null ? null : Math.exp(-x));

let asked = -1; // the token that the panel is to show

async function detail(t) {
  asked = t;
  const panel = $("detail");
  panel.classList.toggle("open", t >= 0);
  if (t < 0) {
    panel.replaceChildren(make("p", { class: "note" },
      "Point at a token, or Tab to an answer and move with the arrow keys."));
    return;
  }
  const m = await measures(t);
  if (asked !== t) return; // another one since
  const a = answerOf(t);
  const kind = core.class[state.context * core.token.length + t];
  const place = `Answer ${a + 1}, position ${t - core.answers[a].start}, ` +
    `id ${core.ids[core.token[t]]}, context ${core.contexts[state.context]}`;
  const close = { type: "button", class: "close", "aria-label": "Close", onclick: () => select(-1) };
  panel.replaceChildren(
    make("button", close, "×"),
    make("h3", {}, make("bdi", { class: `t c${kind}` }, inLine(core.pieces[core.piece[t]])),
      ` ${CLASSES[kind]}`),
    make("p", { class: "note" }, place),
    measureRows(m),
    make("p", { class: "note" }, `KL(aligned ‖ base) ${nats(m.kl_aligned_base)}, ` +
      `KL(base ‖ aligned) ${nats(m.kl_base_aligned)} nats.` + (m.published_rank
      ? ` Published code: rank ${m.published_rank - 1}, KL ${nats(m.published_kl)}, ` +
        `probability ${probability(m.published_probability)}.` : "")),
    make("div", { class: "tops" }, topTable("base", m, core.token[t]),
      topTable("aligned", m, core.token[t])));
  if (t === state.focus)
    $("said").textContent = `Base rank ${whole(m.base_rank)}, ${probability(chance(m.base_surprisal))}`;
}

function measureRows(m) {
  const both = (head, read) => [head, read("base"), read("aligned")];
  const tied = (n) => (n ? `, tied with ${whole(n)}` : "");
  const log = (x) => nats(x).replace("≥ ", "≤ ").replace(/(?=\d)/, "−");
  return table("Measures", ["Measure", "Base", "Aligned"], [
    both("Rank", (model) => whole(m[`${model}_rank`]) + tied(m[`${model}_ties`])),
    both("Probability", (model) => probability(chance(m[`${model}_surprisal`]))),
    both("Log-probability", (model) => log(m[`${model}_surprisal`])),
    both("Entropy", (model) => nats(m[`${model}_entropy`])),
  ]);
}

function topTable(model, m, chosen) {
  const list = m[`${model}_top`];
  const row = (rank, token, surprisal) => {
    const name = make("bdi", {}, inLine(core.vocabulary[token]));
    const own = [make("mark", {}, name), make("span", { class: "hidden" }, " (the answer’s)")];
    return [whole(rank), token === chosen ? own : name, probability(chance(surprisal))];
  };
  const rows = list.map((token, i) => row(i + 1, token, m[`${model}_top_surprisal`][i]));
  if (!list.includes(chosen)) rows.push(row(m[`${model}_rank`], chosen, m[`${model}_surprisal`]));
  return table(`${model === "base" ? "Base" : "Aligned"}, likeliest`, ["#", "Token", "p"], rows,
    { class: list.includes(chosen) ? "top" : "top beyond" });
}

// Keys and pointers.

function lineAway(spans, i, direction) {
  const here = spans[i].getClientRects()[0];
  let best = i, gap = Infinity;
  for (let j = i + direction, line = null; j >= 0 && j < spans.length; j += direction) {
    const there = spans[j].getClientRects()[0];
    if (Math.abs(there.top - here.top) < 4) continue;
    line ??= there.top;
    if (Math.abs(there.top - line) >= 4) break;
    if (Math.abs(there.left - here.left) < gap) [best, gap] = [j, Math.abs(there.left - here.left)];
  }
  return best;
}

function onKey(event) {
  const t = event.target.token;
  if (t === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  const { spans } = views[answerOf(t)];
  const i = t - spans[0].token;
  const onward = getComputedStyle(event.target.parentNode).direction === "rtl" ? -1 : 1;
  const moves = {
    ArrowRight: () => i + onward, ArrowLeft: () => i - onward, Home: () => 0, End: () => spans.length - 1,
    ArrowDown: () => lineAway(spans, i, 1), ArrowUp: () => lineAway(spans, i, -1),
  };
  const commands = {
    n: () => step(true), p: () => step(false),
    "?": () => $("help").showModal(), "/": () => form.elements.token.focus(),
    c: () => pick((state.context + 1) % core.contexts.length), Escape: () => select(-1),
  };
  if (moves[event.key]) spans[moves[event.key]()]?.focus();
  else if (commands[event.key]) commands[event.key]();
  else return;
  event.preventDefault();
}

function listen() {
  const list = $("list");
  list.addEventListener("keydown", onKey);
  list.addEventListener("focusin", ({ target }) => {
    if (target.token !== undefined) select(target.token);
    else if (target.dataset.a) { // the plain text of an answer that was far away
      fill(Number(target.dataset.a));
      views[target.dataset.a].spans[0].focus();
    }
  });
  let where = "";
  list.addEventListener("pointermove", ({ target, screenX, screenY }) => {
    const moved = where !== `${screenX} ${screenY}`; // it, and not the page below it
    where = `${screenX} ${screenY}`;
    if (moved && target.token !== undefined && target.token !== asked) detail(target.token);
  });
  list.addEventListener("pointerleave", () => asked !== state.focus && detail(state.focus));
  form.addEventListener("input", ({ target }) => {
    if (!(target.name in state)) return;
    state[target.name] = target.value;
    filter();
  });
  form.addEventListener("submit", (event) => { event.preventDefault(); step(true); });
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    for (const name of FILTERS) state[name] = "";
    filter();
  });
  $("chosen").addEventListener("click", () => {
    state.id = state.word = "";
    filter();
    form.elements.token.focus();
  });
  $("previous").addEventListener("click", () => step(false));
  $("context").addEventListener("change", ({ target }) => pick(target.selectedIndex));
  $("help-open").addEventListener("click", () => $("help").showModal());
  $("help-close").addEventListener("click", () => $("help").close());
  $("skip").addEventListener("click", (event) => { event.preventDefault(); $("answers").focus(); });
  $("theme").addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
  night.addEventListener("change", () => setTheme(null));
  addEventListener("hashchange", restore);
  addEventListener("beforeprint", beforePrint);
  addEventListener("afterprint", () => {
    printing = false;
    views.forEach(({ article }, a) => {
      article.classList.remove("unprinted");
      if (!near.has(a) && !article.contains(document.activeElement)) empty(a);
    });
  });
}

const night = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (night.matches ? "dark" : "")) === "dark";

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  $("theme").textContent = isDark() ? "Light" : "Dark";
}

function beforePrint() {
  printing = true;
  const found = views.flatMap((_, a) => (shown[a] ? [a] : []));
  const printed = $("print-all").checked ? found : found.slice(0, PRINTED);
  views.forEach(({ article }) => article.classList.add("unprinted"));
  for (const a of printed) {
    fill(a);
    views[a].article.classList.remove("unprinted");
  }
  const filters = FILTERS.filter((name) => state[name] !== "")
    .map((name) => `${name} ${visible(state[name])}`);
  $("printed").textContent = `Context ${core.contexts[state.context]}; ` +
    `${filters.length ? `filters: ${filters.join(", ")}` : "no filters"}. ` +
    `Printed: ${whole(printed.length)} of ${plural(found.length, "answer")} found.`;
}

// Context and address.

function pick(context) {
  state.context = context;
  $("context").selectedIndex = context;
  drawSummary();
  drawMost();
  filter(); // a class is one under the context
  if (state.focus >= 0) detail(state.focus);
}

let timer;

// The address follows, a moment later: browsers limit how often it may change.
function remember() {
  clearTimeout(timer);
  timer = setTimeout(() => {
    const told = new URLSearchParams({ context: core.contexts[state.context] });
    for (const name of FILTERS) if (state[name] !== "") told.set(name, state[name]);
    if (state.focus >= 0) {
      const a = answerOf(state.focus);
      told.set("answer", a + 1);
      told.set("position", state.focus - core.answers[a].start);
    }
    history.replaceState(null, "", `#${told}`);
  }, 250);
}

function restore() {
  const told = new URLSearchParams(location.hash.slice(1));
  for (const name of FILTERS) state[name] = told.get(name) ?? "";
  // What no control of the page can say is no filter.
  if (!CLASSES.includes(state.class)) state.class = "";
  for (const name of ["from", "to"]) if (!/^\d+$/.test(state[name])) state[name] = "";
  pick(Math.max(core.contexts.indexOf(told.get("context")), 0));
  const answer = core.answers[Number(told.get("answer")) - 1];
  const position = Number(told.get("position") ?? 0);
  if (answer && position >= 0 && position < answer.tokens) go(answer.start + position);
}

async function start() {
  if (!("DecompressionStream" in window))
    throw new Error("this browser lacks DecompressionStream; open the page in one of 2023 or later.");
  await openCore();
  const { summary, contexts, answers } = core;
  const empties = summary.empty_answers ? ` (${whole(summary.empty_answers)} empty)` : "";
  $("counts").textContent = `${plural(answers.length, "answer")}${empties} · ${plural(core.token.length, "token")} · ` +
    plural(contexts.length, "context");
  $("context").append(...contexts.map((name) => make("option", {}, name)));
  const datasets = [...new Set(answers.map((answer) => answer.dataset))].sort();
  form.elements.dataset.append(...datasets.map((name) => make("option", {}, name)));
  $("datasets").hidden = datasets.length < 2;
  setTheme(null);
  listen();
  drawList();
  detail(-1);
  restore();
  $("problem").hidden = true;
  performance.mark("usable");
}

addEventListener("unhandledrejection", ({ reason }) => {
  $("problem").hidden = false;
  $("problem").textContent = `The page cannot be shown: ${reason.message}`;
});
start();
