// Both wait for what follows: "3.14" and "1,000" have no end in them.
const SENTENCE = /[^.!?。！？\n]*[.!?。！？\n]+(?=\s|$|[\u3000-\u9fff])/gu;
const CLAUSE = /[^.!?。！？\n,;:，；：、]*[.!?。！？\n,;:，；：、]+(?=\s|$|[\u3000-\u9fff])/gu;
const OPEN_WORD = /[^\s\u3000-\u9fff]*(?:(?![\u3000-\u9fff])[\p{L}\p{N}'’-]|\d[.,:])$/u; // it may go on
const CHINESE = /[\u3400-\u9fff]/;
const REST = 300; // ms without a new word: a piece of the answer is complete, the next is not made yet

/** Reads an answer aloud with the browser's own voices while it streams. */
export class Speech {
  #spoken = 0; // characters of the answer already handed over
  #seen = 0; // and those that have come
  #rest = null;

  static available = "speechSynthesis" in window;

  /** The answer so far, by whole sentences; `complete` also speaks a last one without a full stop.
   *
   * `inPieces`: it comes a few words at a time, with pauses. Then a clause is enough, and in a pause all whole words.
   */
  follow(text, { complete = false, inPieces = false } = {}) {
    if (text.length > this.#seen || complete) clearTimeout(this.#rest);
    if (inPieces && text.length > this.#seen) this.#rest = setTimeout(() => this.#sayWords(text), REST);
    this.#seen = text.length;
    const rest = text.slice(this.#spoken);
    const ends = [...rest.matchAll(inPieces ? CLAUSE : SENTENCE)];
    const end = complete ? rest.length : ends.length ? ends.at(-1).index + ends.at(-1)[0].length : 0;
    // A full stop at the very end may still grow into "3.14".
    if (complete || end < rest.length) this.#say(rest.slice(0, end));
  }

  #sayWords(text) {
    this.#say(text.slice(this.#spoken).replace(OPEN_WORD, ""));
  }

  #say(words) {
    this.#spoken += words.length;
    const ready = words.trim();
    if (!ready) return;
    const utterance = new SpeechSynthesisUtterance(ready);
    if (CHINESE.test(ready)) utterance.lang = "zh-CN";
    speechSynthesis.speak(utterance);
  }

  stop() {
    clearTimeout(this.#rest);
    this.#spoken = this.#seen = 0;
    if (Speech.available) speechSynthesis.cancel();
  }
}
