// Outcomes for people who hear the page rather than see it. Stock counts are never read out: they change ten times a
// second; that a sale is sold out, or that somebody's turn has come, is said once.

import { byId } from "./dom.js";

/** Has a screen reader say this when it is done with what it is saying. */
export function announce(text) {
  const region = byId("announcer");
  // The same words twice are two outcomes: without the change between, the second would not be read.
  region.textContent = "";
  requestAnimationFrame(() => {
    region.textContent = text;
  });
}
