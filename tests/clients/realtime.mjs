// What clients of realtime sessions in JavaScript share: recordings at 16 kHz, in pieces of 100 ms.

import { readFileSync } from "node:fs";

export const FORMAT = { type: "audio/pcm", rate: 16_000 };
const HEAD = 44; // bytes of the WAV files that are asked

export function* pieces(path, silence = 0) {
  const data = Buffer.concat([readFileSync(path).subarray(HEAD), Buffer.alloc(Math.round(32_000 * silence))]);
  for (let begin = 0; begin < data.length; begin += 3200) yield data.subarray(begin, begin + 3200);
}

export function within(seconds, work) {
  return Promise.race([
    work,
    new Promise((_, reject) => setTimeout(() => reject(new Error(`not done after ${seconds} s`)), seconds * 1000)),
  ]);
}
