// What the server offers and what the user has picked: models, contexts, sampling.
import { ask } from "./api.js";
import { $, make, seconds, whole } from "./tools.js";

const form = $("settings");
const field = (name) => form.elements[name];
// Contexts without a prefix, by the names that the server knows them by.
const NAMED = { chat: "chat template", "zero-shot": "zero-shot", raw: "raw" };
const TOP = 5; // how many of the likeliest tokens come with each token

export let models = []; // as /v1/models has them
export let prompts = []; // as /v1/prompts has them

let changed = () => {};
export const onChange = (listener) => (changed = listener);

export const picked = (name) => field(name).value;
export const prompt = (name) => prompts.find((p) => p.name === name);

export async function load() {
  models = (await ask("v1/models")).data;
  const options = () => models.map(({ id }) => make("option", { value: id }, id));
  field("model").replaceChildren(...options());
  field("second-model").replaceChildren(make("option", { value: "" }, "none"), ...options());
  await loadPrompts();
  const { id, chat_template: chat } = models[0];
  field("second-model").value = id;
  pick("context", chat ? "chat" : prompts[0]?.name ?? "raw");
  pick("second-context", chat ? prompts[0]?.name ?? "raw" : "zero-shot");
}

export async function loadPrompts() {
  prompts = (await ask("v1/prompts")).prompts;
  drawContexts();
  changed();
}

export function pick(name, value) {
  field(name).value = value;
  drawContexts();
  changed();
}

// What a model cannot do is shown and cannot be picked.
function drawContexts() {
  for (const side of ["", "second-"]) {
    const select = field(`${side}context`);
    const before = select.value;
    const model = models.find(({ id }) => id === picked(`${side}model`));
    // One that the server has no longer stays picked, so that no other one takes its place unseen.
    const gone = before !== "" && !(before in NAMED) && !prompt(before) ? [[before, `${before} (gone)`]] : [];
    const option = ([value, text]) => make("option",
      { value, disabled: (value === "chat" && !model?.chat_template) || value === gone[0]?.[0] }, text);
    const group = (label, entries) => make("optgroup", { label }, entries.map(option));
    select.replaceChildren(
      group("URIAL prompts", [...prompts.map(({ name }) => [name, name]), ...gone]),
      group("Without a prefix", Object.entries(NAMED)));
    select.value = before;
    const cannot = select.selectedOptions[0]?.disabled ?? true;
    if (cannot && gone.length === 0) select.value = prompts[0]?.name ?? "raw";
    select.disabled = picked(`${side}model`) === "";
  }
}

// The settings in words, for the answer that they will give: {model, answers, shades: or null}.
export function told() {
  const context = (side) => NAMED[picked(`${side}context`)] ?? picked(`${side}context`);
  const [model, second] = [picked("model"), picked("second-model")];
  const shades = second === "" ? null : context("second-") + (second === model ? "" : ` · ${second}`);
  return { model, answers: context(""), shades };
}

// The body of a request, or null where a field is wrong; the browser then says which and why.
export function request(messages) {
  if (!form.reportValidity()) return null;
  const number = (name) => Number(picked(name));
  const body = {
    model: picked("model"), messages, urial_prompt: picked("context"),
    stream: true, stream_options: { include_usage: true }, logprobs: true, top_logprobs: TOP,
    temperature: number("temperature"), max_tokens: number("max-tokens"),
    repetition_penalty: number("penalty"), repetition_penalty_scope: picked("scope"),
  };
  if (picked("seed") !== "") body.seed = number("seed");
  if (picked("second-model"))
    body.compare_with = { model: picked("second-model"), urial_prompt: picked("second-context") };
  return body;
}

// Of a URIAL prompt's prefix in a model's cache, in words.
export function stateOf(state) {
  if (state?.state !== "pinned") return "cold: its first use computes it";
  const source = state.source === "computed" ? "computed" : `${state.source} from disk`;
  const how = state.source === "shared" ? "shared" : source;
  return `pinned, ${whole(state.tokens)} tokens, ${how} in ${seconds(state.seconds)}`;
}

export function prefixInWords() {
  const name = picked("context");
  const own = prompt(name);
  if (own) return `Prefix ${name}: ${stateOf(own.models[picked("model")])}`;
  return name in NAMED ? `No prefix: ${NAMED[name]}` : `Prefix ${name}: the server has it no longer`;
}

export function listen() {
  form.addEventListener("change", () => {
    drawContexts();
    changed();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
}
