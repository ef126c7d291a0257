import { MODEL_RATE } from "./clip.js";

const KEPT = 5 * 60 * 1000; // ms: no turn is longer

/** What has been sent of the microphone, and when: turns are told by their positions in it, in ms. */
export class SentAudio {
  #blocks = []; // {samples, end in ms, at in ms of performance.now}
  #end = 0;

  push(samples) {
    this.#end += (1000 * samples.length) / MODEL_RATE;
    this.#blocks.push({ samples, end: this.#end, at: performance.now() });
    while (this.#blocks[0].end < this.#end - KEPT) this.#blocks.shift();
  }

  /** When that position was sent, in ms of performance.now. */
  timeOf(milliseconds) {
    const block = this.#blocks.find(({ end }) => end >= milliseconds);
    return block?.at ?? performance.now();
  }

  /** The samples between two positions, as far as they are kept. */
  between(from, to) {
    const found = this.#blocks.filter(({ samples, end }) => end > from && end - (1000 * samples.length) / MODEL_RATE < to);
    const out = new Float32Array(found.reduce((sum, { samples }) => sum + samples.length, 0));
    let offset = 0;
    for (const { samples } of found) {
      out.set(samples, offset);
      offset += samples.length;
    }
    return out;
  }
}
