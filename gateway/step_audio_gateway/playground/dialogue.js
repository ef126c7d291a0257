import { Clip, MODEL_RATE, peak } from "./clip.js";
import { userMessage } from "./conversation.js";
import { LiveSession } from "./live-session.js";
import { Microphone } from "./microphone.js";
import { Playback } from "./playback.js";
import { Reply } from "./reply.js";
import { Resampler } from "./resampler.js";
import { SentAudio } from "./sent-audio.js";
import { Speech } from "./speech.js";
import { base64OfPcm, bytesOf } from "./wav.js";

const WISHES = { echoCancellation: true, noiseSuppression: true, autoGainControl: true }; // it is not to hear itself

/** A live conversation: the server hears the microphone all the time, and answers when the speaker stops.
 *
 * Events, with `detail`: "state" ("off", "connecting", "listening", "hearing", "thinking" or "speaking"), "level" (0 to
 * 1), "turn" (a new exchange), "change" (an exchange that has grown), "over" ({exchange, trouble: a message for the
 * user, where there is any}), "trouble" (one that is about none).
 */
export class Dialogue extends EventTarget {
  #state = "off";
  #microphone = null;
  #playback = null;
  #session = null;
  #resampler = null;
  #sent = null;
  #speech = new Speech({ onstart: () => this.#sounds(0), onidle: () => this.#rest() });
  #paced = false;
  #last = null; // exchange
  #begun = 0; // ms of all audio, of the turn that is spoken
  #open = new Map(); // response id -> exchange whose answer is under way
  #items = new Map(); // id of an item -> its exchange
  #turns = 0;

  get state() {
    return this.#state;
  }

