// The server's OpenAI-compatible API, as far as this page needs it.

const BASE = new URL("v1/", document.baseURI); // relative: the page may be served under a prefix

/** What the server or the network answered instead; the message is for the user. `status` 0: no answer at all. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The list of models: [{id, max_model_len?}]. Throws ApiError. */
export async function listModels(key) {
  const response = await request("models", { headers: headers(key) });
  return (await response.json()).data ?? [];
}

/** Yields the chunks of a streamed chat completion. Throws ApiError; an AbortError when `signal` fires. */
export async function* streamChat(body, key, signal) {
  const response = await request("chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message ?? "The server gave up on this answer.", 500);
    yield chunk;
  }
  throw new ApiError("The connection ended before the answer did.");
}

/** A secret that opens one live session, and what the server says of it: {value, session}. Throws ApiError. */
export async function clientSecret(session, key) {
  const response = await request("realtime/client_secrets", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body: JSON.stringify({ session }),
  });
  return response.json();
}

/** The socket of a live session; browsers can send no headers with it, so the secret is a subprotocol. */
export function realtimeSocket(secret) {
  const address = new URL("realtime", BASE);
  address.protocol = address.protocol.replace("http", "ws");
  return new WebSocket(address, ["realtime", `openai-insecure-api-key.${secret}`]);
}

function headers(key) {
  if (/[^ -~]/.test(key)) throw new ApiError("The API key has characters that no key can have.", 401);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(new URL(path, BASE), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (response.ok) return response;
  let message;
  try {
    message = (await response.json()).error.message;
  } catch {
    // A proxy's page, not the API's answer.
  }
  message ??= `The server answered ${response.status} ${response.statusText}`.trim() + ".";
  if (response.status === 401) message = "This server wants an API key. Put it into the settings.";
  const pause = Number(response.headers.get("Retry-After"));
  if (response.status === 429 && pause) message = `${message} Try again in ${pause} s.`;
  throw new ApiError(message, response.status);
}

/** The `data:` lines of a stream of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (held + value).split(/\r?\n/);
      held = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trim();
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection broke before the answer was complete.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
