import { MODEL_RATE } from "./clip.js";
import { element } from "./dom.js";
import { SAMPLING, SESSION_NAMES } from "./offers.js";

const STORE = "step-audio-playground";
const KEY_STORE = "step-audio-playground-key"; // of this tab only: a key should not outlive it
const PACE = ["think_tokens", "speak_tokens", "speech_rate"];
const SMALLEST_BUDGET = 16; // tokens; each notch of the dial doubles it

/** The settings form: what the user chose, kept from visit to visit. */
export class Settings {
  constructor(form) {
    this.form = form;
    form.querySelector("#sampling").append(...controls());
    this.#restore();
    form.addEventListener("input", () => this.#changed());
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(() => this.#changed())); // after the fields are back
    this.#changed();
  }

  get key() {
    return this.form.elements.key.value.trim();
  }

  get instructions() {
    return this.form.elements.instructions.value.trim();
  }

  get readAloud() {
    return this.form.elements.aloud.checked;
  }

  get sendOnRelease() {
    return this.form.elements.auto.checked;
  }

  /** Of a request, all but the messages. Throws an Error whose message is for the user. */
  body() {
    const fields = this.form.elements;
    if (!this.form.checkValidity()) {
      const wrong = this.form.querySelector("input:invalid");
      throw new Error(`${wrong.labels[0].textContent.trim()}: ${wrong.validationMessage}`);
    }
    const body = {
      model: fields.model.value || undefined,
      stream: true,
      stream_options: { include_usage: true },
      thinking: { mode: fields.thinking.value === "off" ? "off" : "on" },
    };
    if (fields.thinking.value === "budget") body.thinking.budget_tokens = this.#budget;
    if (this.#paced) {
      body.mind_paced_speaking = { mode: fields.pace.value };
      for (const name of PACE) body.mind_paced_speaking[name] = fields[name].valueAsNumber;
    }
    for (const { name } of SAMPLING) {
      if (fields[name].value && !fields[name].disabled) body[name] = fields[name].valueAsNumber;
    }
    const tools = parseTools(fields.tools.value);
    if (tools.length) Object.assign(body, { tools, tool_choice: fields.tool_choice.value });
    return body;
  }

  /** The same of a live session. Throws an Error whose message is for the user. */
  session() {
    const { stream, stream_options, tools = [], ...same } = this.body();
    for (const [ours, theirs] of Object.entries(SESSION_NAMES)) {
      if (ours in same) {
        same[theirs] = same[ours];
        delete same[ours];
      }
    }
    return {
      ...same,
      type: "realtime",
      instructions: this.instructions,
      include: ["reasoning"],
      audio: { input: { format: { type: "audio/pcm", rate: MODEL_RATE }, transcription: {} } },
      tools: tools.map(({ function: called }) => ({ type: "function", ...called })),
    };
  }

  /** Fills the choice of models, and shows what suits the served one. */
  offer(models) {
    const select = this.form.elements.model;
    const chosen = select.value;
    select.replaceChildren(...models.map(({ id }) => new Option(id, id, false, id === chosen)));
    select.closest(".field").hidden = models.length < 2;
    for (const { name } of SAMPLING) {
      const field = this.form.elements[name];
      field.disabled = models.some(({ supported_parameters: taken }) => taken && !taken.includes(name));
      field.closest(".field").hidden = field.disabled;
    }
    for (const [name, tokens] of Object.entries(models[0]?.mind_paced_speaking ?? {})) {
      this.form.elements[name].defaultValue = tokens; // and so its value, unless the user has chosen another
    }
    this.#changed();
  }

  get #budget() {
    return SMALLEST_BUDGET * 2 ** this.form.elements.budget.valueAsNumber;
  }

  /** Only a thought of its own length can be spoken from. */
  get #paced() {
    const { thinking, pace } = this.form.elements;
    return thinking.value === "on" && pace.value !== "off";
  }

  #changed() {
    const fields = this.form.elements;
    fields.budget_shown.value = `${this.#budget.toLocaleString()} tokens`;
    for (const { name, type } of SAMPLING) {
      if (type === "range") fields[`${name}_shown`].value = fields[name].valueAsNumber.toFixed(2);
    }
    fields.budget.closest(".field").hidden = fields.thinking.value !== "budget";
    this.form.querySelector("#pace").hidden = fields.thinking.value !== "on";
    for (const name of PACE) {
      const unit = name === "speech_rate" ? "tokens/s" : "tokens";
      fields[`${name}_shown`].value = `${fields[name].valueAsNumber.toLocaleString()} ${unit}`;
      fields[name].closest(".field").hidden = !this.#paced;
    }
    try {
      const { length } = parseTools(fields.tools.value);
      fields.tools_shown.value = length ? `${length} tool${length > 1 ? "s" : ""}` : "";
      fields.tools.setAttribute("aria-invalid", "false");
      fields.tool_choice.closest(".field").hidden = !length;
    } catch (error) {
      fields.tools_shown.value = error.message;
      fields.tools.setAttribute("aria-invalid", "true");
    }
    this.#store();
  }

  #store() {
    const { key, ...kept } = Object.fromEntries(new FormData(this.form));
    for (const box of this.form.querySelectorAll("input[type=checkbox]")) kept[box.name] = box.checked;
    for (const name of PACE) {
      if (this.form.elements[name].value === this.form.elements[name].defaultValue) delete kept[name];
    }
    try {
      localStorage.setItem(STORE, JSON.stringify(kept));
      sessionStorage.setItem(KEY_STORE, key);
    } catch {
      // Storage is forbidden: the settings last as long as the page.
    }
  }

  #restore() {
    try {
      const kept = JSON.parse(localStorage.getItem(STORE) ?? "{}");
      for (const [name, value] of Object.entries({ ...kept, key: sessionStorage.getItem(KEY_STORE) ?? "" })) {
        const field = this.form.elements[name];
        if (name === "model" && value) field.add(new Option(value)); // until the server has said what there is
        if (field?.type === "checkbox") field.checked = value;
        else if (field) field.value = value;
      }
    } catch {
      // Unreadable or forbidden: the defaults stand.
    }
  }
}

/** The controls of the sampling parameters: sliders below each other, then boxes side by side. */
function controls() {
  const fields = SAMPLING.map(({ label, value, ...attributes }) => {
    const { name } = attributes;
    const input = element("input", { id: name, ...attributes, defaultValue: value });
    const shown = attributes.type === "range" ? [element("output", { name: `${name}_shown`, htmlFor: name })] : [];
    return element("div", { className: "field" }, element("label", { htmlFor: name }, label), ...shown, input);
  });
  const boxes = fields.filter((field) => field.querySelector("input[type=number]"));
  return [...fields.filter((field) => !boxes.includes(field)), element("div", { className: "pair" }, ...boxes)];
}

/** A list of tools in OpenAI's form; a bare function is wrapped. Throws an Error whose message is for the user. */
function parseTools(text) {
  if (!text.trim()) return [];
  let tools;
  try {
    tools = [JSON.parse(text)].flat();
  } catch (error) {
    throw new Error(`Tools are not JSON: ${error.message}`, { cause: error });
  }
  return tools.map((tool) => {
    const wrapped = tool?.type === "function" ? tool : { type: "function", function: tool };
    if (typeof wrapped.function?.name !== "string") throw new Error("Every tool needs a function with a name.");
    return wrapped;
  });
}
