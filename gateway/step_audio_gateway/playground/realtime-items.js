// Between the two ways in which a conversation is told: messages of chat completions, items of realtime sessions.

const HEAD = 60; // characters of base64: a WAV header of 44 bytes and one more, a whole number of its groups
const OWN_WAV = "WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0data"; // 16 kHz, mono, 16 bits

/** Items of the exchanges that have been answered, without those whose recordings are not the microphone's. */
export function itemsOf(exchanges) {
  return exchanges.flatMap(({ messages, reply }) => {
    const answer = reply.message();
    const items = [...messages, ...(answer ? [answer] : [])].map(itemsOfMessage);
    return answer && !items.includes(null) ? items.flat() : [];
  });
}

/** null: there is a recording in it that cannot travel so. */
function itemsOfMessage({ role, content, tool_calls: calls = [], tool_call_id: call_id }) {
  if (role === "tool") return [{ type: "function_call_output", call_id, output: content }];
  const parts = typeof content === "string" ? [{ type: "text", text: content }] : content;
  const given = parts.filter(({ type, text }) => type !== "text" || text).map((part) => partOf(part, role));
  if (given.includes(null)) return null;
  return [
    ...(given.length ? [{ type: "message", role, content: given }] : []),
    ...calls.map(({ id, function: { name, arguments: text } }) => (
      { type: "function_call", call_id: id, name, arguments: text }
    )),
  ];
}

function partOf({ type, text, input_audio: audio }, role) {
  if (type === "text") return { type: role === "assistant" ? "output_text" : "input_text", text };
  const head = atob(audio.data.slice(0, HEAD));
  if (audio.format !== "wav" || head.slice(8, 40) !== OWN_WAV) return null;
  return { type: "input_audio", audio: btoa(head.slice(44) + atob(audio.data.slice(HEAD))) };
}
