import { ACCEPT, Clip, peak } from "./clip.js";
import { clipView, stopPlayback } from "./clip-view.js";
import { clock } from "./dom.js";
import { Waveform } from "./waveform.js";

const TALK_LABELS = { idle: "Hold to talk", starting: "Opening…", recording: "Recording" };

/** Where the next message is made: recordings, text, and the buttons that send or stop.
 *
 * Events: "send" ({clips, text}), "stop", "recordstart", "trouble" (a message for the user), "status" (to be read out).
 */
export class Composer extends EventTarget {
  #clips = [];
  #busy = false;
  #recordings = 0;
  #heard = [];
  #began = 0;

  constructor(form, talk, settings) {
    super();
    this.settings = settings;
    this.form = form;
    this.talk = talk;
    this.text = form.elements.text;
    this.tray = form.querySelector(".tray");
    this.time = form.querySelector(".live-time");
    this.live = new Waveform(form.querySelector(".live canvas"));
    this.#listen();
    this.#refresh();
  }

  /** While a reply streams the send button is the stop button. */
  set busy(busy) {
    this.#busy = busy;
    this.#refresh();
  }

  /** Puts text into the field, for the user to go on from. */
  suggest(text) {
    this.text.value = text;
    this.#refresh();
    this.text.focus();
  }

  async addFiles(files) {
    for (const file of files) {
      try {
        this.#add(await Clip.fromFile(file));
      } catch (error) {
        this.#emit("trouble", error.message);
      }
    }
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #listen() {
    const { form, text, talk } = this;
    const files = form.elements.files;
    files.accept = ACCEPT;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#busy) this.#emit("stop");
      else this.#send();
    });
    text.addEventListener("input", () => this.#refresh());
    text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.#busy) this.#send();
    });
    text.addEventListener("paste", (event) => {
      if (!event.clipboardData.files.length) return;
      event.preventDefault();
      this.addFiles(event.clipboardData.files);
    });
    form.querySelector(".attach").addEventListener("click", () => files.click());
    files.addEventListener("change", async () => {
      await this.addFiles([...files.files]);
      files.value = ""; // the same file may be chosen again
    });
    talk.addEventListener("state", ({ detail }) => this.#talkState(detail));
    talk.addEventListener("block", ({ detail }) => this.#hear(detail));
    talk.addEventListener("recording", ({ detail }) => this.#recorded(detail));
    talk.addEventListener("trouble", ({ detail }) => this.#emit("trouble", detail));
  }

  #talkState(state) {
    this.form.dataset.talk = state;
    const button = this.form.querySelector(".talk");
    button.setAttribute("aria-pressed", String(state !== "idle"));
    button.querySelector(".talk-label").textContent = TALK_LABELS[state];
    if (state === "recording") {
      stopPlayback();
      this.#heard = [];
      this.#began = performance.now();
      this.#emit("recordstart");
      this.#emit("status", "Recording");
    }
  }

  #hear(samples) {
    this.#heard.push(peak(samples));
    this.live.live(this.#heard);
    this.time.textContent = clock((performance.now() - this.#began) / 1000);
  }

  async #recorded({ samples, sampleRate }) {
    if (!samples.length) return this.#emit("trouble", "Nothing was recorded. Hold the button while you speak.");
    const clip = await Clip.fromSamples(samples, sampleRate, `Recording ${++this.#recordings}`);
    this.#add(clip);
    this.#emit("status", `Recorded ${Math.round(clip.seconds)} seconds`);
    if (clip.silent) this.#emit("trouble", "The recording is silent. Is it the right microphone, and switched on?");
    else if (this.settings.sendOnRelease && !this.#busy) this.#send();
  }

  #add(clip) {
    const view = clipView(clip, () => {
      view.remove();
      this.#clips = this.#clips.filter((other) => other !== clip);
      clip.discard();
      this.#refresh();
      this.text.focus();
    });
    this.#clips.push(clip);
    this.tray.append(view);
    this.#refresh();
  }

  #send() {
    const text = this.text.value.trim();
    if (!text && !this.#clips.length) return;
    const clips = this.#clips;
    stopPlayback();
    this.#clips = [];
    this.tray.replaceChildren();
    this.text.value = "";
    this.#refresh();
    this.#emit("send", { clips, text });
  }

  #refresh() {
    const { form, text } = this;
    const send = form.querySelector(".send");
    const label = this.#busy ? "Stop (Esc)" : "Send (Enter)";
    form.dataset.busy = String(this.#busy);
    send.disabled = !this.#busy && !text.value.trim() && !this.#clips.length;
    send.title = label;
    send.setAttribute("aria-label", label);
    this.tray.hidden = !this.#clips.length;
    text.style.height = "auto";
    text.style.height = `${text.scrollHeight}px`; // grows with its text, up to the style's max-height
  }
}
