// A purchase's receipt: every step with its time, what was set aside, and what was paid.

import { ask } from "./api.js";
import { showSheet } from "./dialogs.js";
import { el } from "./dom.js";
import { amount, numberRanges, shares, time } from "./format.js";
import { purchaseState } from "./words.js";

const RESERVATIONS = { WAITING: "waiting in line", RESERVED: "set aside", SOLD: "sold to you", RELEASED: "given back" };
const HOLDS = {
  HELD: "held on your account",
  CAPTURED: "paid",
  RELEASED: "held, and released again",
  EXPIRED: "held, and released after its time",
  REFUSED: "not held: refused",
  REVERSED: "paid, and refunded",
};

function row(name, value) {
  return el("div", { class: "receipt-row" }, el("dt", {}, name), el("dd", { class: "num" }, value));
}

/** Reads the receipt and shows it. Throws a Problem. */
export async function showReceipt(purchase) {
  const receipt = await ask("GET", `/v1/purchases/${purchase.purchase_id}/receipt`);
  const now = receipt.purchase;
  const rows = [
    row("State", purchaseState(now.state)),
    row("For", shares(now.quantity)),
    now.amount && row("Price", amount(now.amount)),
    now.share_numbers?.length ? row(now.share_numbers.length === 1 ? "Share" : "Shares", numberRanges(now.share_numbers)) : null,
    receipt.reservation && row("Stock", `${shares(receipt.reservation.quantity)}, ${RESERVATIONS[receipt.reservation.state] ?? receipt.reservation.state}`),
    receipt.hold && row("Money", `${amount(receipt.hold.amount)}, ${HOLDS[receipt.hold.state] ?? receipt.hold.state}`),
    row("Purchase", el("code", {}, now.purchase_id)),
  ];
  const steps = receipt.steps.map((step) =>
    el(
      "li",
      { class: "step-item", "data-state": step.state },
      el("time", { class: "num", datetime: step.time }, time(step.time)),
      el("span", {}, step.words || purchaseState(step.state)),
    ),
  );
  showSheet("Receipt", el("p", { class: "receipt-words" }, receipt.words), el("dl", { class: "receipt" }, ...rows), el("h3", {}, "What happened"), el("ol", { class: "steps" }, ...steps));
  return null;
}
