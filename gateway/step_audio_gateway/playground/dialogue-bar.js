import { stopPlayback } from "./clip-view.js";
import { Waveform } from "./waveform.js";

const SAID = {
  connecting: "Connecting…",
  listening: "Listening",
  hearing: "Hearing you",
  thinking: "Thinking",
  speaking: "Speaking",
};

/** The button that begins a live conversation, and what stands in the composer's place while there is one. */
export class DialogueBar {
  #levels = [];

  /** `toggle` begins or ends it; `announce(text)` is for screen readers. */
  constructor(form, dialogue, toggle, announce) {
    const meter = new Waveform(form.querySelector(".dialogue canvas"));
    const said = form.querySelector(".dialogue-state");
    form.querySelector(".converse").addEventListener("click", toggle);
    form.querySelector(".dialogue-end").addEventListener("click", toggle);
    dialogue.addEventListener("level", ({ detail }) => {
      this.#levels = [...this.#levels.slice(-meter.bars), detail];
      meter.live(this.#levels);
    });
    dialogue.addEventListener("state", ({ detail: state }) => {
      document.body.dataset.dialogue = form.dataset.dialogue = state;
      said.textContent = SAID[state] ?? "";
      if (state === "connecting") {
        this.#levels = [];
        stopPlayback(); // or the microphone hears it
        form.querySelector(".dialogue-end").focus();
      } else if (state === "off") {
        form.querySelector(".converse").focus();
      }
      if (state === "connecting" || state === "listening") announce(SAID[state]);
    });
  }
}
