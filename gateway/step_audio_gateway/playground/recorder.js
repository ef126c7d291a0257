import { Microphone } from "./microphone.js";

// The model is to hear the room, not what a telephone would make of it.
const WISHES = { echoCancellation: false, noiseSuppression: false, autoGainControl: true };
const FLUSH = 500; // ms: a device that was pulled out no longer runs the audio thread

/** Recordings. The device is open only while recording. */
export class Recorder {
  #microphone = null;
  #blocks = [];

  /** Begins; `onblock(samples)` is called about 50 times a second. Throws an Error whose message is for the user. */
  async start(onblock) {
    const blocks = (this.#blocks = []);
    this.#microphone = await Microphone.open(WISHES, (samples) => {
      blocks.push(samples);
      onblock(samples);
    });
  }

  /** Ends; resolves to {samples, sampleRate} of everything heard, the last started block included. */
  async stop() {
    const microphone = this.#microphone;
    const blocks = this.#blocks;
    this.#microphone = null;
    await microphone.flush(FLUSH);
    const { sampleRate } = microphone;
    microphone.close();
    return { samples: joined(blocks), sampleRate };
  }

  /** Ends and forgets. */
  cancel() {
    this.#microphone?.close();
    this.#microphone = null;
  }
}

/** Blocks of samples as one. */
function joined(blocks) {
  const samples = new Float32Array(blocks.reduce((sum, block) => sum + block.length, 0));
  let offset = 0;
  for (const block of blocks) {
    samples.set(block, offset);
    offset += block.length;
  }
  return samples;
}
