import { clock, element, icon, iconButton } from "./dom.js";
import { Waveform } from "./waveform.js";

const STEP = 2; // seconds an arrow key moves

let playing = null; // only one clip sounds at a time

/** A clip with a play button, its waveform (click or arrow keys to seek), its length and, if given, a remove button. */
export function clipView(clip, onremove) {
  const audio = new Audio();
  audio.preload = "none";
  audio.src = clip.url;
  const play = iconButton("play", `Play ${clip.name}`, () => (audio.paused ? start() : audio.pause()));
  const canvas = element("canvas", {
    className: "waveform",
    tabIndex: 0,
    role: "slider",
    "aria-label": `Position in ${clip.name}`,
    "aria-valuemin": "0",
    "aria-valuemax": String(Math.round(clip.seconds || 0)),
  });
  const time = element("span", { className: "clip-time" });
  const waveform = new Waveform(canvas);
  const length = () => (Number.isFinite(clip.seconds) ? clip.seconds : audio.duration || 0);

  function draw() {
    const at = audio.currentTime;
    const idle = audio.paused && at === 0;
    waveform.show(clip.peaks, idle || !length() ? 1 : at / length());
    time.textContent = idle ? (length() ? clock(length()) : clip.format) : `${clock(at)} / ${clock(length())}`;
    canvas.setAttribute("aria-valuenow", String(Math.round(at)));
    canvas.setAttribute("aria-valuetext", `${clock(at)} of ${clock(length())}`);
    if (!audio.paused) requestAnimationFrame(draw);
  }

  async function start() {
    playing?.pause();
    playing = audio;
    try {
      await audio.play();
    } catch {
      play.title = "This browser cannot play the file; the server may still understand it.";
      play.disabled = true;
    }
  }

  function seek(seconds) {
    audio.currentTime = Math.max(0, Math.min(seconds, length() - 0.01));
    draw();
  }

  const update = (symbol, label) => () => {
    play.replaceChildren(icon(symbol));
    play.title = `${label} ${clip.name}`;
    play.setAttribute("aria-label", play.title);
    draw();
  };
  audio.addEventListener("play", update("pause", "Pause"));
  audio.addEventListener("pause", update("play", "Play"));
  audio.addEventListener("ended", () => seek(0));
  canvas.addEventListener("click", (event) => {
    seek((event.offsetX / canvas.clientWidth) * length());
    if (audio.paused) start();
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: STEP, ArrowLeft: -STEP }[event.key];
    if (!step) return;
    event.preventDefault();
    seek(audio.currentTime + step);
  });

  const view = element("div", { className: "clip", title: clip.name }, play, canvas, time);
  if (onremove) {
    const remove = () => {
      audio.pause();
      onremove();
    };
    view.append(iconButton("close", `Remove ${clip.name}`, remove));
  }
  draw();
  return view;
}

export function stopPlayback() {
  playing?.pause();
}
