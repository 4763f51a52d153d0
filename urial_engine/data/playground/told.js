// What is known of a reply {answer, clock, how}: in words, and drawn beside the chat.
import { $, CLASSES, classOf, make, percent, plural, seconds, whole } from "./tools.js";

export function counts({ answer }) {
  const all = plural(answer.tokens.length, "token");
  const [unshifted, marginal, shifted] = answer.counts;
  return unshifted + marginal + shifted ? `${all}, ${shifted} shifted, ${marginal} marginal` : all;
}

export function ending({ how, answer }) {
  const told = { length: "ended by max tokens", stopped: "stopped", failed: "cut short by an error" };
  return told[how] ?? (answer.text === "" ? "the answer is empty" : "");
}

// Of tokens after the first chunk, in the time from that chunk to the last.
export function speed({ answer, clock: { start, first, last, early } }) {
  if (first === null) return "";
  const rate = (1000 * (answer.tokens.length - early)) / (last - first);
  const each = last > first ? `, ${rate < 10 ? rate.toFixed(1) : whole(Math.round(rate))} tokens/s` : "";
  return `first token after ${seconds((first - start) / 1000)}${each}`;
}

export function cached({ clock: { usage } }) {
  const from = usage?.prompt_tokens_details?.cached_tokens;
  return from === undefined ? "" : `${whole(from)} of ${plural(usage.prompt_tokens, "prompt token")} from the cache`;
}

let drawn = null; // the answer whose bars are shown

// The classes so far, and a bar a token as high as the logarithm of its rank.
export function drawCounts(answer) {
  const counts = answer?.counts ?? [0, 0, 0];
  const all = counts[0] + counts[1] + counts[2];
  const shaded = (name) => (name ? `Answer ${answer.number}, by ${name}` : "Not shaded");
  $("counted").textContent = answer ? shaded(answer.told.shades) : "No answer yet";
  if (drawn !== answer) $("ranks").replaceChildren();
  drawn = answer;
  $("ranks").append(...(answer?.ranks ?? []).slice($("ranks").childElementCount).map((rank) => {
    const bar = make("i", { class: `c${classOf(rank)}` });
    bar.style.height = `${Math.min(8 + 23 * Math.log10(rank), 100)}%`; // full at 10,000
    return bar;
  }));
  CLASSES.forEach((name, i) => {
    $(`bar-${name}`).style.flexGrow = counts[i];
    $(`count-${name}`).textContent = all ? whole(counts[i]) : "–";
    $(`share-${name}`).textContent = all ? percent(counts[i] / all) : "–";
  });
}
