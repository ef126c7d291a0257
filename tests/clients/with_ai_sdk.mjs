// Vercel's AI SDK, by its providers for OpenAI and for servers that are compatible.

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, jsonSchema, stepCountIs, streamText, tool, transcribe } from "ai";
import { z } from "zod";
import { ASKED, MOST_TOKENS, URL, check, holds, main, recording, same, streamed, test } from "./cases.mjs";

const { sum, written, large, dictation, calculator, model, key } = ASKED;
const openai = createOpenAI({ baseURL: URL, apiKey: key });
const compatible = createOpenAICompatible({
  name: "step-audio", baseURL: URL, apiKey: key, includeUsage: true, supportsStructuredOutputs: true,
});
const Sum = z.object({ first: z.int(), second: z.int(), result: z.int() });
const ask = { temperature: 0, maxOutputTokens: MOST_TOKENS, maxRetries: 0 };

const audio = (path) => [
  { role: "user", content: [{ type: "file", mediaType: "audio/wav", data: recording(path) }] },
];

function cases(name, served, options = {}) {
  test(`${name}, generateText`, async () => {
    const reply = await generateText({ ...ask, ...options, model: served, prompt: written.text });
    holds(reply.text, written.answer);
    check(reply.usage.outputTokens > 0, reply.usage);
    holds((await generateText({ ...ask, ...options, model: served, messages: audio(sum.file) })).text, sum.answer);
  });

  test(`${name}, streamText`, async () => {
    const whole = await generateText({ ...ask, ...options, model: served, prompt: written.text });
    const stream = streamText({ ...ask, ...options, model: served, prompt: written.text });
    const pieces = [];
    for await (const piece of stream.textStream) pieces.push(piece);
    streamed(pieces, whole.text);
    same(await stream.finishReason, "stop");
    same((await stream.usage).outputTokens, whole.usage.outputTokens);
  });

  test(`${name}, Output.object`, async () => {
    const output = Output.object({ schema: Sum });
    Sum.parse((await generateText({ ...ask, ...options, model: served, prompt: written.text, output })).output);
    const stream = streamText({ ...ask, ...options, model: served, prompt: written.text, output });
    let last;
    for await (const partial of stream.partialOutputStream) last = partial;
    Sum.parse(last);
  });

  test(`${name}, tool call and back`, async () => {
    const asked = [];
    const execute = async (given) => (asked.push(given), "777");
    const { description, parameters } = calculator;
    const tools = { calculator: tool({ description, inputSchema: jsonSchema(parameters), execute }) };
    const reply = await generateText({
      ...ask, ...options, model: served, tools, messages: audio(large.file), stopWhen: stepCountIs(2),
    });
    same(asked, [{ expression: large.expression }]);
    holds(reply.text, "777");
  });
}

cases("openai.chat", openai.chat(model));
cases("openai.responses", openai.responses(model), {
  providerOptions: { openai: { store: false, passThroughUnsupportedFiles: true } },
});
cases("openai-compatible", compatible(model));

test("openai-compatible, the thought", async () => {
  holds((await generateText({ ...ask, model: compatible(model), messages: audio(sum.file) })).reasoningText, sum.words);
});

test("openai.transcription", async () => {
  for (const one of dictation) {
    for (const providerOptions of [{}, { openai: { language: "en" } }]) {
      const reply = await transcribe({
        model: openai.transcription(model), audio: recording(one.file), providerOptions, maxRetries: 0,
      });
      same(reply.text, one.text);
    }
  }
});

await main();
