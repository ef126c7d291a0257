import { clipView } from "./clip-view.js";
import { count, duration, element, extend, icon } from "./dom.js";

const LEAST_WRITING = 50; // ms: what comes within less came in one piece, and its rate says nothing
const FINISH_NOTES = {
  length: "Cut off at the token limit.",
  content_filter: "Held back by the server's filter.",
};

/** One exchange on the page: what was asked, the thought in its fold, the answer, tool calls, timing, usage. */
export class ExchangeView {
  #frame = 0;
  #clock = null;
  #calls = [];

  /** `actions`: {again(), results(list of {id, text})}. */
  constructor(exchange, actions) {
    const { clips, text, reply } = exchange;
    this.exchange = exchange;
    this.reply = reply;
    this.clips = clips.length;
    this.actions = actions;
    this.thoughtText = document.createTextNode("");
    this.answerText = document.createTextNode("");
    this.thoughtTitle = element("span", { className: "thought-title", textContent: "Listening" });
    this.thoughtCount = element("span", { className: "thought-count" });
    const region = { className: "thought-text", tabIndex: 0, role: "group", "aria-label": "Chain of thought" };
    this.thought = element("div", region, this.thoughtText);
    const summary = element("summary", {}, icon("chevron"), this.thoughtTitle, this.thoughtCount);
    this.fold = element("details", { className: "thought", open: true }, summary, this.thought);
    summary.addEventListener("click", () => (this.foldIsTheirs = true));
    this.answer = element("div", { className: "answer", hidden: true }, this.answerText);
    this.calls = element("div", { className: "calls" });
    this.note = element("p", { className: "note", hidden: true });
    this.warnings = element("div", { className: "note warnings", role: "note", hidden: true });
    this.foot = element("footer", { className: "foot" });
    this.node = element("article", { className: "exchange" });
    if (clips.length || text) {
      const question = element("div", { className: "question" }, ...clips.map((clip) => clipView(clip)));
      this.question = element("p", { className: "question-text" });
      question.append(this.question);
      this.node.append(question);
    }
    this.body = element("div", { className: "reply" }, this.fold, this.answer, this.calls, this.warnings, this.note, this.foot);
    this.node.append(this.body);
    this.#begin();
  }

  /** The reply begins anew: "Try again". */
  restart(reply) {
    this.reply = reply;
    this.thoughtText.data = this.answerText.data = "";
    this.#calls = [];
    this.calls.replaceChildren();
    this.foot.replaceChildren();
    this.note.hidden = this.warnings.hidden = true;
    this.#begin();
  }

