// One answer: its text, a span a token, shaded by the token's rank under the second context.
import { Alignment } from "./alignment.js";
import { CLASSES, classOf, inLine, make } from "./tools.js";

// A token that several others share a character with has their classes too: the highest counts.
const shade = (tokens) => Math.max(...tokens.map((token) => (token.other ? classOf(token.other.rank) : -1)));

export class Answer {
  text = ""; // exactly what was streamed
  tokens = []; // {text, id, position, own: {logprob, rank, top} or null, other: {rank, ties, logprob} or null}
  ranks = []; // of those that have one under the second context
  counts = [0, 0, 0]; // of these by class
  #alignment = new Alignment((text, tokens) => this.#run(text, tokens));

  // number: from 1. told: what answers and what shades, as settings.js words them.
  constructor(number, told) {
    Object.assign(this, { number, told });
    this.element = make("div", { class: "text streaming", dir: "auto" });
    this.element.answer = this;
  }

  // A chunk of the stream: its text, and its tokens as `readTokens` makes them.
  add(text, tokens) {
    this.text += text;
    for (const token of tokens) {
      token.position = this.tokens.length;
      this.tokens.push(token);
      if (!token.other) continue;
      this.ranks.push(token.other.rank);
      this.counts[classOf(token.other.rank)]++;
    }
    this.#alignment.add(text, tokens);
  }

  end() {
    this.#alignment.end();
    this.element.classList.remove("streaming");
  }

  get spans() {
    return [...this.element.children];
  }

  #run(text, tokens) {
    const last = this.element.lastElementChild;
    if (tokens.length === 0) {
      (last?.textContent ? last : this.element).append(text);
      return;
    }
    const kind = shade(tokens);
    const name = inLine(tokens.map((token) => token.text).join(""));
    const span = make("span", {
      role: "option", tabindex: last ? -1 : 0, class: kind < 0 ? "t" : `t c${kind}`,
      "aria-label": kind < 0 ? name : `${name}, ${CLASSES[kind]}`,
      // What ended the answer is no part of its text: the style sheet writes it.
      "data-end": text === "" ? name : null,
    }, text);
    span.tokens = tokens;
    if (!last) this.#becomeList();
    this.element.append(span);
  }

  #becomeList() {
    const told = { role: "listbox", "aria-orientation": "horizontal" };
    for (const [name, value] of Object.entries(told)) this.element.setAttribute(name, value);
    this.element.ariaLabel = `Tokens of answer ${this.number}`;
  }
}

// The tokens of a choice of a streamed chunk: the two lists are of the same tokens.
export function readTokens(choice) {
  const own = choice.logprobs?.content ?? [];
  const other = choice.shift ?? [];
  return Array.from({ length: Math.max(own.length, other.length) }, (_, i) => ({
    text: (own[i] ?? other[i]).token,
    id: (own[i] ?? other[i]).token_id,
    own: own[i] ? { logprob: own[i].logprob, rank: own[i].rank, top: own[i].top_logprobs } : null,
    other: other[i] ? { rank: other[i].rank, ties: other[i].ties, logprob: other[i].logprob } : null,
  }));
}
