const REASONS = {
  NotAllowedError: "The microphone is blocked. Allow it beside the page's address and try again.",
  NotFoundError: "No microphone was found.",
  NotReadableError: "Another program is using the microphone.",
};
const FLUSH = 500; // ms: a device that was pulled out no longer runs the audio thread

/** The microphone. The device is open only while recording, so that the browser's red mark tells the truth. */
export class Recorder {
  #session = null; // {stream, context, tap, blocks}

  /** Begins; `onblock(samples)` is called about 50 times a second. Throws an Error whose message is for the user. */
  async start(onblock) {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("Browsers lend the microphone only to pages on https or localhost. You can add a file instead.");
    }
    const session = { blocks: [] };
    try {
      // The model is to hear the room, not what a telephone would make of it.
      const wishes = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true };
      session.stream = await navigator.mediaDevices.getUserMedia({ audio: wishes });
      session.context = new AudioContext();
      await session.context.audioWorklet.addModule(new URL("recorder-worklet.js", import.meta.url));
      await session.context.resume();
      session.tap = new AudioWorkletNode(session.context, "tap");
      session.context.createMediaStreamSource(session.stream).connect(session.tap);
    } catch (error) {
      close(session);
      throw new Error(REASONS[error.name] ?? `The microphone did not start: ${error.message}`, { cause: error });
    }
    session.tap.port.onmessage = ({ data }) => {
      session.blocks.push(data);
      onblock(data);
    };
    session.tap.connect(session.context.destination); // silent, but some browsers run only what leads to an output
    this.#session = session;
  }

  /** Ends; resolves to {samples, sampleRate} of everything heard, the last started block included. */
  async stop() {
    const session = this.#session;
    this.#session = null;
    const { port } = session.tap;
    await new Promise((resolve) => {
      port.onmessage = ({ data }) => (data ? session.blocks.push(data) : resolve());
      port.postMessage("end");
      setTimeout(resolve, FLUSH);
    });
    close(session);
    const samples = new Float32Array(session.blocks.reduce((sum, block) => sum + block.length, 0));
    let offset = 0;
    for (const block of session.blocks) {
      samples.set(block, offset);
      offset += block.length;
    }
    return { samples, sampleRate: session.context.sampleRate };
  }

  /** Ends and forgets. */
  cancel() {
    if (this.#session) close(this.#session);
    this.#session = null;
  }
}

function close({ stream, context, tap }) {
  if (tap) tap.port.onmessage = null;
  stream?.getTracks().forEach((track) => track.stop());
  context?.close();
}
