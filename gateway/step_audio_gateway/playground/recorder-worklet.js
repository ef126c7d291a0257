// Runs on the audio thread: hands the microphone's samples to the page in blocks, mixed to one channel.

const BLOCK_FRAMES = 1024; // 21 ms at 48 kHz: one bar of the live waveform

class Tap extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Float32Array(BLOCK_FRAMES);
    this.filled = 0;
    this.ended = false;
    this.port.onmessage = () => {
      this.port.postMessage(this.block.slice(0, this.filled));
      this.port.postMessage(null); // nothing follows
      this.ended = true;
    };
  }

  process([channels]) {
    if (this.ended) return false;
    const frames = channels[0]?.length ?? 0;
    for (let i = 0; i < frames; i++) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      this.block[this.filled++] = sum / channels.length;
      if (this.filled === BLOCK_FRAMES) {
        this.port.postMessage(this.block);
        this.block = new Float32Array(BLOCK_FRAMES);
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("tap", Tap);
