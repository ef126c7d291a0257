/** The exchanges of a conversation, and what of them the model is shown. */
export class Conversation {
  #exchanges = []; // {messages: what was asked or returned, reply: Reply}

  /** Oldest first. */
  get exchanges() {
    return this.#exchanges;
  }

  add(exchange) {
    this.#exchanges.push(exchange);
  }

  clear() {
    this.#exchanges = [];
  }

  isLast(exchange) {
    return this.#exchanges.at(-1) === exchange;
  }

  /** The messages that ask for the reply to `exchange`. What got no answer is not part of the history. */
  messagesFor(exchange, instructions) {
    const before = this.#exchanges.slice(0, this.#exchanges.indexOf(exchange));
    const history = before.flatMap(({ messages, reply }) => {
      const answer = reply.message();
      return answer ? [...messages, answer] : [];
    });
    const system = instructions ? [{ role: "system", content: instructions }] : [];
    return [...system, ...history, ...exchange.messages];
  }
}

/** How many recordings are in the messages. */
export function countRecordings(messages) {
  const parts = messages.flatMap(({ content }) => (Array.isArray(content) ? content : []));
  return parts.filter(({ type }) => type === "input_audio").length;
}

/** A user's message of recordings and text. */
export async function userMessage(clips, text) {
  if (!clips.length) return { role: "user", content: text };
  const content = await Promise.all(clips.map((clip) => clip.part()));
  if (text) content.push({ type: "text", text });
  return { role: "user", content };
}
