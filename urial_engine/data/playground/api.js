// The server as the page calls it: requests with the key, its errors as it words them, streams.
// Addresses are relative, so that a proxy may serve the page below a path of its own.

export class ServerError extends Error {
  // status: of HTTP, 0 where no answer came. retryAfter: seconds, or null.
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    Object.assign(this, { name: "ServerError", status, retryAfter });
  }
}

const KEY = "urial-engine key"; // gone with the tab
let key = sessionStorage.getItem(KEY) ?? "";
let askForKey = null; // (what the server says) => a promise of a key, or of null for none
let asking = null;

export const onUnauthorized = (ask) => (askForKey = ask);

// Several requests may be refused together; the user is asked once.
async function renewKey(message) {
  asking ??= askForKey(message).finally(() => (asking = null));
  const given = await asking;
  if (given === null) return false;
  key = given;
  sessionStorage.setItem(KEY, key);
  return true;
}

async function refusal(response) {
  let message = "";
  try {
    message = (await response.json()).error.message;
  } catch {} // a proxy's page, or a body cut short: the status has to do
  const wait = Number(response.headers.get("Retry-After") || NaN);
  const told = message || `The server answers ${response.status} ${response.statusText}.`;
  return new ServerError(told, response.status, Number.isFinite(wait) ? wait : null);
}

// What a lost connection throws is worded by the browser; an abort is the user's and stays one.
function lost(error, when) {
  if (error.name === "AbortError" || error instanceof ServerError) return error;
  return new ServerError(`${when}: ${error.message}`);
}

export async function call(path, { method = "GET", body, signal } = {}) {
  for (;;) {
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { method, headers, body: JSON.stringify(body), signal });
    } catch (error) {
      throw lost(error, "The server cannot be reached");
    }
    if (response.ok) return response;
    const error = await refusal(response);
    if (response.status !== 401 || !(await renewKey(error.message))) throw error;
  }
}

export async function ask(path, options) {
  const response = await call(path, options);
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

// The events of a stream of server-sent events, as objects, until its [DONE].
export async function* events(path, body, signal) {
  const response = await call(path, { method: "POST", body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new ServerError("The connection ended before the answer did.");
      const blocks = (unread + value).split(/\r?\n\r?\n/);
      unread = blocks.pop();
      for (const block of blocks) {
        const data = block.match(/^data: ?.*/gm)?.map((line) => line.replace(/^data: ?/, ""));
        if (!data) continue; // a comment, which only keeps the connection open
        if (data[0] === "[DONE]") return;
        const event = JSON.parse(data.join("\n"));
        if (event.error) throw new ServerError(event.error.message);
        yield event;
      }
    }
  } catch (error) {
    throw lost(error, "The connection to the server was lost");
  } finally {
    reader.cancel().catch(() => {}); // already broken: nothing is left to free
  }
}
