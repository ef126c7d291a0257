// OpenAI's agents for JavaScript: an agent's realtime session, over a WebSocket.

import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession, tool } from "@openai/agents-realtime";
import { ASKED, URL, check, holds, main, same, sounds, test } from "./cases.mjs";
import { FORMAT, pieces, within } from "./realtime.mjs";

const { sum, written, large, calculator, model, key } = ASKED;
const url = `${URL.replace(/^http/, "ws")}/realtime?model=${model}`;

// An agent's session, which answers in writing.
async function session({ tools = [], turnDetection, outputModalities = ["text"], providerData = {} }, work) {
  const agent = new RealtimeAgent({ name: "listener", instructions: "", tools });
  const found = new RealtimeSession(agent, {
    model,
    transport: new OpenAIRealtimeWebSocket({ useInsecureApiKey: true }),
    config: {
      outputModalities,
      audio: { input: { format: FORMAT, transcription: null, turnDetection } },
      providerData,
    },
  });
  const events = [];
  let wake = () => {};
  found.transport.on("*", (event) => (events.push(event), wake()));
  found.on("error", ({ error }) => (events.push({ type: "error", error }), wake()));
  const until = async (type) => {
    for (;;) {
      while (!events.length) await new Promise((resolve) => (wake = resolve));
      const event = events.shift();
      check(event.type !== "error", JSON.stringify(event.error));
      if (event.type === type) return event;
    }
  };
  try {
    await within(100, (async () => {
      await found.connect({ apiKey: key, url });
      await work(found, until);
    })());
  } finally {
    found.close();
  }
}

function speak(found, path, silence, commit) {
  for (const piece of pieces(path, silence)) found.sendAudio(new Uint8Array(piece).buffer);
  if (commit) found.sendAudio(new ArrayBuffer(0), { commit: true });
}

const vad = { type: "server_vad" };
const text = (done) => done.response.output.flatMap((item) => item.content ?? []).map((part) => part.text).join("");

test("RealtimeSession, spoken, server VAD", () => session({ turnDetection: vad }, async (found, until) => {
  speak(found, sum.file, 1.5);
  holds(text(await until("response.done")), sum.answer);
}));

test("RealtimeSession, spoken, answered aloud", () => {
  return session({ turnDetection: vad, outputModalities: ["audio"] }, async (found, until) => {
    const heard = [];
    found.on("audio", ({ data }) => heard.push(Buffer.from(data)));
    speak(found, sum.file, 1.5);
    const done = await until("response.done");
    holds(done.response.output.at(-1).content[0].transcript, sum.answer);
    sounds(heard);
  });
});

test("RealtimeSession, written", () => session({ turnDetection: vad }, async (found, until) => {
  found.sendMessage(written.text);
  holds(text(await until("response.done")), written.answer);
}));

test("RealtimeSession, a tool that is run", async () => {
  const asked = [];
  const execute = (given) => (asked.push(given), "777");
  const tools = [tool({ ...calculator, execute, strict: false })];
  const settings = { tools, turnDetection: null, providerData: { temperature: 0 } };
  await session(settings, async (found, until) => {
    speak(found, large.file, 0, true);
    found.transport.requestResponse();
    await until("response.done");
    holds(text(await until("response.done")), "777");
    same(asked, [{ expression: large.expression }]);
  });
});

const endless = { ignore_eos: true, max_output_tokens: 3000 };

test("RealtimeSession, interrupted by speech", () => {
  return session({ turnDetection: vad, providerData: endless }, async (found, until) => {
    found.sendMessage(written.text);
    await until("response.created");
    speak(found, sum.file);
    same((await until("response.done")).response.status, "cancelled");
  });
});

test("RealtimeSession, interrupted by speech while it speaks", () => {
  const settings = { turnDetection: vad, outputModalities: ["audio"], providerData: endless };
  return session(settings, async (found, until) => {
    found.sendMessage(written.text);
    await until("response.output_audio.delta");
    speak(found, sum.file);
    const { response } = await until("response.done");
    same([response.status, response.status_details.reason], ["cancelled", "turn_detected"]);
    await until("conversation.item.truncated");
  });
});

test("RealtimeSession, interrupt() while it speaks", () => {
  const settings = { turnDetection: null, outputModalities: ["audio"], providerData: endless };
  return session(settings, async (found, until) => {
    found.sendMessage(written.text);
    await until("response.output_audio.delta");
    found.interrupt();
    const { response } = await until("response.done");
    same([response.status, response.status_details.reason], ["cancelled", "client_cancelled"]);
    const { item_id: id, audio_end_ms: heard } = await until("conversation.item.truncated");
    same(id, response.output.at(-1).id);
    check(heard >= 0, `${heard} ms`);
    found.transport.sendEvent({ type: "session.update", session: { type: "realtime", ignore_eos: false } });
    found.sendMessage(written.text);
    holds((await until("response.done")).response.output.at(-1).content[0].transcript, written.answer);
  });
});

await main();
process.exit(0);
