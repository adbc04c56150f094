// The list of sales. Read now and then, only while it is looked at: what changes by the second is on a sale's own page.

import { Problem, ask, backoff } from "./api.js";
import { byId, el, keyed, setText, show } from "./dom.js";
import { amount, shares, time } from "./format.js";
import "./token.js";
import { refusal, saleState } from "./words.js";

const EVERY_MS = 5_000;

function saleCard(sale) {
  const name = el("span", { class: "sale-link-name" });
  const state = el("span", { class: "chip" });
  const terms = el("span", { class: "sale-link-terms" });
  const node = el(
    "li",
    {},
    el("a", { class: "card sale-link", href: `/sales/${sale.sale_id}` }, el("span", { class: "sale-link-head" }, name, state), terms),
  );
  return {
    node,
    update(now) {
      setText(name, now.display_name);
      setText(state, saleState(now.state));
      state.dataset.state = now.state;
      const opens = now.state === "SCHEDULED" && now.open_time ? ` · opens ${time(now.open_time)}` : "";
      setText(terms, `${shares(now.total)} at ${amount(now.unit_price)}${opens}`);
    },
  };
}

const update = keyed(byId("sales"), (sale) => sale.sale_id, saleCard);
const note = byId("note");
let timer = 0;
let failures = 0;

async function read() {
  clearTimeout(timer);
  if (document.hidden) return;
  let nextMs = EVERY_MS;
  try {
    const { sales } = await ask("GET", "/v1/sales");
    failures = 0;
    update(sales);
    setText(note, "There are no sales yet.");
    show(note, sales.length === 0);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    setText(note, refusal(problem));
    show(note, true);
    nextMs = Math.max(problem.retryAfterMs ?? 0, backoff(failures));
    failures += 1;
  }
  clearTimeout(timer);
  timer = setTimeout(read, nextMs);
}

document.addEventListener("visibilitychange", read);
read();
