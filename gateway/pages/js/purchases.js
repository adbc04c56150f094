// The buyer's own purchases of a sale, each followed until it is final.

import { Problem, ask, backoff, pause } from "./api.js";

/** A browser opens six connections to one address; the stock stream and what is pressed need theirs. */
const LONG_POLLS_MAX = 3;
const LONG_POLL_S = 10;
/** The least time between two questions about one purchase, ms: with and without a long poll. */
const EVERY_MS = 1_000;
const EVERY_MS_WITHOUT = 5_000;

const FINAL = new Set(["CONFIRMED", "FAILED", "CANCELLED", "REFUNDED"]);
/** Purchases only ever move to a higher stage, so an answer of a lower one is an old one that came late. */
const STAGES = { WAITLISTED: 0, RESERVED: 1, SETTLING: 1, PARKED: 1, REFUNDING: 3, REFUNDED: 4 };
const stage = (state) => STAGES[state] ?? 2;

/** Whether a purchase's state changes no more by itself. */
export const isFinal = (purchase) => FINAL.has(purchase.state);

/** How long to hold a question, s. A place in line is told again the sooner the nearer its turn is; an unknown one now. */
function waitS(purchase, isFirst) {
  if (purchase.state !== "WAITLISTED") return LONG_POLL_S;
  if (isFirst && !purchase.waitlist_position) return 0;
  return Math.min(LONG_POLL_S, Math.max(2, Math.round((purchase.waitlist_position ?? 0) / 100)));
}

/** Own purchases of one sale. `onChange(purchase, before)` is told of each change; `before` is undefined of a new one. */
export class Purchases {
  #known = new Map();
  #followed = new Set();
  #ended = new AbortController();
  #longPolls = 0;

  constructor(saleId, onChange) {
    this.saleId = saleId;
    this.onChange = onChange;
  }

  /** The purchases, newest first. */
  get all() {
    return [...this.#known.values()].sort((a, b) => Date.parse(b.create_time) - Date.parse(a.create_time));
  }

  /** Reads them all. Throws a Problem. */
  async load() {
    const path = `/v1/purchases?sale_id=${encodeURIComponent(this.saleId)}`;
    const { purchases } = await ask("GET", path, { signal: this.#ended.signal });
    for (const purchase of purchases) this.take(purchase);
  }

  /** Ends following. */
  end() {
    this.#ended.abort();
  }

  /** Takes in what an answer said of a purchase, and follows it from now on if it is not final. */
  take(news) {
    if (this.#ended.signal.aborted) return;
    const before = this.#known.get(news.purchase_id);
    if (before && stage(news.state) < stage(before.state)) return;
    // A list tells no places, and the answer to Buy no times: what is known already stays.
    const told = Object.entries(news).filter(([, value]) => value !== null && value !== undefined);
    const now = { create_time: new Date().toISOString(), ...before, ...Object.fromEntries(told) };
    if (before?.state === "WAITLISTED" && !news.waitlist_position) now.waitlist_position = before.waitlist_position;
    this.#known.set(now.purchase_id, now);
    this.onChange(now, before);
    if (!isFinal(now)) this.#follow(now.purchase_id);
  }

  async #follow(id) {
    if (this.#followed.has(id)) return;
    this.#followed.add(id);
    try {
      let isFirst = true;
      for (let failures = 0; !isFinal(this.#known.get(id)); isFirst = false) {
        const before = this.#known.get(id);
        const asked = performance.now();
        const holds = this.#longPolls < LONG_POLLS_MAX;
        let restMs = holds ? EVERY_MS : EVERY_MS_WITHOUT;
        try {
          this.take(await this.#ask(before, holds ? waitS(before, isFirst) : 0));
          failures = 0;
          // Something has happened, and the next may follow at once.
          if (this.#known.get(id).state !== before.state) restMs = 0;
        } catch (problem) {
          if (!(problem instanceof Problem) || !problem.passes) return;
          restMs = Math.max(problem.retryAfterMs ?? 0, backoff(failures));
          failures += 1;
        }
        await pause(Math.max(0, restMs - (performance.now() - asked)), this.#ended.signal);
      }
    } catch (error) {
      if (!this.#ended.signal.aborted) throw error;
    } finally {
      this.#followed.delete(id);
    }
  }

  async #ask(purchase, seconds) {
    const path = `/v1/purchases/${purchase.purchase_id}`;
    if (!seconds) return ask("GET", path, { signal: this.#ended.signal });
    this.#longPolls += 1;
    try {
      return await ask("GET", `${path}?wait=${seconds}`, { signal: this.#ended.signal, waitS: seconds });
    } finally {
      this.#longPolls -= 1;
    }
  }
}
