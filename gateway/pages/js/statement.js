// What a sale has come to: sold, captured, refunded, and everybody who won nothing with the reason.

import { actionButton, errorLine } from "./actions.js";
import { ask } from "./api.js";
import { showSheet } from "./dialogs.js";
import { el, show } from "./dom.js";
import { amount, count, shares, time } from "./format.js";
import { purchaseState } from "./words.js";

function figure(name, value) {
  return el("div", { class: "receipt-row" }, el("dt", {}, name), el("dd", { class: "num" }, value));
}

function table(caption, heads, rows) {
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el(
      "table",
      {},
      el("caption", { class: "unseen" }, caption),
      el("thead", {}, el("tr", {}, ...heads.map(([name, kind]) => el("th", { scope: "col", class: kind }, name)))),
      el("tbody", {}, ...rows),
    ),
  );
}

function nonWinRow(each) {
  return el(
    "tr",
    {},
    el("td", {}, each.user_id),
    el("td", {}, each.reason ?? purchaseState(each.state)),
    el("td", { class: "num right" }, count(each.quantity)),
    el("td", { class: "num right" }, time(each.end_time)),
  );
}

/** Reads a sale's statement and shows it. Throws a Problem. */
export async function showStatement(sale) {
  const path = `/v1/operator/sales/${sale.sale_id}/statement`;
  const first = await ask("GET", path);
  const counts = first.non_win_counts.map((each) =>
    el(
      "tr",
      {},
      el("td", {}, each.words || each.reason || purchaseState(each.state)),
      el("td", { class: "num right" }, count(each.purchases)),
      el("td", { class: "num right" }, count(each.units)),
    ),
  );
  const people = table(
    "Who won nothing",
    [["User", ""], ["Why", ""], ["Shares", "right"], ["When", "right"]],
    first.non_wins.map(nonWinRow),
  );
  const error = errorLine();
  let next = first.next_page_token;
  const more = actionButton("More", "quiet", error, async () => {
    const page = await ask("GET", `${path}?page_token=${encodeURIComponent(next)}`);
    people.querySelector("tbody").append(...page.non_wins.map(nonWinRow));
    next = page.next_page_token;
    show(more, Boolean(next));
  });
  show(more, Boolean(next));
  showSheet(
    "Statement",
    el("p", { class: "receipt-words" }, sale.display_name),
    el(
      "p",
      { class: "hint" },
      first.final ? "Final: nothing of this sale can change any more." : `Not final: ${count(first.unfinished_purchases)} purchases are unfinished, or the sale is not closed.`,
    ),
    el(
      "dl",
      { class: "receipt" },
      figure("Sold", `${shares(first.sold_units)} of ${count(first.total)}`),
      figure("Winning purchases", count(first.sold_purchases)),
      first.captured && figure("Captured", amount(first.captured)),
      first.refunded && figure("Refunded", amount(first.refunded)),
    ),
    el("h3", {}, "Without shares, by reason"),
    counts.length ? table("Without shares, by reason", [["Reason", ""], ["Purchases", "right"], ["Shares", "right"]], counts) : el("p", { class: "note" }, "Nobody."),
    first.non_wins.length ? el("h3", {}, "Without shares, one by one") : null,
    first.non_wins.length ? people : null,
    error.node,
    more,
  );
}
