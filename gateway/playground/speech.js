const SENTENCE = /[^.!?。！？\n]*[.!?。！？\n]+(?=\s|$|[\u3000-\u9fff])/gu; // waits for what follows: "3.14" is no end
const CHINESE = /[\u3400-\u9fff]/;

/** Reads an answer aloud with the browser's own voices, sentence by sentence while it streams. */
export class Speech {
  #spoken = 0; // characters of the answer already handed over

  static available = "speechSynthesis" in window;

  /** The answer so far; `complete` also speaks a last sentence without a full stop. */
  follow(text, complete) {
    const rest = text.slice(this.#spoken);
    const ends = [...rest.matchAll(SENTENCE)];
    const end = complete ? rest.length : ends.length ? ends.at(-1).index + ends.at(-1)[0].length : 0;
    const ready = rest.slice(0, end).trim();
    // A full stop at the very end may still grow into "3.14".
    if (!complete && end === rest.length) return;
    this.#spoken += end;
    if (!ready) return;
    const utterance = new SpeechSynthesisUtterance(ready);
    if (CHINESE.test(ready)) utterance.lang = "zh-CN";
    speechSynthesis.speak(utterance);
  }

  stop() {
    this.#spoken = 0;
    if (Speech.available) speechSynthesis.cancel();
  }
}
