// The same as cases.py, for clients in JavaScript. Needs nothing but Node.

import { readFileSync } from "node:fs";

export const ASKED = JSON.parse(readFileSync(process.argv[2], "utf-8"));
export const URL = `${ASKED.url}/v1`;
export const MOST_TOKENS = 300;
const CASES = [];

export const test = (name, work) => CASES.push([name, work]);
export const recording = (path) => readFileSync(path);

export function heard(path) {
  const data = recording(path).toString("base64");
  return [{ role: "user", content: [{ type: "input_audio", input_audio: { data, format: "wav" } }] }];
}

export function check(right, said) {
  if (!right) throw new Error(typeof said === "string" ? said : JSON.stringify(said));
}

export function same(found, wanted) {
  const [one, other] = [found, wanted].map((value) => JSON.stringify(value));
  check(one === other, `${one} instead of ${other}`);
}

export function holds(text, part) {
  check((text ?? "").includes(part), `${part} is not in ${text}`);
}

// PCM16 of a second and more, in which somebody speaks.
export function sounds(pieces, rate = 24_000) {
  const data = Buffer.concat(pieces);
  const samples = Array.from({ length: data.length >> 1 }, (_, at) => data.readInt16LE(2 * at));
  check(samples.length > rate, `${samples.length} samples`);
  check(samples.some((sample) => sample > 3000), "it is silent");
}

export function streamed(pieces, whole, least = 1) {
  check(pieces.length >= least, `${pieces.length} pieces: ${pieces}`);
  same(pieces.join(""), whole);
}

export async function main() {
  for (const [name, work] of CASES) {
    const begin = Date.now();
    let error = null;
    try {
      await work();
    } catch (caught) {
      console.error(caught);
      error = `${caught.constructor.name}: ${String(caught.message).split(/\s+/).join(" ")}`.slice(0, 200);
    }
    console.log(JSON.stringify({ case: name, error, seconds: (Date.now() - begin) / 1000 }));
  }
}
