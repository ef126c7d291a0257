// Both wait for what follows: "3.14" and "1,000" have no end in them.
const SENTENCE = /[^.!?。！？\n]*[.!?。！？\n]+(?=\s|$|[\u3000-\u9fff])/gu;
const CLAUSE = /[^.!?。！？\n,;:，；：、]*[.!?。！？\n,;:，；：、]+(?=\s|$|[\u3000-\u9fff])/gu;
const OPEN_WORD = /[^\s\u3000-\u9fff]*(?:(?![\u3000-\u9fff])[\p{L}\p{N}'’-]|\d[.,:])$/u; // it may go on
const CHINESE = /[\u3400-\u9fff]/;
const REST = 300; // ms without a new word: a piece of the answer is complete, the next is not made yet

/** Reads an answer aloud with the browser's own voices while it streams.
 *
 * `onstart` is called when something begins to sound, `onidle` when all that there was has been said.
 */
export class Speech {
  #spoken = 0; // characters of the answer already handed over
  #seen = 0; // and those that have come
  #heard = 0; // and those that have been said
  #rest = null;
  #waiting = new Set(); // utterances that are not over

  constructor({ onstart = () => {}, onidle = () => {} } = {}) {
    Object.assign(this, { onstart, onidle });
  }

  static available = "speechSynthesis" in window;

  /** Whether there is a voice; some browsers look for them only when they are first asked. */
  static get audible() {
    return Speech.available && speechSynthesis.getVoices().length > 0;
  }

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
    const begin = this.#spoken + words.length - words.trimStart().length;
    this.#spoken += words.length;
    const end = this.#spoken;
    const ready = words.trim();
    if (!ready) return;
    const utterance = new SpeechSynthesisUtterance(ready);
    if (CHINESE.test(ready)) utterance.lang = "zh-CN";
    const over = () => {
      if (!this.#waiting.delete(utterance)) return; // of an answer that was stopped
      this.#heard = end;
      if (!this.#waiting.size) this.onidle();
    };
    utterance.addEventListener("start", () => this.#waiting.has(utterance) && this.onstart());
    utterance.addEventListener("boundary", ({ charIndex }) => {
      if (this.#waiting.has(utterance)) this.#heard = begin + charIndex;
    });
    utterance.addEventListener("end", over);
    utterance.addEventListener("error", over); // there may be no voice: the text is there to be read
    this.#waiting.add(utterance);
    speechSynthesis.speak(utterance);
  }

  get speaking() {
    return this.#waiting.size > 0;
  }

  /** Falls silent, and is ready for another answer; how many characters of this one have been said. */
  stop() {
    const heard = this.#heard;
    clearTimeout(this.#rest);
    this.#spoken = this.#seen = this.#heard = 0;
    this.#waiting.clear();
    if (Speech.available) speechSynthesis.cancel();
    return heard;
  }
}
