// What a buyer can do now: a plain function of the sale, its stock and the quantity wanted.

import { amount, count, duration, money, people, shares, time } from "./format.js";

const TAKES = new Set(["OPEN", "SOLD_OUT"]);

/** Whether a sale in this state takes purchases. */
export const takesPurchases = (state) => TAKES.has(state);

/**
 * { can: "buy" | "join" | "", button, words }: what the button does and says, and what stands below it.
 * `stock` is null while there is no reading: the sale may be bought from, as its own state says.
 */
export function offerOf(sale, stock, quantity, now = Date.now()) {
  const cost = money(sale.unit_price.amount_minor * quantity, sale.unit_price.currency_code);
  switch (sale.state) {
    case "SCHEDULED": {
      const leftS = (Date.parse(sale.open_time) - now) / 1000;
      const words = leftS > 0 ? `Opens at ${time(sale.open_time)}, in ${duration(leftS)}.` : "Opens at any moment.";
      return { can: "", button: "Not open yet", words };
    }
    case "DRAFT":
      return { can: "", button: "Not open yet", words: "Nobody has said yet when it opens." };
    case "PAUSED":
      return { can: "", button: "Paused", words: "The sale is paused. Purchases already made go on; new ones will be possible again soon." };
    case "CLOSED":
      return { can: "", button: "Closed", words: "This sale is over." };
  }
  const limit = `At most ${shares(sale.per_user_limit)} a person.`;
  if (stock && (stock.waiting > 0 || stock.available < quantity)) {
    const are = stock.waiting === 1 ? "is" : "are";
    const before = stock.waiting ? `${people(stock.waiting)} ${are} in line already.` : "You would be the first in line.";
    const left = stock.available > 0 && !stock.waiting ? `Only ${count(stock.available)} left. ` : "";
    return { can: "join", button: `Join the line for ${shares(quantity)}`, words: `${left}${before} You pay ${cost} only if your turn comes.` };
  }
  return { can: "buy", button: `Buy ${shares(quantity)} · ${cost}`, words: sale.per_user_limit > 1 ? limit : `One share a person, ${amount(sale.unit_price)}.` };
}
