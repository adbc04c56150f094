// One of the buyer's purchases: where it stands, in words, and what can still be done about it.

import { actionButton, errorLine } from "./actions.js";
import { announce } from "./announce.js";
import { ask } from "./api.js";
import { confirmed } from "./dialogs.js";
import { el, setText, show } from "./dom.js";
import { amount, count, shares, time } from "./format.js";
import { showReceipt } from "./receipt.js";
import { purchaseState, purchaseWords } from "./words.js";

const CANCELLABLE = new Set(["WAITLISTED", "RESERVED"]);

async function cancel(purchase) {
  const waits = purchase.state === "WAITLISTED";
  const sure = await confirmed(
    waits ? "Leave the line?" : "Cancel this purchase?",
    waits
      ? "Your place goes to whoever is next. Should you join again, you start at the end."
      : `What was set aside for you goes back on sale. You are not charged.`,
    { action: waits ? "Leave the line" : "Cancel it", danger: true },
  );
  return sure ? ask("DELETE", `/v1/purchases/${purchase.purchase_id}`) : null;
}

async function refund(purchase) {
  const sure = await confirmed(
    "Ask for a refund?",
    `${amount(purchase.amount)} goes back to your balance, and ${purchase.quantity === 1 ? "the share" : "all the shares"} back on sale. This cannot be undone.`,
    { action: "Refund it", danger: true },
  );
  return sure ? ask("POST", `/v1/purchases/${purchase.purchase_id}/refund`) : null;
}

/** Makes a card: { node, update(purchase) }. `onNews(purchase)` gets what an action's answer says. */
export function purchaseCard(onNews) {
  let shown = null;
  const state = el("h3", {});
  const terms = el("p", { class: "purchase-terms num" });
  const place = el("p", { class: "place" });
  const placeNumber = el("strong", { class: "num" });
  place.append(el("span", { class: "place-label" }, "Place"), placeNumber);
  const words = el("p", { class: "purchase-words" });
  const error = errorLine();
  const press = (name, act) =>
    actionButton(name, "quiet", error, async () => {
      const news = await act(shown);
      if (news) onNews(news);
    });
  const cancelling = press("Cancel", cancel);
  const refunding = press("Refund", refund);
  const receipt = press("Receipt", showReceipt);

  const node = el(
    "li",
    { class: "card purchase" },
    el("div", { class: "purchase-head" }, el("span", { class: "mark", "aria-hidden": "true" }), state, terms),
    el("div", { class: "purchase-body" }, words, place),
    error.node,
    el("div", { class: "purchase-actions" }, receipt, cancelling, refunding),
  );
  return {
    node,
    update(now) {
      const before = shown;
      shown = now;
      node.dataset.state = now.state;
      node.dataset.purchase = now.purchase_id;
      setText(state, purchaseState(now.state));
      setText(terms, [shares(now.quantity), now.amount && amount(now.amount), time(now.create_time)].filter(Boolean).join(" · "));
      setText(words, purchaseWords(now));
      const waits = now.state === "WAITLISTED" && now.waitlist_position > 0;
      show(place, waits);
      if (waits) {
        setText(placeNumber, count(now.waitlist_position));
        place.style.setProperty("--figure", `${Math.max(2, placeNumber.textContent.length)}ch`);
      }
      setText(cancelling, now.state === "WAITLISTED" ? "Leave the line" : "Cancel");
      show(cancelling, CANCELLABLE.has(now.state));
      show(refunding, now.state === "CONFIRMED");
      if (before && before.state !== now.state) announce(`${purchaseState(now.state)}. ${purchaseWords(now)}`);
    },
  };
}
