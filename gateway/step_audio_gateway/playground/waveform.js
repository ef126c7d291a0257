const BAR = 3; // CSS pixels
const GAP = 2;
const FULL_SCALE = 0.05; // a clip no louder than this is not blown up further

/** Draws bars on a canvas in the colours `--wave` and `--wave-ahead` of its style, sharp on any screen. */
export class Waveform {
  #peaks = [];
  #played = 1;

  constructor(canvas) {
    this.canvas = canvas;
    new ResizeObserver(() => this.#draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  get bars() {
    return Math.max(1, Math.floor((this.canvas.clientWidth + GAP) / (BAR + GAP)));
  }

  /** A whole clip, `played` of it (0 to 1) in the strong colour. */
  show(peaks, played = 1) {
    const loudest = Math.max(FULL_SCALE, ...peaks);
    this.#peaks = peaks.map((value) => value / loudest);
    this.#played = played;
    this.#draw();
  }

  /** What is being heard right now: the newest peak at the right. */
  live(peaks) {
    const newest = peaks.slice(-this.bars);
    // Speech is soft beside full scale: its square root fills the height.
    this.#peaks = [...Array(this.bars - newest.length).fill(0), ...newest.map(Math.sqrt)];
    this.#played = 1;
    this.#draw();
  }

  #draw() {
    const { canvas, bars } = this;
    const scale = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !height) return;
    if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
    if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const style = getComputedStyle(canvas);
    const [strong, faint] = [style.getPropertyValue("--wave"), style.getPropertyValue("--wave-ahead")];
    for (let bar = 0; bar < bars; bar++) {
      const from = Math.floor((bar * this.#peaks.length) / bars);
      const to = Math.max(from + 1, Math.floor(((bar + 1) * this.#peaks.length) / bars));
      const size = Math.max(BAR, Math.max(0, ...this.#peaks.slice(from, to)) * height);
      context.fillStyle = (bar + 0.5) / bars <= this.#played ? strong : faint;
      context.beginPath();
      context.roundRect(bar * (BAR + GAP), (height - size) / 2, BAR, size, BAR / 2);
      context.fill();
    }
  }
}
