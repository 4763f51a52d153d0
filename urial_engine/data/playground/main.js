// The playground of urial-engine: a chat whose answers are shaded by what a second context or model
// thinks of each token. Everything is asked of the server that the page comes from (api.js).
import { Answer, readTokens } from "./answer.js";
import { events, onUnauthorized } from "./api.js";
import * as detail from "./detail.js";
import * as prefix from "./prefix.js";
import * as settings from "./settings.js";
import { $, CLASSES, classOf, make, percent, plural, seconds, whole } from "./tools.js";

const turns = []; // {query, article, body, answer, note, clock, how}: the chat, in order
let running = null; // the AbortController of the answer on its way

// The chat.

function submit(query) {
  if (running || query.trim() === "") return;
  const last = turns.at(-1);
  if (last && isVoid(last)) turns.pop().article.remove();
  const turn = { query, article: make("article"), how: "" };
  turns.push(turn);
  if (answer(turn)) $("message").value = "";
  else turns.pop();
}

// It brought nothing and was not meant to end: the chat goes on as if it had not been asked.
const isVoid = ({ answer, how }) => answer.text === "" && (how === "failed" || how === "stopped");

function messages() {
  return turns.flatMap(({ query, answer }, i) => [
    { role: "user", content: query },
    ...(i < turns.length - 1 ? [{ role: "assistant", content: answer.text }] : []),
  ]);
}

// Asks for the last turn's answer, anew where it has one. False: a setting is wrong.
function answer(turn) {
  const body = settings.request(messages());
  if (!body) return false;
  report(null);
  const number = turns.length;
  turn.answer = new Answer(number, settings.told());
  turn.body = body;
  turn.note = make("p", { class: "meta" });
  const { model, answers, shades } = turn.answer.told;
  turn.article.setAttribute("aria-labelledby", `query-${number}`);
  turn.article.replaceChildren(
    make("h3", { dir: "auto", id: `query-${number}` }, turn.query),
    make("p", { class: "meta" }, `${model} · ${answers}`, shades ? `, shaded by ${shades}` : ""),
    turn.answer.element, turn.note);
  $("hello").hidden = true;
  $("log").append(turn.article);
  $("log").scrollTop = $("log").scrollHeight;
  detail.choose(null);
  drawCounts(turn.answer);
  read(turn, body);
  return true;
}

async function read(turn, body) {
  running = new AbortController();
  turn.clock = { start: performance.now(), first: null, last: null, early: 0, usage: null };
  turn.how = "";
  drawButtons();
  const timer = setInterval(() => drawSpeed(turn), 100);
  try {
    for await (const event of events("v1/chat/completions", body, running.signal)) take(turn, event);
  } catch (error) {
    turn.how = error.name === "AbortError" ? "stopped" : "failed";
    if (turn.how === "failed") report(error, () => answer(turn));
  }
  clearInterval(timer);
  running = null;
  close(turn);
}

function take(turn, { choices, usage }) {
  const { answer, clock } = turn;
  if (usage) clock.usage = usage;
  const choice = choices[0];
  if (!choice) return;
  turn.how = choice.finish_reason ?? turn.how;
  const text = choice.delta?.content ?? "";
  const tokens = readTokens(choice);
  if (text === "" && tokens.length === 0) return;
  clock.last = performance.now();
  if (clock.first === null) [clock.first, clock.early] = [clock.last, tokens.length];
  follow(() => answer.add(text, tokens));
  speak(text);
  drawCounts(answer);
  drawSpeed(turn);
}

