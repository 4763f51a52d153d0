// The panel of the URIAL prompts: their texts to see and edit, and where they are pinned.
import { ask } from "./api.js";
import * as settings from "./settings.js";
import { $, make, plural, whole } from "./tools.js";

const drafts = new Map(); // by name: texts that were edited and not saved
const originals = new Map(); // by name: the texts that the server had when the page first saw them
const COUNT_AFTER = 300; // ms without a key

let shown = null; // the name of the prompt in the panel
let counting = null; // an AbortController of the count on its way
let timer;
let working = false; // an order of the user is on its way

const address = (name) => `v1/prompts/${encodeURIComponent(name)}`;
const edited = () => $("prefix-text").value !== settings.prompt(shown)?.text;

export function draw() {
  for (const { name, text } of settings.prompts) if (!originals.has(name)) originals.set(name, text);
  if (!settings.prompt(shown)) return show(settings.prompts[0]?.name ?? null);
  if (!drafts.has(shown) && edited()) return show(shown); // somebody else has changed it
  $("prefix-name").replaceChildren(...settings.prompts.map(({ name }) =>
    make("option", { value: name }, drafts.has(name) ? `${name} (edited)` : name)));
  $("prefix-name").value = shown;
  drawStates();
  countSoon(); // another model may have been picked
}

function show(name) {
  shown = name;
  const own = settings.prompt(name);
  $("prefix-text").value = drafts.get(name) ?? own?.text ?? "";
  $("save-as").value = name ?? "";
  report(null);
  if (own) draw();
  mark();
}

// After every change of the text.
function mark() {
  const dirty = edited();
  if (dirty) drafts.set(shown, $("prefix-text").value);
  else drafts.delete(shown);
  $("dirty").hidden = !dirty;
  $("original").disabled = $("prefix-text").value === originals.get(shown);
  countSoon();
}

function countSoon() {
  clearTimeout(timer);
  timer = setTimeout(count, COUNT_AFTER);
}

async function count() {
  if ($("prefix").hidden) return;
  counting?.abort();
  counting = new AbortController();
  const body = { model: settings.picked("model"), prompt: $("prefix-text").value };
  try {
    const { count: tokens, max_model_len: most } =
      await ask("tokenize", { method: "POST", body, signal: counting.signal });
    $("prefix-count").textContent = `${whole(tokens)} of ${plural(most, "token")}`;
  } catch (error) {
    if (error.name !== "AbortError") $("prefix-count").textContent = `Not counted: ${error.message}`;
  }
}

function drawStates() {
  const { models } = settings.prompt(shown);
  const buttons = () => [...$("prefix-states").querySelectorAll("button")];
  const focused = buttons().indexOf(document.activeElement);
  $("prefix-states").replaceChildren(...Object.entries(models).map(([model, state]) => {
    const pinned = state.state === "pinned";
    const act = () => (pinned ? unpin(model) : pin(model));
    const verb = pinned ? "Unpin" : "Pin";
    const about = { type: "button", "aria-label": `${verb} ${shown} on ${model}`, onclick: act };
    return make("li", {},
      make("span", {}, make("b", {}, model), ` ${settings.stateOf(state)}`),
      make("button", about, verb));
  }));
  buttons()[focused]?.focus(); // it is a new one, and the keys stay where they were
}

function report(error) {
  $("prefix-problem").hidden = error === null;
  $("prefix-problem").textContent = error?.message ?? "";
}

// While the server computes a prefix the panel says so and takes no second order.
async function busy(what, action) {
  if (working) return;
  working = true;
  report(null);
  $("prefix-work").textContent = `${what} …`;
  try {
    await action();
    await settings.loadPrompts();
    $("prefix-work").textContent = `${what}: done.`;
  } catch (error) {
    $("prefix-work").textContent = "";
    report(error);
  } finally {
    working = false;
  }
}

const pin = (model) => busy(`Pinning ${shown} on ${model}`, () =>
  ask(`${address(shown)}/pin`, { method: "POST", body: { model } }));

const unpin = (model) => busy(`Unpinning ${shown} on ${model}`, () =>
  ask(`${address(shown)}/pin?model=${encodeURIComponent(model)}`, { method: "DELETE" }));

// Under another name the server keeps both, and the prompt that was edited is as it was.
function save() {
  const name = $("save-as").value;
  const text = $("prefix-text").value;
  const model = settings.picked("model");
  const answered = settings.picked("context") === shown;
  busy(`Saving and pinning ${name} on ${model}`, async () => {
    await ask(address(name), { method: "PUT", body: { text, model } });
    await settings.loadPrompts();
    drafts.delete(shown);
    show(name);
    if (answered) settings.pick("context", name);
  });
}

// The server keeps its own prompts, and says so.
const remove = () => busy(`Deleting ${shown}`, async () => {
  await ask(address(shown), { method: "DELETE" });
  for (const kept of [drafts, originals]) kept.delete(shown);
});

export function toggle(open) {
  $("prefix").hidden = !open;
  $("prefix-open").ariaExpanded = String(open);
  if (!open) return $("prefix-open").focus();
  const context = settings.picked("context");
  show(settings.prompt(context) ? context : shown);
  $("prefix-name").focus();
}

export function listen() {
  $("prefix-open").addEventListener("click", () => toggle($("prefix").hidden));
  $("prefix-close").addEventListener("click", () => toggle(false));
  $("prefix").addEventListener("keydown", (event) => event.key === "Escape" && toggle(false));
  $("prefix-name").addEventListener("change", ({ target }) => show(target.value));
  $("prefix-text").addEventListener("input", mark);
  $("original").addEventListener("click", () => {
    $("prefix-text").value = originals.get(shown);
    mark();
  });
  $("delete").addEventListener("click", remove);
  $("prefix-form").addEventListener("submit", (event) => {
    event.preventDefault();
    save();
  });
}
