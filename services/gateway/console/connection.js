// The stream of snapshots, and questions about one request. A key, where one is needed, stays in
// this tab.

const KEY = "baton-console-key";

export class DeniedError extends Error {}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { authorization: `Bearer ${key}` } : {};
}

export function keepKey(key) { sessionStorage.setItem(KEY, key); }

const SILENCE_MS = 5000;

async function ask(path, signal) {
  const response = await fetch(path, { headers: headers(), cache: "no-store", signal });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const message = body.error?.message ?? `HTTP ${response.status}`;
  if (response.status === 401 || response.status === 403) throw new DeniedError(message);
  throw new Error(message);
}

export async function explain(requestId) {
  return (await ask(`api/explain/${encodeURIComponent(requestId)}`)).json();
}

async function* events() {
  // A line that is cut without a word is noticed by its silence.
  const silence = new AbortController();
  let timer;
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(), SILENCE_MS);
  };
  wait();
  const response = await ask("api/live", silence.signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    wait();
    if (done) {
      clearTimeout(timer);
      return;
    }
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
  }
}

// Calls `onSnapshot` for each snapshot, `onLost` when the gateway is away; tries again for ever.
export async function follow({ onSnapshot, onLost, onDenied }) {
  let pause = 500;
  for (;;) {
    try {
      for await (const snapshot of events()) { pause = 500; onSnapshot(snapshot); }
      onLost("the gateway ended the stream");
    } catch (error) {
      if (error instanceof DeniedError) await onDenied(error.message);
      else onLost("the gateway does not answer");
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(2 * pause, 5000);
  }
}
