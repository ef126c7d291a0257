// openai, the package for JavaScript: realtime sessions, by its class for Node.

import net from "node:net";
import OpenAI from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import { ASKED, URL, check, holds, main, same, sounds, test } from "./cases.mjs";
import { FORMAT, pieces, within } from "./realtime.mjs";

const { sum, written, large, calculator, model, key } = ASKED;
const client = new OpenAI({ baseURL: URL, apiKey: key });

// The class wants TLS, which the server that is tried here has none of.
const createConnection = ({ host, port }) => net.connect({ host, port });

// A session, which answers in writing, and its events one after the other.
async function session(input, settings, work) {
  const connection = new OpenAIRealtimeWS({ model, options: { createConnection } }, client);
  const events = [];
  let wake = () => {};
  connection.on("event", (event) => (events.push(event), wake()));
  connection.on("error", (error) => (events.push({ type: "error", error }), wake()));
  const until = async (type) => {
    const found = [];
    for (;;) {
      while (!events.length) await new Promise((resolve) => (wake = resolve));
      found.push(events.shift());
      check(found.at(-1).type !== "error", String(found.at(-1).error?.message));
      if (found.at(-1).type === type) return found;
    }
  };
  try {
    await within(100, (async () => {
      await until("session.created");
      connection.send({
        type: "session.update",
        session: {
          type: "realtime",
          output_modalities: ["text"],
          audio: { input: { format: FORMAT, ...input } },
          ...settings,
        },
      });
      await until("session.updated");
      await work(connection, until);
    })());
  } finally {
    connection.close();
  }
}

function speak(connection, path, silence) {
  for (const piece of pieces(path, silence)) {
    connection.send({ type: "input_audio_buffer.append", audio: piece.toString("base64") });
  }
}

const said = (events) =>
  events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta).join("");
const vad = { turn_detection: { type: "server_vad" } };

test("OpenAIRealtimeWS, spoken, server VAD", () => session(vad, {}, async (connection, until) => {
  speak(connection, sum.file, 1.5);
  const events = await until("response.done");
  check(events.some((event) => event.type === "input_audio_buffer.speech_stopped"), "no speech_stopped");
  holds(said(events), sum.answer);
}));

test("OpenAIRealtimeWS, spoken, answered aloud", () => {
  return session(vad, { output_modalities: ["audio"] }, async (connection, until) => {
    speak(connection, sum.file, 1.5);
    const events = await until("response.done");
    holds(events.at(-1).response.output.at(-1).content[0].transcript, sum.answer);
    const audio = events.filter((event) => event.type === "response.output_audio.delta");
    sounds(audio.map((event) => Buffer.from(event.delta, "base64")));
  });
});

test("OpenAIRealtimeWS, tool call and back", () => {
  const settings = { tools: [{ type: "function", ...calculator }], temperature: 0 };
  return session({ turn_detection: null }, settings, async (connection, until) => {
    speak(connection, large.file);
    connection.send({ type: "input_audio_buffer.commit" });
    connection.send({ type: "response.create" });
    const [call] = (await until("response.done")).at(-1).response.output;
    same(JSON.parse(call.arguments), { expression: large.expression });
    const item = { type: "function_call_output", call_id: call.call_id, output: "777" };
    connection.send({ type: "conversation.item.create", item });
    connection.send({ type: "response.create" });
    holds(said(await until("response.done")), "777");
  });
});

test("OpenAIRealtimeWS, interrupted by speech", () => {
  const endless = { ignore_eos: true, max_output_tokens: 3000 };
  return session(vad, endless, async (connection, until) => {
    const content = [{ type: "input_text", text: written.text }];
    connection.send({ type: "conversation.item.create", item: { type: "message", role: "user", content } });
    connection.send({ type: "response.create" });
    await until("response.created");
    speak(connection, sum.file);
    const { response } = (await until("response.done")).at(-1);
    same([response.status, response.status_details.reason], ["cancelled", "turn_detected"]);
    connection.send({ type: "session.update", session: { type: "realtime", ignore_eos: false } });
    await until("session.updated");
    connection.send({ type: "input_audio_buffer.append", audio: Buffer.alloc(48_000).toString("base64") });
    holds(said(await until("response.done")), sum.answer);
  });
});

await main();
process.exit(0); // connections that are closing keep it for a while