  #begin() {
    this.foldIsTheirs = false;
    this.fold.open = true;
    this.fold.hidden = false;
    this.#clock = setInterval(() => this.#draw(), 100);
    this.#draw();
  }

  /** After a chunk: draws at most once a frame. */
  update() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  /** The reply is over. `trouble`: what went wrong, for the user. */
  end(trouble) {
    clearInterval(this.#clock);
    cancelAnimationFrame(this.#frame); // it would draw the foot, with its button, a second time
    this.#frame = 0;
    this.#draw();
    const stopped = this.exchange.live ? "Interrupted." : "Stopped.";
    const note = trouble ?? (this.reply.state === "stopped" ? stopped : FINISH_NOTES[this.reply.finishReason]);
    if (note) {
      this.note.replaceChildren(note);
      this.note.className = trouble ? "note trouble" : "note";
      this.note.setAttribute("role", trouble ? "alert" : "note");
      this.note.hidden = false;
    }
    const warnings = this.reply.warningsOf(this.clips);
    this.warnings.replaceChildren(...warnings.map((text) => element("p", { textContent: text })));
    this.warnings.hidden = !warnings.length;
    if (!this.reply.message() && !this.exchange.live) this.note.append(" ", this.#button("Try again", () => this.actions.again()));
    if (this.reply.calls.length && this.reply.state === "done") this.#askResults();
    if (this.reply.firstThought !== null || this.reply.firstAnswer !== null) this.#drawFoot();
  }

  /** Another exchange follows: nothing here can be answered or repeated any more. */
  settle() {
    for (const control of this.body.querySelectorAll(".note button, .calls button")) control.remove();
    for (const field of this.body.querySelectorAll(".calls textarea")) field.readOnly = true;
  }

  #button(label, onclick) {
    return element("button", { type: "button", className: "small-button", textContent: label, onclick });
  }

  #draw() {
    const { reply, fold } = this;
    if (this.question) {
      this.question.textContent = this.exchange.text;
      this.question.hidden = !this.exchange.text;
    }
    this.node.dataset.state = reply.state;
    this.node.dataset.thinking = String(reply.thinking);
    const atEnd = this.thought.scrollHeight - this.thought.scrollTop - this.thought.clientHeight < 24;
    extend(this.thoughtText, reply.reasoning);
    if (atEnd) this.thought.scrollTop = this.thought.scrollHeight;
    if (reply.heard === null) extend(this.answerText, reply.content);
    else this.#drawCut();
    this.answer.hidden = !reply.content;
    const thoughtIsOver = reply.paced ? reply.ended !== null : reply.firstAnswer !== null;
    if (thoughtIsOver && !this.foldIsTheirs) fold.open = false;
    fold.hidden = !reply.reasoning && reply.state !== "waiting";
    this.thought.hidden = !reply.reasoning;
    this.#drawThoughtLine();
    reply.toolCalls.forEach((call, index) => this.#drawCall(call, index));
    if (this.foot.childElementCount) this.#drawFoot(); // the first sound may come when all has been written
  }

  /** What was not heard of an answer that was interrupted. */
  #drawCut() {
    const { content, heard } = this.reply;
    this.answerText.data = content.slice(0, heard);
    this.answer.replaceChildren(this.answerText, element("s", { className: "unheard" }, content.slice(heard)));
  }

  #drawThoughtLine() {
    const { reply } = this;
    const tokens = reply.reasoningTokens;
    const spent = tokens ?? reply.pieces;
    if (reply.state === "waiting") {
      this.thoughtTitle.textContent = "Listening";
      this.thoughtCount.textContent = duration(reply.elapsed);
      return;
    }
    this.thoughtTitle.textContent = reply.thinking ? "Thinking" : "Thought";
    const number = `${tokens === null ? "≈ " : ""}${count(spent)} token${spent === 1 ? "" : "s"}`;
    this.thoughtCount.textContent = `${duration(reply.thinkingTime)} · ${number}`;
  }

  #drawCall(call, index) {
    if (!this.#calls[index]) {
      const name = element("span", { className: "call-name" });
      const code = element("pre", { className: "call-arguments", tabIndex: 0 });
      this.#calls[index] = { name, code };
      const head = element("div", { className: "call-head" }, icon("tool"), name);
      this.calls.append(element("div", { className: "call" }, head, code));
    }
    const { name, code } = this.#calls[index];
    name.textContent = call.name;
    code.textContent = pretty(call.arguments);
  }

  #askResults() {
    const fields = this.reply.toolCalls.map((call, index) => {
      const label = `What ${call.name} returns`;
      const field = element("textarea", { rows: 2, placeholder: label, "aria-label": label, className: "call-result" });
      this.calls.children[index].append(field);
      return { id: call.id, field };
    });
    const send = this.#button("Return to the model", () => {
      this.actions.results(fields.map(({ id, field }) => ({ id, text: field.value })));
    });
    this.calls.append(send);
  }

  /** The strip of time and the counts below a finished reply. */
  #drawFoot() {
    const { reply } = this;
    const stretches = reply.stretches();
    const label = stretches.map(([, name, time]) => `${duration(time)} ${name}`).join(", ");
    const strip = element("div", { className: "strip", role: "img", "aria-label": label, title: label });
    for (const [name, , time] of stretches) {
      const part = element("span", { className: name });
      part.style.flexGrow = time;
      strip.append(part);
    }
    const facts = element("dl", { className: "facts" });
    const fact = (name, value, kind = "") => {
      facts.append(element("div", { className: kind }, element("dt", {}, name), element("dd", {}, value)));
    };
    if (reply.turnOver !== null) fact("turn over", duration(reply.turnOver), "heard");
    if (reply.firstThought !== null) fact("first thought", duration(reply.firstThought), "think");
    if (reply.firstAnswer !== null) fact("first answer", duration(reply.firstAnswer), "speak");
    if (reply.firstAudio !== null) fact("first sound", duration(reply.firstAudio), "speak");
    fact(this.exchange.live ? "all written" : "in all", duration(reply.ended));
    if (reply.speech) this.#speechFacts(fact);
    if (reply.usage) this.#usageFacts(fact);
    this.foot.replaceChildren(strip, facts);
    if (reply.content) this.foot.append(this.#copyButton());
  }

  #usageFacts(fact) {
    const { usage, ended, firstThought, firstAnswer } = this.reply;
    const audio = usage.prompt_tokens_details?.audio_tokens ?? 0;
    const reasoning = usage.completion_tokens_details?.reasoning_tokens ?? 0;
    if (audio) fact("audio tokens", count(audio), "heard");
    fact("text in", count(usage.prompt_tokens - audio));
    if (reasoning) fact("thought tokens", count(reasoning));
    fact("answer tokens", count(usage.completion_tokens - reasoning));
    const writing = ended - (firstThought ?? firstAnswer ?? ended);
    if (writing > LEAST_WRITING && !this.exchange.live) {
      const rate = usage.completion_tokens / (writing / 1000);
      fact("tokens/s", rate.toFixed(rate < 100 ? 1 : 0));
    }
  }

  /** Of an answer that was spoken while the model thought. */
  #speechFacts(fact) {
    const { speech } = this.reply;
    if (speech.first_spoken_seconds !== null) fact("first spoken", duration(1000 * speech.first_spoken_seconds), "speak");
    fact("thought before", `${count(speech.thought_tokens_before)} tokens`, "think");
    const silence = speech.underruns ? ` · ${duration(1000 * speech.silence_seconds)}` : "";
    fact("underruns", `${count(speech.underruns)}${silence}`);
  }

  #copyButton() {
    const button = this.#button("Copy answer", async () => {
      try {
        await navigator.clipboard.writeText(this.reply.content);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Copying is not allowed here";
      }
      setTimeout(() => (button.textContent = "Copy answer"), 1500);
    });
    return button;
  }
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // not complete yet
  }
}
