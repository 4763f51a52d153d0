// The playground of urial-engine: a chat whose answers are shaded by what a second context or model
// thinks of each token. Everything is asked of the server that the page comes from (api.js).
import { Answer, readTokens } from "./answer.js";
import { events, onUnauthorized } from "./api.js";
import * as detail from "./detail.js";
import * as prefix from "./prefix.js";
import * as settings from "./settings.js";
import { cached, counts, drawCounts, ending, speed } from "./told.js";
import { $, make, seconds } from "./tools.js";

// The chat, in order: {query, article, reply, mended}. A reply: {answer, body, note, nodes, clock,
// how}. mended: the query stands in the message's field again, to be sent from there.
const turns = [];
let running = null; // the AbortController of the answer on its way

// The chat.

function submit(query) {
  if (running || query.trim() === "") return;
  const last = turns.at(-1);
  if (last && isVoid(last.reply)) turns.pop().article.remove();
  const turn = { query, article: make("article"), reply: null, mended: false };
  turns.push(turn);
  if (answer(turn)) $("message").value = "";
  else turns.pop();
}

// It brought nothing and was not meant to end: the chat goes on as if it had not been asked.
const isVoid = ({ answer, how }) => answer.text === "" && (how === "failed" || how === "stopped");

function messages() {
  return turns.flatMap(({ query, reply }, i) => [
    { role: "user", content: query },
    ...(i < turns.length - 1 ? [{ role: "assistant", content: reply.answer.text }] : []),
  ]);
}

// Asks for the last turn's answer, anew where it has one. False: a setting is wrong.
function answer(turn) {
  const body = settings.request(messages());
  if (!body) return false;
  report(null);
  const number = turns.length;
  const made = new Answer(number, settings.told());
  const { model, answers, shades } = made.told;
  const note = make("p", { class: "meta" });
  const nodes = [
    make("h3", { dir: "auto", id: `query-${number}` }, turn.query),
    make("p", { class: "meta" }, `${model} · ${answers}`, shades ? `, shaded by ${shades}` : ""),
    made.element, note];
  const clock = { start: performance.now(), first: null, last: null, early: 0, usage: null };
  const before = turn.reply && !isVoid(turn.reply) ? turn.reply : null;
  turn.reply = { answer: made, body, note, nodes, clock, how: "" };
  turn.article.setAttribute("aria-labelledby", `query-${number}`);
  turn.article.replaceChildren(...nodes);
  $("hello").hidden = true;
  $("log").append(turn.article);
  $("log").scrollTop = $("log").scrollHeight;
  detail.choose(null);
  drawCounts(made);
  read(turn, before);
  return true;
}

// before: the reply that the turn had, or null. It comes back where nothing comes of this one.
async function read(turn, before) {
  const { reply } = turn;
  let failure = null;
  running = new AbortController();
  drawButtons();
  const timer = setInterval(() => drawSpeed(reply), 100);
  try {
    for await (const event of events("v1/chat/completions", reply.body, running.signal)) take(reply, event);
  } catch (error) {
    reply.how = error.name === "AbortError" ? "stopped" : "failed";
    if (reply.how === "failed") failure = error;
  }
  clearInterval(timer);
  running = null;
  if (turns.includes(turn)) close(turn, before, failure);
  drawButtons(); // of a new chat, where one has begun
}

function take(reply, { choices, usage }) {
  const { answer, clock } = reply;
  if (usage) clock.usage = usage;
  const choice = choices[0];
  if (!choice) return;
  reply.how = choice.finish_reason ?? reply.how;
  const text = choice.delta?.content ?? "";
  const tokens = readTokens(choice);
  if (text === "" && tokens.length === 0) return;
  clock.last = performance.now();
  if (clock.first === null) [clock.first, clock.early] = [clock.last, tokens.length];
  drawSoon();
  answer.add(text, tokens);
  speak(text);
}

// Once a frame, however many events come: to measure and to draw costs more the longer the answer.
let frame = 0;

function drawSoon() {
  if (frame) return;
  const follow = atEnd();
  frame = requestAnimationFrame(() => {
    frame = 0;
    const reply = turns.at(-1)?.reply; // another one by now, or none, where a chat has ended
    if (!reply) return;
    drawCounts(reply.answer);
    drawSpeed(reply);
    if (follow) toEnd();
  });
}

const atEnd = () => $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 60;
const toEnd = () => ($("log").scrollTop = $("log").scrollHeight);

// A change after which the end of the chat is in view, if it was before: else it is being read.
function follow(change) {
  const end = atEnd();
  change();
  if (end) toEnd();
}

function close(turn, before, failure) {
  const { reply } = turn;
  const told = [counts(reply), ending(reply), speed(reply), cached(reply)].filter(Boolean).join(" · ");
  follow(() => {
    reply.answer.end();
    reply.note.textContent = told;
  });
  speak("\n");
  say(`${{ failed: "Failed", stopped: "Stopped" }[reply.how] ?? "Answered"}: ${counts(reply)}`);
  if (isVoid(reply)) takeBack(turn, before, failure);
  if (failure) report(failure, () => again(turn));
  drawCounts(turn.reply.answer);
  drawSpeed(turn.reply);
  // A cold prefix has become a pinned one. What fails here fails at the next question, and says so.
  settings.loadPrompts().catch(() => {});
}

// The answer of before stands again. A question that has none can be mended and sent.
function takeBack(turn, before, failure) {
  if (before) {
    turn.reply = before;
    turn.article.replaceChildren(...before.nodes);
  } else if (failure && $("message").value === "") {
    $("message").value = turn.query;
    turn.mended = true;
  }
}

const again = (turn) => (turn.mended ? submit($("message").value || turn.query) : answer(turn));

function drawSpeed(reply) {
  const waited = seconds((performance.now() - reply.clock.start) / 1000);
  const waiting = running && reply.clock.first === null ? `waiting, ${waited}` : "";
  $("speed").textContent = [waiting || speed(reply), cached(reply)].filter(Boolean).join(" · ");
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
  const kept = turns.map(({ query, reply: { body, answer: { text, tokens }, how, clock } }) => {
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
  on("again", "click", () => again(turns.at(-1)));
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
