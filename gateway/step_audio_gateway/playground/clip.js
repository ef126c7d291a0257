import { RECORDINGS } from "./offers.js";
import { encodeWav, resample } from "./wav.js";

export const MODEL_RATE = 16000; // Hz, what the model hears
const DRAWING_RATE = 8000; // Hz, enough for a waveform of a file, and small in memory
const DRAWING_BYTES = 64 * 2 ** 20; // larger files are sent without being drawn: decoding them could exhaust a phone
const PEAKS = 600;
const SILENCE = 0.004; // peak amplitude, −48 dBFS

/** What a field for files takes. */
export const ACCEPT = [...RECORDINGS.types, ...RECORDINGS.extensions.map((extension) => `.${extension}`)].join(",");

/** One recording: its file, its looks, and how it travels. */
export class Clip {
  #base64 = null;

  /** `seconds` is NaN and `peaks` empty where the browser cannot decode what the server perhaps can. */
  constructor(name, blob, format, seconds, peaks) {
    Object.assign(this, { name, blob, format, seconds, peaks });
    this.url = URL.createObjectURL(blob);
  }

  /** A recording of the microphone: 16-bit mono WAV at the model's own rate. */
  static async fromSamples(samples, sampleRate, name) {
    return Clip.heard(await resample(samples, sampleRate, MODEL_RATE), name);
  }

  /** The same of samples that are at that rate. */
  static heard(samples, name) {
    const blob = new Blob([encodeWav(samples, MODEL_RATE)], { type: "audio/wav" });
    return new Clip(name, blob, "wav", samples.length / MODEL_RATE, peaksOf(samples));
  }

  /** A file as it is. Throws an Error whose message is for the user. */
  static async fromFile(file) {
    const extension = file.name.match(/\.(\w+)$/)?.[1].toLowerCase();
    const [type] = file.type.toLowerCase().split(";");
    const known = RECORDINGS.extensions.includes(extension);
    if (!known && !RECORDINGS.types.includes(type)) {
      throw new Error(`${file.name} is not a recording that can be read: send ${RECORDINGS.advice}.`);
    }
    if (file.size === 0) throw new Error(`${file.name} is empty.`);
    let seconds = NaN;
    let peaks = [];
    if (file.size <= DRAWING_BYTES) {
      try {
        const audio = await new OfflineAudioContext(1, 1, DRAWING_RATE).decodeAudioData(await file.arrayBuffer());
        seconds = audio.duration;
        peaks = peaksOf(audio.getChannelData(0));
      } catch {
        // Not a format of this browser: the server has the last word on it.
      }
    }
    return new Clip(file.name, file, known ? extension : type.split("/")[1], seconds, peaks);
  }

  get silent() {
    return this.peaks.length > 0 && Math.max(...this.peaks) < SILENCE;
  }

  /** As a content part of a message. */
  async part() {
    this.#base64 ??= await base64(this.blob);
    return { type: "input_audio", input_audio: { data: this.#base64, format: this.format } };
  }

  discard() {
    URL.revokeObjectURL(this.url);
  }
}

/** The largest amplitude of each of `PEAKS` stretches. */
function peaksOf(samples) {
  const length = Math.min(PEAKS, samples.length);
  return Array.from({ length }, (_, i) => {
    const end = Math.floor(((i + 1) * samples.length) / length);
    return peak(samples.subarray(Math.floor((i * samples.length) / length), end));
  });
}

/** The largest amplitude. */
export function peak(samples) {
  let largest = 0;
  for (const sample of samples) largest = Math.max(largest, Math.abs(sample));
  return largest;
}

function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("The file can no longer be read. Add it again."));
    reader.readAsDataURL(blob);
  });
}
