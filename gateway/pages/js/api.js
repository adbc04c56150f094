// Asking the gateway, and waiting as it says.

import { keepToken, token } from "./token.js";

const ANSWER_MS_MAX = 15_000;
/** How long a request is repeated before the person is asked again. */
const PATIENCE_MS = 10 * 60_000;
/** Pauses after answers that name none (a gateway that is away names none). */
const PAUSE_MS = 1_000;
const PAUSE_MS_MAX = 8_000;

/** An answer that is not a success (RFC 9457). `status` is 0 and `reason` UNREACHABLE when none came at all. */
export class Problem extends Error {
  constructor(status, body, retryAfterMs) {
    super(body.detail || body.title || "the gateway cannot be reached");
    this.status = status;
    this.reason = body.reason ?? "UNREACHABLE";
    this.metadata = body.metadata ?? {};
    this.retryAfterMs = retryAfterMs;
  }

  /** Whether the same request may be sent again: it was shed, or nobody knows what became of it. */
  get passes() {
    return [0, 408, 429, 502, 503, 504].includes(this.status);
  }
}

/** Resolves after so many milliseconds; rejects with the signal's reason when it is aborted. */
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const abort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, ms);
    signal?.addEventListener("abort", abort, { once: true });
  });
}

/** The pause before attempt number `attempt` (from 0) when none was told, with jitter so that pages spread out. */
export function backoff(attempt) {
  return Math.min(PAUSE_MS * 2 ** attempt, PAUSE_MS_MAX) * (0.75 + Math.random() / 2);
}

function toldPause(response, body) {
  if (Number.isFinite(body.retry_after_ms)) return body.retry_after_ms;
  const header = response.headers.get("retry-after");
  return header && /^\d+$/.test(header) ? Number(header) * 1000 : null;
}

/**
 * Sends one request and gives the JSON of its answer. Throws a Problem, or the signal's reason.
 * `key` is the Idempotency-Key; `waitS` is for how long the gateway was asked to hold the answer back.
 */
export async function ask(method, path, { body, key, signal, waitS = 0 } = {}) {
  const cut = new AbortController();
  const timer = setTimeout(() => cut.abort(), ANSWER_MS_MAX + waitS * 1000);
  const abort = () => cut.abort();
  signal?.addEventListener("abort", abort, { once: true });
  const headers = {};
  const bearerToken = token();
  if (bearerToken) headers.authorization = `Bearer ${bearerToken}`;
  if (key) headers["idempotency-key"] = key;
  if (body !== undefined) headers["content-type"] = "application/json";
  try {
    signal?.throwIfAborted();
    const response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: cut.signal,
      cache: "no-store",
      credentials: "omit",
    });
    const value = await response.json();
    if (response.ok) return value;
    // A token that has expired meanwhile is of no use to any other request either.
    if (response.status === 401 && bearerToken && token() === bearerToken) {
      keepToken(null, "Your token is not valid, or has expired.");
    }
    throw new Problem(response.status, value, toldPause(response, value));
  } catch (error) {
    if (error instanceof Problem) throw error;
    signal?.throwIfAborted();
    // No answer, half of one, or none in time: fetch does not tell these apart, and neither need we.
    throw new Problem(0, {}, null);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
  }
}

/**
 * Does `work` again after every Problem that passes, never earlier than the gateway said, for at most ten minutes.
 * `onWait(problem, ms)` is told of each pause. Throws the last Problem, or the signal's reason.
 */
export async function patiently(work, { onWait, signal } = {}) {
  const until = performance.now() + PATIENCE_MS;
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await work();
    } catch (problem) {
      if (!(problem instanceof Problem) || !problem.passes) throw problem;
      // What was told is kept to; a tenth more at random, so that those who were told the same do not come at once.
      const ms = problem.retryAfterMs === null ? backoff(attempt) : problem.retryAfterMs * (1 + Math.random() / 10);
      if (performance.now() + ms > until) throw problem;
      onWait?.(problem, ms);
      await pause(ms, signal);
    }
  }
}
