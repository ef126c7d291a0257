const LOBES = 12; // of the sinc, on either side: the more, the sharper the low-pass
const PHASES = 1024; // between two samples in

/** A stream of mono samples at another rate, block by block; some browsers open no microphone at a rate of one's own.
 *
 * Each sample out is a sum over those in, weighted by a windowed sinc that lets pass what both rates can hold.
 */
export class Resampler {
  #step; // samples in for each one out
  #cutoff; // of the rate in
  #reach; // samples in, on either side
  #held; // what later samples out still need
  #at; // of the next sample out, in `#held`
  #kernels = new Map(); // phase -> weights of the samples in around it

  constructor(from, to) {
    this.#step = from / to;
    this.#cutoff = Math.min(1, to / from) * (to === from ? 1 : 0.92);
    this.#reach = Math.ceil(LOBES / this.#cutoff);
    this.#held = new Float32Array(this.#reach);
    this.#at = this.#reach;
  }

  /** What can be told by now; it lags by `LOBES` samples. */
  push(samples) {
    if (this.#step === 1) return samples;
    const all = new Float32Array(this.#held.length + samples.length);
    all.set(this.#held);
    all.set(samples, this.#held.length);
    const out = [];
    for (; this.#at + this.#reach < all.length; this.#at += this.#step) out.push(this.#sample(all));
    const first = Math.max(0, Math.floor(this.#at) - this.#reach);
    this.#held = all.slice(first);
    this.#at -= first;
    return Float32Array.from(out);
  }

  #sample(all) {
    const centre = Math.floor(this.#at);
    const kernel = this.#kernel(Math.round((this.#at - centre) * PHASES));
    const first = centre - this.#reach + 1;
    let sum = 0;
    for (let i = 0; i < kernel.length; i++) sum += all[first + i] * kernel[i];
    return sum;
  }

  #kernel(phase) {
    let kernel = this.#kernels.get(phase);
    if (!kernel) {
      kernel = Float32Array.from({ length: 2 * this.#reach }, (_, i) => {
        const x = (phase / PHASES + this.#reach - 1 - i) * this.#cutoff;
        return Math.abs(x) < LOBES ? this.#cutoff * sinc(x) * sinc(x / LOBES) : 0;
      });
      this.#kernels.set(phase, kernel);
    }
    return kernel;
  }
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}
