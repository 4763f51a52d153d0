// Which tokens a text consists of. Enter: text and tokens as a stream brings them. Leave: runs of
// text, each with its tokens, whose texts join to exactly the text that came.
//
// The two do not come together. A server holds text back until its characters are whole and until
// it cannot become a stop string; a character may take several tokens; special tokens have no text.

export class Alignment {
  #emit; // (text, tokens): no text: tokens without one; no tokens: more of the run before
  #waiting = []; // {text, token}: not seen in the text so far; token null: the rest of a run

  constructor(emit) {
    this.#emit = emit;
  }

  // tokens: [{text, …}]; all of `text` leaves at once, tokens may wait for theirs.
  add(text, tokens) {
    this.#waiting.push(...tokens.map((token) => ({ text: token.text, token })));
    while (text !== "") text = text.slice(this.#next(text));
  }

  end() {
    for (const { token } of this.#waiting) if (token) this.#emit("", [token]);
    this.#waiting = [];
  }

  // Emits the next run; returns its length in the text.
  #next(text) {
    const waiting = this.#waiting;
    const { text: own, token } = waiting[0] ?? { text, token: null };
    const known = token ? [token] : [];
    if (own !== "" && text.startsWith(own)) {
      waiting.shift();
      this.#emit(own, known);
      return own.length;
    }
    if (own.startsWith(text)) {
      waiting[0] = { text: own.slice(text.length), token: null };
      this.#emit(text, known);
      return text.length;
    }
    return this.#skip(text);
  }

  // The first tokens are not written as they are named: all up to the next one that is go together.
  #skip(text) {
    const after = this.#waiting.findIndex((w, i) => i > 0 && w.text !== "" && text.includes(w.text));
    const end = after < 0 ? text.length : text.indexOf(this.#waiting[after].text);
    const group = this.#waiting.splice(0, after < 0 ? Infinity : after);
    const tokens = group.flatMap(({ token }) => token ?? []);
    if (end > 0) this.#emit(text.slice(0, end), tokens);
    else for (const token of tokens) this.#emit("", [token]);
    return end;
  }
}
