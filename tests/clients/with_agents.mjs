// OpenAI's agents for JavaScript: an agent's realtime session, over a WebSocket.

import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession, tool } from "@openai/agents-realtime";
import { ASKED, URL, check, holds, main, same, test } from "./cases.mjs";
import { FORMAT, pieces, within } from "./realtime.mjs";

const { sum, written, large, calculator, model, key } = ASKED;
const url = `${URL.replace(/^http/, "ws")}/realtime?model=${model}`;

// An agent's session; `answers`: what it says, one after the other.
async function session({ tools = [], turnDetection, providerData = {} }, work) {
  const agent = new RealtimeAgent({ name: "listener", instructions: "", tools });
  const found = new RealtimeSession(agent, {
    model,
    transport: new OpenAIRealtimeWebSocket({ useInsecureApiKey: true }),
    config: {
      outputModalities: ["text"],
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

test("RealtimeSession, interrupted by speech", () => {
  const endless = { ignore_eos: true, max_output_tokens: 3000 };
  return session({ turnDetection: vad, providerData: endless }, async (found, until) => {
    found.sendMessage(written.text);
    await until("response.created");
    speak(found, sum.file);
    same((await until("response.done")).response.status, "cancelled");
  });
});

await main();
process.exit(0);
