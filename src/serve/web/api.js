// What the page asks the server: JSON, and completions as streams.

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function headers(more = {}) {
  const key = sessionStorage.getItem("polar-key");
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

async function error_of(response) {
  let message = response.statusText || "The request failed.";
  try {
    message = (await response.json()).error.message;
  } catch { /* an answer without a JSON body: its status says it */ }
  const wait = response.headers.get("Retry-After");
  if (response.status === 429) message += ` The batch and its queue are taken; try again in ${wait ?? "a few"} s.`;
  if (response.status === 503) message += " Try again soon.";
  if (response.status === 401) message += " Settings has a field for it.";
  return new ApiError(response.status, message);
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer.");
  }
  if (!response.ok) throw await error_of(response);
  return response;
}

export async function get_json(path) {
  return (await ask(path, { headers: headers(), cache: "no-store" })).json();
}

/** Calls on_event with each JSON event of a completion. Throws ApiError; AbortError when stopped. */
export async function stream(path, body, signal, on_event) {
  const response = await ask(path, {
    method: "POST",
    signal,
    headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The connection broke in the middle of the answer.");
    }
    if (piece.done) throw new ApiError(0, "The answer broke off.");
    text += piece.value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const line = text.slice(0, end);
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new ApiError(500, event.error.message);
      on_event(event);
    }
  }
}

/** The path and prompt fields of one question: a chat where the model has a template for it. */
export function question(profile, messages) {
  if (profile.has_chat_template) return { path: "/v1/chat/completions", fields: { messages } };
  return { path: "/v1/completions", fields: { prompt: messages.map((message) => message.content).join("\n") } };
}

export function show_error(element, error) {
  element.hidden = !error;
  element.textContent = error ? (error.status ? `${error.status}: ${error.message}` : error.message) : "";
}
