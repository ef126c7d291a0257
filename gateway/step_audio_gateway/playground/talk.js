import { Recorder } from "./recorder.js";

const HOLD = 350; // ms: a shorter press is a click, which records until the next one
const LONGEST = 10 * 60; // seconds: a forgotten microphone must not fill the memory
const TAKES_SPACE = "input, textarea, select, button, summary, a, [tabindex]"; // elsewhere it is free to talk with

/** The talk button: hold it (or the space bar) while speaking, or click to begin and again to end.
 *
 * Events, all with `detail`: "state" ("idle", "starting" or "recording"), "block" (samples, while recording),
 * "recording" ({samples, sampleRate}, once ended), "trouble" (a message for the user).
 */
export class Talk extends EventTarget {
  #recorder = new Recorder();
  #state = "idle";
  #pressed = null; // when the button or key that is down went down
  #latched = false; // by a click: goes on without being held
  #limit = null;

  constructor(button) {
    super();
    button.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      button.setPointerCapture(event.pointerId); // letting go beside the button counts too
      this.#press();
    });
    button.addEventListener("pointerup", () => this.#release());
    button.addEventListener("pointercancel", () => this.#release());
    button.addEventListener("contextmenu", (event) => event.preventDefault()); // a long touch is a hold
    button.addEventListener("click", (event) => {
      if (event.detail > 0) return; // the pointer has been dealt with; Enter and screen readers have none
      this.#press();
      this.#release();
    });
    document.addEventListener("keydown", (event) => {
      if (event.code !== "Space" || event.ctrlKey || event.altKey || event.metaKey) return;
      if (event.target !== button && event.target.closest(TAKES_SPACE)) return;
      event.preventDefault(); // neither scrolls nor clicks
      if (!event.repeat) this.#press();
    });
    document.addEventListener("keyup", (event) => {
      if (event.code !== "Space" || this.#pressed === null) return;
      event.preventDefault();
      this.#release();
    });
    window.addEventListener("blur", () => this.#release()); // the key may come up in another window
  }

  get state() {
    return this.#state;
  }

  /** Forgets what was being recorded. */
  cancel() {
    if (this.#state === "idle") return;
    clearTimeout(this.#limit);
    this.#recorder.cancel();
    this.#to("idle");
  }

  #to(state) {
    this.#state = state;
    if (state === "idle") this.#latched = false;
    this.#emit("state", state);
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  async #press() {
    if (this.#pressed !== null) return;
    this.#pressed = performance.now();
    if (this.#state === "recording") return this.#end();
    if (this.#state !== "idle") return;
    this.#to("starting");
    try {
      await this.#recorder.start((samples) => this.#emit("block", samples));
    } catch (error) {
      if (this.#state !== "starting") return;
      this.#to("idle");
      this.#emit("trouble", error.message);
      return;
    }
    if (this.#state !== "starting") return this.#recorder.cancel(); // cancelled meanwhile
    if (this.#pressed === null && !this.#latched) {
      // Let go while the browser was still asking for permission: do not record unasked.
      this.cancel();
      this.#emit("trouble", "The microphone is ready: hold the button while you speak.");
      return;
    }
    this.#limit = setTimeout(() => this.#end(), LONGEST * 1000);
    this.#to("recording");
  }

  #release() {
    if (this.#pressed === null) return;
    const held = performance.now() - this.#pressed >= HOLD;
    this.#pressed = null;
    if (this.#state === "idle") return;
    if (!held) this.#latched = true;
    else if (this.#state === "recording" && !this.#latched) this.#end();
  }

  async #end() {
    clearTimeout(this.#limit);
    const ended = this.#recorder.stop();
    this.#to("idle");
    this.#emit("recording", await ended);
  }
}
