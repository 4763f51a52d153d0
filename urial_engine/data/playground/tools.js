// What the other modules use: elements, and how numbers and texts are written.

export const CLASSES = ["unshifted", "marginal", "shifted"];
// By the rank of a token, from 1: as the token shift has it (arXiv 2312.01552, section 2).
export const classOf = (rank) => (rank === 1 ? 0 : rank <= 3 ? 1 : 2);

export const $ = (id) => document.getElementById(id);

// Texts of models and servers become text nodes here, and are never read as HTML.
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else if (value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null));
  return node;
}

export const whole = (n) => n.toLocaleString("en");
export const plural = (n, one) => `${whole(n)} ${n === 1 ? one : `${one}s`}`;
export const percent = (x) => `${(100 * x).toFixed(1)} %`;
export const nats = (x) => x.toFixed(3).replace("-", "−");

export function seconds(x) {
  if (x >= 10) return `${x.toFixed(0)} s`;
  return x >= 1 ? `${x.toFixed(1)} s` : `${(1000 * x).toFixed(0)} ms`;
}

export function probability(logprob) {
  const p = Math.exp(logprob);
  if (p >= 0.9995) return "> 99.9 %";
  return p >= 0.0001 ? `${(100 * p).toPrecision(3)} %` : "< 0.01 %";
}

// A token as a name in a line of its own: what has no shape, or would turn or hide what is around
// it, is spelled out.
const SHAPELESS =
  /[\u0000-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\p{Cs}]/gu;

function spell(character) {
  const code = character.codePointAt(0);
  const known = { 9: "⇥", 10: "↵", 13: "␍" }[code];
  return known ?? `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

export function inLine(text) {
  if (text === "") return "⟨part⟩";
  const spaces = /\S/.test(text) ? /^ | $/g : / /g;
  return text.replace(spaces, "␣").replace(SHAPELESS, spell);
}
