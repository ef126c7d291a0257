const REASONS = {
  NotAllowedError: "The microphone is blocked. Allow it beside the page's address and try again.",
  NotFoundError: "No microphone was found.",
  NotReadableError: "Another program is using the microphone.",
};

/** The open microphone: blocks of its samples, about 50 a second. It is closed by `close`, and the browser's red mark
 * tells the truth. */
export class Microphone {
  #stream;
  #context;
  #tap;

  /** `wishes`: constraints of the track; `onblock(samples)`. Throws an Error whose message is for the user. */
  static async open(wishes, onblock) {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("Browsers lend the microphone only to pages on https or localhost. You can add a file instead.");
    }
    const microphone = new Microphone();
    try {
      await microphone.#open({ channelCount: 1, ...wishes }, onblock);
    } catch (error) {
      microphone.close();
      throw new Error(REASONS[error.name] ?? `The microphone did not start: ${error.message}`, { cause: error });
    }
    return microphone;
  }

  async #open(audio, onblock) {
    this.#stream = await navigator.mediaDevices.getUserMedia({ audio });
    this.#context = new AudioContext();
    await this.#context.audioWorklet.addModule(new URL("recorder-worklet.js", import.meta.url));
    await this.#context.resume();
    this.#tap = new AudioWorkletNode(this.#context, "tap");
    this.#tap.port.onmessage = ({ data }) => onblock(data);
    this.#context.createMediaStreamSource(this.#stream).connect(this.#tap);
    this.#tap.connect(this.#context.destination); // silent, but some browsers run only what leads to an output
  }

  get sampleRate() {
    return this.#context.sampleRate;
  }

  /** Resolves when the last block, which may be short, has been handed over; after `most` ms in any case. */
  async flush(most) {
    const { port } = this.#tap;
    const onblock = port.onmessage;
    await new Promise((resolve) => {
      port.onmessage = (event) => (event.data ? onblock(event) : resolve());
      port.postMessage("end");
      setTimeout(resolve, most);
    });
  }

  close() {
    if (this.#tap) this.#tap.port.onmessage = null;
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#context?.close();
  }
}
