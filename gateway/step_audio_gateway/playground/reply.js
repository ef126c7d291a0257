const QUIET = 1000; // ms: a thought that goes on beside the answer, silent for so long, is taken to be over

/** What the model has said so far, and when. Times are in milliseconds since the request left, or the speech ended. */
export class Reply {
  reasoning = "";
  content = "";
  toolCalls = []; // {id, name, arguments}
  pieces = 0; // of thought: about one per token while it streams, until the server's count arrives
  usage = null;
  finishReason = null;
  state = "waiting"; // → thinking → answering → done | stopped | failed
  firstThought = null;
  lastThought = null;
  firstAnswer = null;
  ended = null;
  turnOver = null; // of a live conversation: when the server took the turn for ended
  firstAudio = null;
  heard = null; // characters of the answer, where it was interrupted
  paced = false; // asked to speak while it thinks
  speech = null; // how that went, in the server's words
  recordingsBefore = 0; // in the messages, of earlier exchanges
  warnings = []; // {index, text}: what was amiss with the recordings of all messages
  #since;

  constructor(since = performance.now()) {
    this.#since = since;
  }

  get elapsed() {
    return this.ended ?? performance.now() - this.#since;
  }

  /** Whether the thought, or the wait for it, still goes on. */
  get thinking() {
    if (this.state !== "answering") return this.state === "waiting" || this.state === "thinking";
    return this.paced && this.elapsed - (this.lastThought ?? this.firstAnswer) < QUIET;
  }

  /** How long the thought took, or has taken so far. */
  get thinkingTime() {
    if (this.firstThought === null) return 0;
    const paced = this.thinking ? null : this.lastThought;
    const end = this.paced ? paced : this.firstAnswer;
    return (end ?? this.elapsed) - this.firstThought;
  }

  /** What was amiss with the recordings of this exchange, in words; of several each has its number. */
  warningsOf(clips) {
    const own = this.warnings.filter(({ index }) => index >= this.recordingsBefore);
    const name = (index) => (clips > 1 ? `Recording ${index - this.recordingsBefore + 1}` : "The recording");
    return own.map(({ index, text }) => `${name(index)}: ${text}.`);
  }

  get reasoningTokens() {
    return this.usage?.completion_tokens_details?.reasoning_tokens ?? null;
  }

  /** Of a reply that is over, what came after what: [kind, name, milliseconds]. */
  stretches() {
    const { ended } = this;
    const [thought, answer] = [this.firstThought ?? ended, this.firstAnswer ?? ended];
    const thoughtEnd = thought + this.thinkingTime;
    const both = Math.max(0, thoughtEnd - Math.max(thought, answer));
    return [
      ["wait", "listening", Math.min(thought, answer)],
      ...(answer < thought ? [["speak", "answering", thought - answer]] : []),
      ["think", "thinking", Math.min(answer, thoughtEnd) - thought],
      ["both", "thinking and answering", both],
      ["speak", "answering", ended - Math.max(answer, thoughtEnd)],
    ].filter(([, , time]) => time > 0);
  }

  /** A chunk of the stream. */
  push(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    if (chunk.audio_warnings) this.warnings = chunk.audio_warnings;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const { reasoning_content: reasoning, content, tool_calls: calls } = choice.delta ?? {};
    if (reasoning) {
      this.lastThought = this.elapsed;
      this.firstThought ??= this.lastThought;
      if (this.firstAnswer === null) this.state = "thinking";
      this.reasoning += reasoning;
      this.pieces++;
    }
    if (content || calls?.length) {
      this.firstAnswer ??= this.elapsed;
      this.state = "answering";
      this.content += content ?? "";
    }
    for (const { index, id, function: called } of calls ?? []) {
      const call = (this.toolCalls[index] ??= { id: "", name: "", arguments: "" });
      call.id ||= id ?? "";
      call.name += called?.name ?? "";
      call.arguments += called?.arguments ?? "";
    }
    this.finishReason = choice.finish_reason ?? this.finishReason;
    this.speech = choice.mind_paced_speaking ?? this.speech;
  }

  /** The stream is over: `state` is "done", "stopped" or "failed". */
  end(state) {
    this.ended = this.elapsed;
    this.state = state;
  }

  /** The calls that can be answered: of a reply at its token limit the last one may be cut short. */
  get calls() {
    return this.finishReason === "length" ? [] : this.toolCalls;
  }

  /** As a message of the history, or null if there is nothing to remember: what a fault cut off is not an answer. The
   * thought is left out on purpose. */
  message() {
    const content = this.content.slice(0, this.heard ?? undefined);
    if (this.state === "failed" || (!content && !this.calls.length)) return null;
    const message = { role: "assistant", content };
    if (this.calls.length) {
      message.tool_calls = this.calls.map(({ id, name, arguments: text }) => (
        { id, type: "function", function: { name, arguments: text } }
      ));
    }
    return message;
  }
}
