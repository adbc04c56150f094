// One sale as its operator sees it: stock, settlement, outcomes, and what may be done with it now.

import { actionButton, errorLine } from "./actions.js";
import { announce } from "./announce.js";
import { ask } from "./api.js";
import { confirmed } from "./dialogs.js";
import { el, keyed, setText, show } from "./dom.js";
import { amount, count, duration, people, rate, shares } from "./format.js";
import { showStatement } from "./statement.js";
import { stockBar } from "./stock_bar.js";
import { purchaseState, saleState } from "./words.js";

const TOTAL_MAX = 10_000_000;

/** The states from which each step is legal. */
const LEGAL = {
  open: new Set(["DRAFT", "SCHEDULED", "PAUSED"]),
  pause: new Set(["OPEN", "SOLD_OUT"]),
  close: new Set(["DRAFT", "SCHEDULED", "OPEN", "PAUSED", "SOLD_OUT"]),
  raise: new Set(["DRAFT", "SCHEDULED", "OPEN", "PAUSED", "SOLD_OUT"]),
};

const step = (sale, verb, body) => ask("POST", `/v1/operator/sales/${sale.sale_id}/${verb}`, { body });

async function open(sale) {
  const sure = await confirmed(`Open ${sale.display_name}?`, "Everybody can buy at once.", { action: "Open the sale" });
  return sure && step(sale, "open", {});
}

async function pauseSale(sale) {
  const sure = await confirmed(
    `Pause ${sale.display_name}?`,
    "No new purchases until it is opened again, and nobody's turn in line comes. What was accepted is settled all the same.",
    { action: "Pause the sale" },
  );
  return sure && step(sale, "pause", {});
}

async function close(sale) {
  const waiting = sale.stock?.waiting ? ` ${people(sale.stock.waiting)} in line will be told that it is over.` : "";
  const sure = await confirmed(
    `Close ${sale.display_name} for good?`,
    `It can never be opened again. What was accepted is settled all the same.${waiting}`,
    { action: "Close for good", danger: true },
  );
  return sure && step(sale, "close", {});
}

async function raise(sale) {
  const field = el("input", {
    class: "num",
    type: "number",
    inputmode: "numeric",
    required: true,
    min: String(sale.total + 1),
    max: String(TOTAL_MAX),
    value: String(sale.total + 1),
  });
  const total = await confirmed(
    `Raise the total of ${sale.display_name}?`,
    `It sells ${shares(sale.total)} now. The new ones go to the line first. It can never be lowered.`,
    { action: "Raise the total", field, label: "Shares in all" },
  );
  return total && step(sale, "total", { total: Number(total) });
}

function outcomeRow() {
  const name = el("td", {});
  const purchases = el("td", { class: "num right" });
  const units = el("td", { class: "num right" });
  return {
    node: el("tr", {}, name, purchases, units),
    update(each) {
      setText(name, each.reason ? `${purchaseState(each.state)}: ${each.reason}` : purchaseState(each.state));
      setText(purchases, count(each.purchases));
      setText(units, count(each.units));
    },
  };
}

function settlementPart() {
  const progress = el("progress", { max: "1", value: "0" });
  const done = el("span", { class: "num" });
  const pace = el("span", { class: "num" });
  const node = el(
    "div",
    { class: "settlement" },
    el("div", { class: "settlement-line" }, el("span", { class: "settlement-name" }, "Settled"), done),
    progress,
    el("div", { class: "settlement-line hint" }, pace),
  );
  return {
    node,
    /** `now` is null while it cannot be read. */
    update(now) {
      node.classList.toggle("is-unknown", now === null);
      if (now === null) return;
      const { settled, unsettled, rate_per_s: perSecond, eta_s: eta, oldest_age_s: oldest } = now;
      const all = settled + unsettled;
      progress.value = all ? settled / all : 0;
      progress.setAttribute("aria-label", `${count(settled)} of ${count(all)} purchases settled`);
      setText(done, `${count(settled)} of ${count(all)}`);
      const parts = [`${rate(perSecond)}/s`];
      if (eta) parts.push(`done in ${duration(eta)}`);
      if (oldest) parts.push(`oldest ${duration(oldest)}`);
      setText(pace, unsettled ? parts.join(" · ") : all ? "All of them." : "Nothing to settle yet.");
    },
  };
}

/** Makes a card: { node, update(sale) }. `onDone()` is called after something was done with the sale. */
export function operatorSale(onDone) {
  let shown = null;
  const name = el("h3", {});
  const state = el("span", { class: "chip" });
  const terms = el("p", { class: "hint num" });
  const bar = stockBar();
  const noStock = el("p", { class: "note", hidden: true }, "The stock cannot be read now.");
  const settlement = settlementPart();
  const outcomes = el("tbody", {});
  const updateOutcomes = keyed(outcomes, (each) => `${each.state} ${each.reason ?? ""}`, outcomeRow);
  const error = errorLine();
  const press = (words, kind, act) =>
    actionButton(words, kind, error, async () => {
      const news = await act(shown);
      if (!news) return;
      announce(`${news.display_name}: ${saleState(news.state)}, ${shares(news.total)} in all.`);
      onDone();
    });
  const buttons = {
    open: press("Open", "primary", open),
    pause: press("Pause", "quiet", pauseSale),
    raise: press("Raise total", "quiet", raise),
    close: press("Close", "quiet is-danger", close),
  };
  const statement = actionButton("Statement", "quiet", error, () => showStatement(shown));

  const details = el(
    "details",
    { class: "outcomes" },
    el("summary", {}, "Purchases by outcome"),
    el(
      "table",
      {},
      el(
        "thead",
        {},
        el("tr", {}, el("th", { scope: "col" }, "State"), el("th", { scope: "col", class: "right" }, "Purchases"), el("th", { scope: "col", class: "right" }, "Shares")),
      ),
      outcomes,
    ),
  );
  const node = el(
    "li",
    { class: "card operator-sale" },
    el("div", { class: "panel-head" }, name, state),
    terms,
    bar.node,
    noStock,
    settlement.node,
    details,
    error.node,
    el("div", { class: "sale-actions" }, ...Object.values(buttons), statement),
  );
  return {
    node,
    update(now) {
      shown = now;
      node.dataset.sale = now.sale_id;
      setText(name, now.display_name);
      setText(state, saleState(now.state));
      state.dataset.state = now.state;
      setText(terms, `${shares(now.total)} at ${amount(now.unit_price)}, at most ${count(now.per_user_limit)} a person`);
      show(bar.node, Boolean(now.stock));
      show(noStock, !now.stock);
      if (now.stock) bar.update(now.stock);
      settlement.update(now.settlement);
      if (now.counts) updateOutcomes(now.counts);
      for (const [verb, button] of Object.entries(buttons)) show(button, LEGAL[verb].has(now.state));
    },
  };
}
