import { element } from "./dom.js";

/** The empty page: what can be said to the served model, as far as the server says so. */
export class Welcome {
  /** `onidea(text)`: one of the suggestions was chosen. */
  constructor(section, onidea) {
    this.section = section;
    this.onidea = onidea;
    for (const button of section.querySelectorAll(".idea")) {
      button.addEventListener("click", () => onidea(button.dataset.text));
    }
  }

  /** `suggestions`: {say, ask}, lists of texts. Without any, those of the page stay, which are for the large model. */
  offer({ say = [], ask = [] } = {}) {
    const spoken = this.section.querySelector(".say");
    spoken.hidden = !say.length;
    spoken.replaceChildren("Say ", ...say.flatMap((text, i) => [...(i ? [", or "] : []), element("q", {}, text)]), ".");
    if (!say.length && !ask.length) return;
    this.section.querySelector(".ideas").replaceChildren(...ask.map((text) => {
      const properties = { type: "button", className: "idea", onclick: () => this.onidea(text) };
      return element("button", properties, text);
    }));
  }
}
