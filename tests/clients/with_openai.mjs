// openai, the package for JavaScript.

import OpenAI, { toFile } from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { ASKED, MOST_TOKENS, URL, check, heard, holds, main, recording, same, streamed, test } from "./cases.mjs";

const { sum, written, large, dictation, calculator, model, key } = ASKED;
const client = new OpenAI({ baseURL: URL, apiKey: key, maxRetries: 0, timeout: 120_000 });
const ask = { model, temperature: 0 };
const question = [{ role: "user", content: written.text }];
const Sum = z.object({ first: z.int(), second: z.int(), result: z.int() });

test("models.list", async () => {
  const found = [];
  for await (const one of client.models.list()) found.push(one.id);
  same(found, [model]);
});

test("chat", async () => {
  const reply = await client.chat.completions.create({ ...ask, messages: question });
  holds(reply.choices[0].message.content, written.answer);
  same(reply.choices[0].finish_reason, "stop");
});

test("chat, audio, stream", async () => {
  const whole = await client.chat.completions.create({ ...ask, messages: heard(sum.file) });
  holds(whole.choices[0].message.content, sum.answer);
  holds(whole.choices[0].message.reasoning_content, sum.words);
  const stream = await client.chat.completions.create({
    ...ask, messages: heard(sum.file), stream: true, stream_options: { include_usage: true },
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const deltas = chunks.flatMap((chunk) => chunk.choices.map((choice) => choice.delta));
  streamed(deltas.map((delta) => delta.content).filter(Boolean), whole.choices[0].message.content);
  streamed(deltas.map((d) => d.reasoning_content).filter(Boolean), whole.choices[0].message.reasoning_content, 2);
  same(chunks.at(-1).usage, whole.usage);
});

test("chat, stream helper", async () => {
  const pieces = [];
  const runner = client.chat.completions.stream({ ...ask, messages: heard(sum.file) });
  runner.on("content", (delta) => pieces.push(delta));
  streamed(pieces, await runner.finalContent());
  holds(pieces.join(""), sum.answer);
});

test("chat, parse()", async () => {
  const reply = await client.chat.completions.parse({
    ...ask, messages: question, max_tokens: MOST_TOKENS, response_format: zodResponseFormat(Sum, "sum"),
  });
  Sum.parse(reply.choices[0].message.parsed);
});

test("chat, tool call and back", async () => {
  const tools = [{ type: "function", function: calculator }];
  const { choices: [choice] } = await client.chat.completions.create({ ...ask, tools, messages: heard(large.file) });
  const [call] = choice.message.tool_calls;
  same(JSON.parse(call.function.arguments), { expression: large.expression });
  const result = { role: "tool", tool_call_id: call.id, content: "777" };
  const messages = [...heard(large.file), choice.message, result];
  const again = await client.chat.completions.create({ ...ask, tools, messages });
  holds(again.choices[0].message.content, "777");
});

test("chat, runTools", async () => {
  const asked = [];
  const call = (given) => (asked.push(given), "777");
  const tool = { type: "function", function: { ...calculator, function: call, parse: JSON.parse } };
  const runner = client.chat.completions.runTools({ ...ask, messages: heard(large.file), tools: [tool] });
  holds(await runner.finalContent(), "777");
  same(asked, [{ expression: large.expression }]);
});

test("responses, stream", async () => {
  const whole = await client.responses.create({ ...ask, input: written.text });
  holds(whole.output_text, written.answer);
  const pieces = [];
  const stream = client.responses.stream({ ...ask, input: written.text });
  for await (const event of stream) if (event.type === "response.output_text.delta") pieces.push(event.delta);
  streamed(pieces, whole.output_text);
  same((await stream.finalResponse()).output_text, whole.output_text);
});

test("responses, parse()", async () => {
  const reply = await client.responses.parse({
    ...ask, input: written.text, max_output_tokens: MOST_TOKENS, text: { format: zodTextFormat(Sum, "sum") },
  });
  Sum.parse(reply.output_parsed);
});

test("responses, tool call and back", async () => {
  const [{ content }] = heard(large.file);
  const input = [{ role: "user", content }];
  const tools = [{ type: "function", ...calculator }];
  const reply = await client.responses.create({ ...ask, input, tools, store: false });
  const call = reply.output.find((item) => item.type === "function_call");
  same(JSON.parse(call.arguments), { expression: large.expression });
  const result = { type: "function_call_output", call_id: call.call_id, output: "777" };
  const again = await client.responses.create({ ...ask, input: [...input, ...reply.output, result], tools });
  holds(again.output_text, "777");
});

test("transcriptions", async () => {
  for (const one of dictation) {
    for (const language of [{}, { language: "en" }]) {
      const file = await toFile(recording(one.file), "question.wav");
      same((await client.audio.transcriptions.create({ model, file, ...language })).text, one.text);
    }
  }
});

test("transcriptions, stream", async () => {
  const file = await toFile(recording(dictation[0].file), "question.wav");
  const events = [];
  for await (const event of await client.audio.transcriptions.create({ model, file, stream: true })) events.push(event);
  streamed(events.slice(0, -1).map((event) => event.delta), dictation[0].text);
  same(events.at(-1).text, dictation[0].text);
});

test("errors", async () => {
  const wrong = await client.chat.completions.create({ ...ask, messages: question, temperature: 9 }).catch((e) => e);
  check(wrong instanceof OpenAI.BadRequestError && wrong.param === "temperature", wrong);
  const none = await client.chat.completions.create({ model: "another", messages: question }).catch((e) => e);
  check(none instanceof OpenAI.NotFoundError, none);
});

await main();
