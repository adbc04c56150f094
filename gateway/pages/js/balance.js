// What is on the buyer's account, at the head of the page.

import { Problem, ask } from "./api.js";
import { el, setText, show } from "./dom.js";
import { money } from "./format.js";

/** Several purchases that change at once are one question, ms. */
const GATHER_MS = 150;

/** Shows the balance in `node`. `ask()` reads it again shortly; `end()` empties it. */
export function balanceIn(node, currencyCode) {
  const available = el("strong", { class: "num" });
  const held = el("span", { class: "held num" });
  node.replaceChildren(el("span", { class: "balance-label" }, "Balance"), available, held);
  let timer = 0;
  let ended = false;

  async function read() {
    try {
      const account = await ask("GET", `/v1/balance?currency=${encodeURIComponent(currencyCode)}`);
      if (ended) return;
      setText(available, money(account.available_minor, account.currency_code));
      setText(held, account.held_minor ? `+ ${money(account.held_minor, account.currency_code)} held` : "");
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (ended) return;
      setText(available, problem.reason === "ACCOUNT_NOT_FOUND" ? "no account" : "not known now");
      setText(held, "");
      if (problem.passes) again(Math.max(problem.retryAfterMs ?? 0, 3_000));
    }
    show(node, !ended);
  }

  function again(ms) {
    clearTimeout(timer);
    timer = setTimeout(read, ms);
  }

  return {
    ask: () => again(GATHER_MS),
    end() {
      ended = true;
      clearTimeout(timer);
      show(node, false);
    },
  };
}
