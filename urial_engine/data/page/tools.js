// What the other two files use: elements, and how numbers and texts are written.
"use strict";

const CLASSES = ["unshifted", "marginal", "shifted"];
const $ = (id) => document.getElementById(id);
const SVG = new Set(["svg", "g", "rect", "path", "line", "text", "circle", "title"]);

function make(tag, attributes = {}, ...children) {
  const node = SVG.has(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else if (value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null));
  return node;
}

const whole = (n) => n.toLocaleString("en");
const plural = (n, one) => `${whole(n)} ${n === 1 ? one : `${one}s`}`;
const fixed = (digits) => (x) => x.toFixed(digits).replace("-", "−");
const percent = (x) => `${fixed(1)(100 * x)} %`;

function probability(p) {
  if (p === null) return "–";
  if (p === 0) return "≈ 0 %";
  if (p >= 0.9995) return "> 99.9 %";
  if (p >= 0.0001) return `${(100 * p).toPrecision(3)} %`;
  const [digits, power] = (100 * p).toExponential(2).split("e-"); // below 0.01 %, so always minus
  return `${digits} × 10⁻${[...power].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")} %`;
}

// A text of a model as it may stand on the page. What has no shape, or would turn or hide what is
// around it, is spelled out; joiners shape letters in many scripts and stay.
const SHAPELESS =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\p{Cs}]/gu;

function spell(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

function visible(text) {
  if (text === "") return "▯";
  if (!/\S/.test(text))
    text = text.replace(/[^]/g, (s) => ({ "\n": "↵\n", "\t": "⇥", "\r": "␍" })[s] ?? "␣");
  return text.replace(SHAPELESS, spell);
}

// In a line of its own, where a line end has no place and a space at an end would not be seen.
function inLine(text) {
  return visible(text).replace(/↵?\n/g, "↵").replace(/^ | $/g, "\u2423");
}

function table(caption, heads, rows, attributes = {}) {
  const cell = (tag, x, i) => {
    const content = Array.isArray(x) ? x : [x];
    return make(tag, tag === "th" ? { scope: i === undefined ? "row" : "col" } : {}, ...content);
  };
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    make("table", attributes,
      make("caption", {}, caption),
      make("thead", {}, make("tr", {}, heads.map((h, i) => cell("th", h, i)))),
      make("tbody", {}, rows.map(([first, ...rest]) =>
        make("tr", {}, cell("th", first), rest.map((x) => cell("td", x)))))));
}

// An estimate with its interval; or a number, where there is none.
function band(x, format) {
  const { value, low, high } = typeof x === "object" && x !== null ? x : { value: x, low: null };
  if (value === null || value === undefined) return "–";
  if (low === null || high === null) return format(value);
  const bare = (end) => format(end).replace(" %", "");
  return [format(value), make("small", { class: "band" }, `[${bare(low)}, ${bare(high)}]`)];
}
