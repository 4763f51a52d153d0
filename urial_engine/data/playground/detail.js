// The measures of one token, and the keys and pointers that choose it.
import { $, CLASSES, classOf, inLine, make, nats, probability, whole } from "./tools.js";

let focused = null; // the span that keys or a tap have chosen
let pointed = null; // the span under the pointer, which is shown while it is there

const cells = (tag, values) => values.map((x) => make(tag, { scope: tag === "th" ? "col" : null }, x));

function table(caption, heads, rows, attributes = {}) {
  return make("table", attributes,
    make("caption", {}, caption),
    make("thead", {}, make("tr", {}, cells("th", heads))),
    make("tbody", {}, rows.map(([first, ...rest]) =>
      make("tr", {}, make("th", { scope: "row" }, first), cells("td", rest)))));
}

function measures({ own, other }, told) {
  const ranks = (m) => whole(m.rank) + (m.ties ? `, tied with ${whole(m.ties)}` : "");
  const kept = [[own, told.answers], [other, told.shades]].filter(([m]) => m);
  const row = (head, read) => [head, ...kept.map(([m]) => read(m))];
  return table("Measures", ["Measure", ...kept.map(([, name]) => name)], [
    row("Rank", ranks),
    row("Probability", (m) => probability(m.logprob)),
    row("Log-probability", (m) => nats(m.logprob)),
  ]);
}

// What else the answering model could have said.
function likeliest(token, told) {
  const row = ({ token: text, token_id: id, logprob }, i) => {
    const name = make(id === token.id ? "mark" : "span", {}, make("bdi", {}, inLine(text)));
    return [whole(i + 1), name, probability(logprob)];
  };
  return table(`Likeliest under ${told.answers}`, ["#", "Token", "p"], token.own.top.map(row),
    { class: "tops" });
}

function one(token, { number, told }) {
  const kind = token.other ? classOf(token.other.rank) : -1;
  return [
    make("h3", {}, make("bdi", { class: `t c${kind}` }, inLine(token.text)),
      kind < 0 ? "" : ` ${CLASSES[kind]}`),
    make("p", { class: "note" }, `Answer ${number}, position ${token.position}, id ${token.id}`),
    token.own || token.other ? measures(token, told) : null,
    token.own?.top?.length ? likeliest(token, told) : null,
  ];
}

function draw(span) {
  $("detail").classList.toggle("open", span !== null);
  const close = { type: "button", class: "close", "aria-label": "Close", onclick: () => choose(null) };
  $("token").replaceChildren(...(span === null
    ? [make("p", { class: "note" }, "Point at a token, tap it, or Tab to an answer and move with the arrow keys.")]
    : [make("button", close, "×"), ...span.tokens.flatMap((token) => one(token, span.parentNode.answer))]
  ).filter(Boolean));
}

export function choose(span) {
  focused?.classList.remove("now");
  focused = span;
  pointed = null;
  if (span) {
    for (const other of span.parentNode.children) {
      const here = other === span;
      if (here !== (other.tabIndex === 0)) other.tabIndex = here ? 0 : -1;
      other.ariaSelected = String(here);
    }
    span.classList.add("now");
  }
  draw(span);
}

// The span of the line above or below that stands nearest.
function lineAway(spans, i, direction) {
  const here = spans[i].getClientRects()[0];
  let best = i, gap = Infinity;
  for (let j = i + direction, line = null; j >= 0 && j < spans.length; j += direction) {
    const there = spans[j].getClientRects()[0];
    if (!there || Math.abs(there.top - here.top) < 4) continue;
    line ??= there.top;
    if (Math.abs(there.top - line) >= 4) break;
    if (Math.abs(there.left - here.left) < gap) [best, gap] = [j, Math.abs(there.left - here.left)];
  }
  return best;
}

function shiftedAway(spans, i, direction) {
  for (let j = i + direction; j >= 0 && j < spans.length; j += direction)
    if (spans[j].classList.contains("c2")) return j;
  return i;
}

function onKey(event) {
  const span = event.target;
  if (!span.tokens || event.ctrlKey || event.metaKey || event.altKey) return;
  const { spans } = span.parentNode.answer;
  const i = spans.indexOf(span);
  const onward = getComputedStyle(span.parentNode).direction === "rtl" ? -1 : 1;
  const moves = {
    ArrowRight: () => i + onward, ArrowLeft: () => i - onward,
    ArrowDown: () => lineAway(spans, i, 1), ArrowUp: () => lineAway(spans, i, -1),
    Home: () => 0, End: () => spans.length - 1,
    n: () => shiftedAway(spans, i, 1), p: () => shiftedAway(spans, i, -1),
  };
  if (event.key === "Escape") {
    choose(null);
    $("message").focus();
  } else if (moves[event.key]) spans[moves[event.key]()]?.focus();
  else return;
  event.preventDefault();
}

export function listen(log) {
  draw(null);
  log.addEventListener("keydown", onKey);
  log.addEventListener("focusin", ({ target }) => target.tokens && choose(target));
  log.addEventListener("pointermove", ({ target, pointerType }) => {
    if (pointerType === "touch" || !target.tokens || target === pointed) return; // a finger scrolls
    pointed = target;
    draw(target);
  });
  log.addEventListener("pointerleave", () => {
    if (pointed) draw(focused);
    pointed = null;
  });
}