// A change after which the end of the chat is in view, if it was before: else it is being read.
function follow(change) {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function close(turn) {
  if (!turns.includes(turn)) return drawButtons(); // a new chat has begun
  const told = [counts(turn), ending(turn), speed(turn), cached(turn)].filter(Boolean).join(" · ");
  follow(() => {
    turn.answer.end();
    turn.note.textContent = told;
  });
  speak("\n");
  say(`${{ failed: "Failed", stopped: "Stopped" }[turn.how] ?? "Answered"}: ${counts(turn)}`);
  drawButtons();
  drawSpeed(turn);
  // A cold prefix has become a pinned one. What fails here fails at the next question, and says so.
  settings.loadPrompts().catch(() => {});
}

// What is known of an answer, in words.

function counts({ answer }) {
  const all = plural(answer.tokens.length, "token");
  const [unshifted, marginal, shifted] = answer.counts;
  return unshifted + marginal + shifted ? `${all}, ${shifted} shifted, ${marginal} marginal` : all;
}

function ending({ how, answer }) {
  const told = { length: "ended by max tokens", stopped: "stopped", failed: "cut short by an error" };
  return told[how] ?? (answer.text === "" ? "the answer is empty" : "");
}

// Of tokens after the first chunk, in the time from that chunk to the last.
function speed({ answer, clock: { start, first, last, early } }) {
  if (first === null) return "";
  const rate = (1000 * (answer.tokens.length - early)) / (last - first);
  const each = last > first ? `, ${rate < 10 ? rate.toFixed(1) : whole(Math.round(rate))} tokens/s` : "";
  return `first token after ${seconds((first - start) / 1000)}${each}`;
}

function cached({ clock: { usage } }) {
  const from = usage?.prompt_tokens_details?.cached_tokens;
  return from === undefined ? "" : `${whole(from)} of ${plural(usage.prompt_tokens, "prompt token")} from the cache`;
}

function drawSpeed(turn) {
  const waited = seconds((performance.now() - turn.clock.start) / 1000);
  const waiting = running && turn.clock.first === null ? `waiting, ${waited}` : "";
  $("speed").textContent = [waiting || speed(turn), cached(turn)].filter(Boolean).join(" · ");
}

// The classes so far, and a bar a token as high as the logarithm of its rank.
function drawCounts(answer) {
  const counts = answer?.counts ?? [0, 0, 0];
  const all = counts[0] + counts[1] + counts[2];
  const shaded = (name) => (name ? `Answer ${answer.number}, by ${name}` : "Not shaded");
  $("counted").textContent = answer ? shaded(answer.told.shades) : "No answer yet";
  if (all === 0) $("ranks").replaceChildren(); // another answer, or none
  const ranks = answer?.tokens.flatMap(({ other }) => other?.rank ?? []) ?? [];
  $("ranks").append(...ranks.slice($("ranks").childElementCount).map((rank) => {
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

function drawButtons() {
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  $("again").disabled = $("save").disabled = running !== null || turns.length === 0;
}

// For who hears the page: whole sentences as they come, each once.

let unsaid = "";

function speak(text) {
  unsaid += text;
  const [sentences] = unsaid.match(/^[^]*(?:[.!?…]\s|[\n。！？])/) ?? [""];
  unsaid = unsaid.slice(sentences.length);
  if (sentences.trim() !== "") say(sentences);
}

function say(text) {
  $("said").append(make("p", {}, text));
  while ($("said").childElementCount > 3) $("said").firstChild.remove();
}

// An error, and how to go on after it; null: there is none.
function report(error, retry) {
  const wait = error?.retryAfter ?? null;
  const due = wait === null ? "" : ` The server says to try again in ${wait} s.`;
  follow(() => {
    $("problem").hidden = error === null;
    $("problem-text").textContent = error ? error.message + due : "";
  });
  $("retry").onclick = retry ?? null;
}

// The key.

function askForKey(message) {
  const dialog = $("key-dialog");
  $("key-message").textContent = message;
  $("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener(
    "close", () => done(dialog.returnValue === "use" ? $("key").value : null), { once: true }));
}

// Leaving with what was measured.

function save() {
  const kept = turns.map(({ query, body, answer: { text, tokens }, how, clock }) => {
    const { messages: _, ...request } = body; // the turns before have them
    return { query, answer: text, finish_reason: how, usage: clock.usage, request, tokens };
  });
  const url = URL.createObjectURL(new Blob([JSON.stringify(kept, null, 1)], { type: "application/json" }));
  make("a", { href: url, download: "chat.json" }).click();
  URL.revokeObjectURL(url);
}

function newChat() {
  running?.abort();
  for (const { article } of turns.splice(0)) article.remove();
  $("hello").hidden = false;
  $("speed").textContent = "";
  report(null);
  detail.choose(null);
  drawCounts(null);
  drawButtons();
  $("message").focus();
}

// Keys, buttons and colours.

const night = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (night.matches ? "dark" : "")) === "dark";

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  $("theme").textContent = isDark() ? "Light" : "Dark";
}

function onMessageKey(event) {
  if (event.key === "Escape") running?.abort();
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit($("message").value);
}

function listen() {
  const on = (id, what, act) => $(id).addEventListener(what, act);
  on("composer", "submit", (event) => { event.preventDefault(); submit($("message").value); });
  on("message", "keydown", onMessageKey);
  on("stop", "click", () => { running?.abort(); $("message").focus(); });
  on("again", "click", () => answer(turns.at(-1)));
  on("save", "click", save);
  on("new", "click", newChat);
  on("hello", "click", ({ target }) => target.matches("button") && submit(target.textContent));
  on("settings-open", "click", ({ currentTarget: button }) =>
    (button.ariaExpanded = String($("settings").classList.toggle("open"))));
  on("theme", "click", () => setTheme(isDark() ? "light" : "dark"));
  on("help-open", "click", () => $("help").showModal());
  on("help-close", "click", () => $("help").close());
  on("key-cancel", "click", () => $("key-dialog").close());
  night.addEventListener("change", () => setTheme(null));
  settings.listen();
  settings.onChange(() => { prefix.draw(); $("prefix-state").textContent = settings.prefixInWords(); });
  prefix.listen();
  detail.listen($("log"));
  onUnauthorized(askForKey);
}

async function load() {
  report(null);
  try {
    await settings.load();
  } catch (error) {
    return report(error, load);
  }
  newChat();
  document.body.classList.add("ready");
}

setTheme(null);
listen();
load();
