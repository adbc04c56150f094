// The purchase that this tab is asking for. It is written down before it is sent, with its Idempotency-Key, and crossed
// out when the answer is known: whatever happens between, a reload included, the same request is sent again, and the
// gateway gives it the answer of the first.

import { read, write } from "./store.js";

const nameOf = (saleId, user) => `wish:${saleId}:${user}`;

function newKey() {
  // Not crypto.randomUUID: it is missing where a page comes over plain HTTP from another machine.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (octet) => octet.toString(16).padStart(2, "0")).join("");
}

/** Writes a new wish down: { saleId, user, quantity, waitlist, key, madeAt }, the last in ms since the epoch. */
export function makeWish(saleId, user, quantity, waitlist) {
  const wish = { saleId, user, quantity, waitlist, key: newKey(), madeAt: Date.now() };
  write(nameOf(saleId, user), JSON.stringify(wish));
  return wish;
}

/** The wish of this user that has had no answer yet, or null. */
export function openWish(saleId, user) {
  try {
    return JSON.parse(read(nameOf(saleId, user)));
  } catch {
    return null;
  }
}

/** Crosses a wish out. */
export function closeWish(wish) {
  write(nameOf(wish.saleId, wish.user), null);
}
