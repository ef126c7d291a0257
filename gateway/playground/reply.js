/** What the model has said so far, and when. Times are in milliseconds since the request left. */
export class Reply {
  reasoning = "";
  content = "";
  toolCalls = []; // {id, name, arguments}
  pieces = 0; // of thought: about one per token while it streams, until the server's count arrives
  usage = null;
  finishReason = null;
  state = "waiting"; // → thinking → answering → done | stopped | failed
  firstThought = null;
  firstAnswer = null;
  ended = null;
  #sent = performance.now();

  get elapsed() {
    return this.ended ?? performance.now() - this.#sent;
  }

  /** How long the thought took, or has taken so far. */
  get thinkingTime() {
    return this.firstThought === null ? 0 : (this.firstAnswer ?? this.elapsed) - this.firstThought;
  }

  get reasoningTokens() {
    return this.usage?.completion_tokens_details?.reasoning_tokens ?? null;
  }

  /** A chunk of the stream. */
  push(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const { reasoning_content: reasoning, content, tool_calls: calls } = choice.delta ?? {};
    if (reasoning) {
      this.firstThought ??= this.elapsed;
      this.state = "thinking";
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
  }

  /** The stream is over: `state` is "done", "stopped" or "failed". */
  end(state) {
    this.ended = this.elapsed;
    this.state = state;
  }

  /** As a message of the history, or null if there is nothing to remember. The thought is left out on purpose. */
  message() {
    if (!this.content && !this.toolCalls.length) return null;
    const message = { role: "assistant", content: this.content };
    if (this.toolCalls.length) {
      message.tool_calls = this.toolCalls.map(({ id, name, arguments: text }) => (
        { id, type: "function", function: { name, arguments: text } }
      ));
    }
    return message;
  }
}