  /** To be called by a click, or browsers let nothing sound. `settings`: of the session; `items`: what was said before.
   * Throws an Error whose message is for the user. */
  async start(settings, key, items) {
    this.#to("connecting");
    void Speech.audible;
    const playback = (this.#playback = new Playback(() => this.#rest()));
    const given = () => this.#playback !== playback; // ended meanwhile
    try {
      await playback.resume();
      const microphone = await Microphone.open(WISHES, (samples) => this.#hear(samples));
      if (given()) return microphone.close();
      this.#microphone = microphone;
      this.#resampler = new Resampler(microphone.sampleRate, MODEL_RATE);
      this.#sent = new SentAudio();
      const session = await LiveSession.open(settings, key, (event) => this.#take(event), (message) => {
        this.#emit("trouble", message);
        this.end();
      });
      if (given()) return session.close();
      this.#session = session;
      this.#paced = "mind_paced_speaking" in settings;
      for (const item of items) session.send("conversation.item.create", { item });
      this.#to("listening");
    } catch (error) {
      if (given()) return;
      this.end();
      throw error;
    }
  }

  /** What is under way ends, too. */
  end() {
    if (this.#state === "off") return;
    this.#session?.close();
    this.#microphone?.close();
    this.#playback.close();
    this.#speech.stop();
    this.#session = this.#microphone = this.#playback = this.#last = null;
    for (const exchange of this.#open.values()) this.#over(exchange, "stopped");
    this.#open.clear();
    this.#items.clear();
    this.#to("off");
  }

  /** What the calls of `exchange` have brought: [{id, text}]. Whether they are of this conversation. */
  results(exchange, list) {
    if (!this.#session || exchange !== this.#last) return false;
    for (const { id, text } of list) {
      this.#send("conversation.item.create", { item: { type: "function_call_output", call_id: id, output: text } });
    }
    const messages = list.map(({ id, text }) => ({ role: "tool", tool_call_id: id, content: text }));
    this.#begin({ clips: [], text: "", messages, reply: new Reply() });
    this.#send("response.create");
    return true;
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #to(state) {
    if (state === this.#state) return;
    this.#state = state;
    this.#emit("state", state);
  }

  #send(type, values) {
    this.#session.send(type, values);
  }

  #hear(samples) {
    this.#emit("level", peak(samples));
    if (!this.#session) return;
    const heard = this.#resampler.push(samples);
    this.#sent.push(heard);
    this.#send("input_audio_buffer.append", { audio: base64OfPcm(heard) });
  }

  #take(event) {
    const exchange = this.#open.get(event.response_id) ?? this.#items.get(event.item_id);
    const reply = exchange?.reply;
    switch (event.type) {
      case "input_audio_buffer.speech_started":
        this.#begun = event.audio_start_ms;
        this.#interrupt();
        this.#to("hearing");
        break;
      case "input_audio_buffer.speech_stopped":
        this.#turn(event);
        break;
      case "conversation.item.input_audio_transcription.delta":
        exchange.text += event.delta;
        this.#emit("change", exchange);
        break;
      case "conversation.item.input_audio_transcription.completed":
        exchange.text = event.transcript;
        this.#emit("change", exchange);
        break;
      case "response.created":
        this.#speech.stop();
        this.#open.set(event.response.id, this.#last);
        break;
      case "response.output_item.added":
        this.#items.set(event.item.id, exchange);
        if (event.item.type === "message") exchange.itemId = event.item.id;
        break;
      case "response.reasoning_text.delta":
        this.#grow(exchange, { reasoning_content: event.delta });
        break;
      case "response.output_text.delta":
        this.#grow(exchange, { content: event.delta });
        this.#say(exchange, false);
        break;
      case "response.output_audio_transcript.delta":
        this.#grow(exchange, { content: event.delta });
        break;
      case "response.output_audio.delta":
        this.#sounds(1000 * this.#playback.play(event.item_id, bytesOf(event.delta)));
        break;
      case "response.function_call_arguments.done": {
        const { call_id: id, name, arguments: text } = event;
        const called = { index: reply.toolCalls.length, id, function: { name, arguments: text } };
        this.#grow(exchange, { tool_calls: [called] });
        break;
      }
      case "response.done":
        this.#done(event.response);
        break;
      case "conversation.item.retrieved": // of an answer that was cut where it was interrupted
        this.#cut(this.#items.get(event.item.id), event.item.content[0].transcript?.length ?? 0);
        break;
      case "error":
        this.#emit("trouble", event.error.message);
        break;
    }
  }

  /** Somebody has stopped speaking: what was heard, and the reply to come, whose clock began when the speech ended. */
  #turn({ item_id: itemId, audio_end_ms: end }) {
    const silence = this.#session.silence;
    const clip = Clip.heard(this.#sent.between(this.#begun, end), `Turn ${++this.#turns}`);
    const exchange = { clips: [clip], text: "", messages: [], reply: new Reply(this.#sent.timeOf(end - silence)) };
    exchange.reply.turnOver = exchange.reply.elapsed;
    userMessage([clip], "").then((message) => (exchange.messages = [message])); // long before anybody asks for it
    this.#items.set(itemId, exchange);
    this.#begin(exchange);
  }

  #begin(exchange) {
    exchange.reply.paced = this.#paced;
    exchange.live = true;
    this.#last = exchange;
    this.#emit("turn", exchange);
    this.#to("thinking");
  }

  #grow(exchange, delta) {
    exchange.reply.push({ choices: [{ delta }] });
    if (delta.content) this.#to("speaking");
    this.#emit("change", exchange);
  }

  /** By the browser's voice, where the server has none. */
  #say(exchange, complete) {
    if (this.#session.aloud || !Speech.audible || !exchange.reply.content) return;
    exchange.said = true;
    this.#speech.follow(exchange.reply.content, { complete, inPieces: exchange.reply.paced });
  }

  /** The answer is to be heard in `ahead` ms. */
  #sounds(ahead) {
    const { reply } = this.#last;
    if (reply.firstAudio !== null) return;
    reply.firstAudio = reply.elapsed + ahead;
    this.#emit("change", this.#last);
  }

  /** Nothing sounds any more; perhaps more comes. */
  #rest() {
    if (this.#state === "speaking" && !this.#open.size) this.#to("listening");
  }

  #done({ id, status, status_details: details, usage }) {
    const exchange = this.#open.get(id);
    this.#open.delete(id);
    const { reply } = exchange;
    if (usage) reply.push({ usage: usageOf(usage) });
    if (details?.reason === "max_output_tokens") reply.finishReason = "length";
    const over = { completed: "done", incomplete: "done", failed: "failed" }[status] ?? "stopped";
    if (over === "done") this.#say(exchange, true);
    this.#over(exchange, over, details?.error?.message);
    if (!this.#playback.playing && !this.#speech.speaking && this.#state !== "hearing") this.#to("listening");
  }

  #over(exchange, state, trouble) {
    exchange.reply.end(state);
    this.#emit("over", { exchange, trouble });
  }

  /** Falls silent; what was not heard of the answer is forgotten, here and there. */
  #interrupt() {
    const heard = this.#playback.stop();
    if (heard) {
      const { itemId: item_id, milliseconds: audio_end_ms } = heard;
      this.#send("conversation.item.truncate", { item_id, content_index: 0, audio_end_ms });
      this.#send("conversation.item.retrieve", { item_id }); // how much that is in words, the server knows
    }
    if (!this.#speech.speaking && !this.#open.size) return;
    const said = this.#speech.stop();
    const whole = this.#last?.reply.content;
    if (!this.#last?.said || said >= whole.length) return;
    // What the browser says the server knows nothing of: the answer is put in again, as far as it was said.
    const content = [{ type: "output_text", text: whole.slice(0, said).trimEnd() }];
    this.#send("conversation.item.delete", { item_id: this.#last.itemId });
    if (said) this.#send("conversation.item.create", { item: { type: "message", role: "assistant", content } });
    this.#cut(this.#last, said);
  }

  #cut(exchange, characters) {
    if (!exchange || characters >= exchange.reply.content.length) return;
    exchange.reply.heard = characters;
    this.#emit("change", exchange);
  }
}

/** In the words of chat completions. */
function usageOf({ input_tokens, output_tokens, input_token_details: heard, output_token_details: made }) {
  return {
    prompt_tokens: input_tokens,
    completion_tokens: output_tokens,
    prompt_tokens_details: { audio_tokens: heard.audio_tokens },
    completion_tokens_details: { reasoning_tokens: made.reasoning_tokens },
  };
}
