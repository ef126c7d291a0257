const RATE = 24000; // Hz, of answers that come as audio
const LEAD = 0.05; // seconds: what comes a little late leaves no gap

/** Plays what comes of answers, piece behind piece, and knows how much of them has been heard. */
export class Playback {
  #context = new AudioContext();
  #pieces = new Set();
  #end = 0; // on the context's clock, of what has come
  #itemId = null;
  #length = 0; // seconds, of the item that plays

  /** `onidle` is called when all that there was has been played. */
  constructor(onidle) {
    this.onidle = onidle;
  }

  /** Browsers let a page sound only when the user has touched it: to be called then. */
  async resume() {
    await this.#context.resume();
  }

  get playing() {
    return this.#context.currentTime < this.#end;
  }

  /** `bytes`: PCM16, little-endian, at RATE. In how many seconds it is to be heard. */
  play(itemId, bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const samples = Float32Array.from({ length: bytes.byteLength >> 1 }, (_, i) => view.getInt16(2 * i, true) / 32768);
    if (!samples.length) return 0;
    if (itemId !== this.#itemId) {
      this.#itemId = itemId;
      this.#length = 0;
    }
    const buffer = new AudioBuffer({ length: samples.length, sampleRate: RATE });
    buffer.copyToChannel(samples, 0);
    const source = new AudioBufferSourceNode(this.#context, { buffer });
    source.connect(this.#context.destination);
    source.addEventListener("ended", () => {
      if (this.#pieces.delete(source) && !this.#pieces.size) this.onidle();
    });
    this.#pieces.add(source);
    const start = this.playing ? this.#end : this.#context.currentTime + LEAD;
    source.start(start);
    this.#end = start + buffer.duration;
    this.#length += buffer.duration;
    return start - this.#context.currentTime;
  }

  /** Falls silent. Of which item how many ms were heard: {itemId, milliseconds}; null where nothing was playing. */
  stop() {
    const left = this.#end - this.#context.currentTime;
    for (const piece of this.#pieces) piece.stop();
    this.#pieces.clear();
    this.#end = 0;
    if (left <= 0) return null;
    return { itemId: this.#itemId, milliseconds: Math.round(1000 * Math.max(0, this.#length - left)) };
  }

  close() {
    this.stop();
    this.#context.close();
  }
}
