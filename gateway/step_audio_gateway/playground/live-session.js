import { ApiError, clientSecret, realtimeSocket } from "./api.js";

const NO_TURNS = "This server finds no turns in speech: hold the button to talk.";
const FULL = "The server opens no more live conversations now. Try again later.";
const LOST = "The connection to the server was lost.";
const CLOSED = {
  1001: "The live conversation has ended: its time was up, or nobody spoke.",
  1012: "The server stops. Start the live conversation again in a moment.",
};

/** One session of the server's, over a WebSocket: events out and in. */
export class LiveSession {
  #socket;
  #told;

  /** `settings`: as session.update has them; `onevent(event)` for what comes once it is open, `onclose(message)` when
   * the server has ended it. Throws an Error whose message is for the user. */
  static async open({ model, ...settings }, key, onevent, onclose) {
    const { value, session: offered } = await clientSecret({ model }, key);
    if (!offered.audio.input.turn_detection) throw new ApiError(NO_TURNS);
    const session = new LiveSession();
    session.#told = await session.#connect(value, settings, onevent, onclose);
    return session;
  }

  /** Whether answers come as audio. */
  get aloud() {
    return this.#told.output_modalities.includes("audio");
  }

  /** ms of it, behind which a turn is over. */
  get silence() {
    return this.#told.audio.input.turn_detection.silence_duration_ms;
  }

  #connect(secret, settings, onevent, onclose) {
    return new Promise((resolve, reject) => {
      let open = false;
      const socket = (this.#socket = realtimeSocket(secret));
      socket.onmessage = ({ data }) => {
        const event = JSON.parse(data);
        if (open) return onevent(event);
        if (event.type === "session.created") return this.send("session.update", { session: settings });
        if (event.type === "session.updated") {
          open = true;
          return resolve(event.session);
        }
        if (event.type !== "error") return;
        this.close();
        reject(new ApiError(event.error.message));
      };
      socket.onclose = ({ code }) => (open ? onclose(CLOSED[code] ?? LOST) : reject(new ApiError(FULL)));
    });
  }

  send(type, values = {}) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify({ type, ...values }));
  }

  close() {
    this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close(1000);
  }
}
