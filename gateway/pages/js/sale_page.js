// A sale's page for buyers: the stock as it goes, the button, and what became of one's own purchases.

import { announce } from "./announce.js";
import { Problem, ask, patiently, pause } from "./api.js";
import { balanceIn } from "./balance.js";
import { Buying } from "./buying.js";
import { byId, keyed, setText, show } from "./dom.js";
import { amount, count, shares } from "./format.js";
import { offerOf, takesPurchases } from "./offer.js";
import { purchaseCard } from "./purchase_card.js";
import { Purchases } from "./purchases.js";
import { signIn } from "./sign_in.js";
import { stockBar } from "./stock_bar.js";
import { followStock } from "./stock_stream.js";
import { bearer, token } from "./token.js";
import { purchaseState, purchaseWords, refusal, saleState } from "./words.js";

/** How soon a sale is read again whose state and stream disagree, and one that is not open, ms. */
const DISAGREES_MS = 700;
const NOT_OPEN_MS = 4_000;

const STREAM_WORDS = { live: "Live", recounting: "Recounting", reconnecting: "Reconnecting" };

const saleId = location.pathname.split("/")[2];
const bar = stockBar();
const quantity = byId("quantity");
const buyButton = byId("buy-button");

let sale = null;
let stock = null;
let session = null;
let busy = false;
let rereading = 0;

function wanted() {
  const most = Number(quantity.max);
  return Math.min(most, Math.max(1, Math.trunc(Number(quantity.value)) || 1));
}

function showOffer() {
  if (!sale) return;
  const offer = offerOf(sale, stock, wanted());
  setText(buyButton, offer.button);
  setText(byId("offer-words"), offer.words);
  buyButton.disabled = busy || !offer.can || !session;
  buyButton.dataset.can = offer.can;
  byId("fewer").disabled = wanted() <= 1;
  byId("more").disabled = wanted() >= Number(quantity.max);
}

function showSale() {
  document.title = `${sale.display_name} · Flash sale`;
  setText(byId("sale-name"), sale.display_name);
  setText(byId("unit-price"), amount(sale.unit_price));
  const state = byId("sale-state");
  // Sold out for a newcomer is what the stock says; the sale's own state follows once the last share is paid for.
  const soldOut = sale.state === "OPEN" && stock && stock.available === 0;
  state.dataset.state = soldOut ? "SOLD_OUT" : sale.state;
  setText(state, saleState(state.dataset.state));
  const most = Math.min(sale.per_purchase_limit || 1, sale.per_user_limit || 1);
  quantity.max = String(most);
  show(byId("buy-form").querySelector(".quantity"), most > 1);
  showOffer();
}

/** Reads the sale again in a while, if what is known of it may be out of date. */
function rereadInTime() {
  clearTimeout(rereading);
  const disagrees = stock && takesPurchases(sale.state) !== stock.open;
  const changes = disagrees || (stock && stock.total !== sale.total) || sale.state === "SCHEDULED";
  if (changes || !takesPurchases(sale.state)) rereading = setTimeout(readSale, changes ? DISAGREES_MS : NOT_OPEN_MS);
}

async function readSale() {
  if (document.hidden) return;
  const before = sale?.state;
  try {
    sale = await ask("GET", `/v1/sales/${encodeURIComponent(saleId)}`);
  } catch (problem) {
    if (!(problem instanceof Problem) || !problem.passes) throw problem;
    await pause(Math.max(problem.retryAfterMs ?? 0, NOT_OPEN_MS));
  }
  if (before && before !== sale.state) announce(`The sale is now: ${saleState(sale.state)}.`);
  showSale();
  rereadInTime();
}

function showStock(now) {
  const before = stock;
  stock = now;
  setText(byId("available"), count(now.available));
  setText(byId("left-of"), `left of ${shares(now.total)}`);
  bar.update(now);
  if (before && before.available > 0 && now.available === 0) announce("Sold out.");
  if (before && before.available === 0 && now.available > 0 && !now.waiting) announce(`${count(now.available)} left again.`);
  if (!sale) return;
  showSale();
  rereadInTime();
}

/** Everything that belongs to whoever is signed in. */
function startSession(user) {
  const balance = balanceIn(byId("balance"), sale.unit_price.currency_code);
  const list = keyed(byId("purchases"), (purchase) => purchase.purchase_id, () => purchaseCard((news) => purchases.take(news)));
  const purchases = new Purchases(saleId, (now, before) => {
    list(purchases.all);
    show(byId("purchases-note"), false);
    if (before?.state !== now.state) balance.ask();
  });
  const cut = new AbortController();
  const load = () =>
    patiently(() => purchases.load(), { signal: cut.signal }).catch((problem) => {
      if (cut.signal.aborted) return;
      setText(byId("purchases-note"), refusal(problem));
      show(byId("purchases-note"), true);
    });
  const buying = new Buying(saleId, user, byId("wish"), {
    onPurchase(answer) {
      const cost = { amount_minor: sale.unit_price.amount_minor * answer.quantity, currency_code: sale.unit_price.currency_code };
      purchases.take({ amount: cost, ...answer });
      announce(`${purchaseState(answer.state)}. ${purchaseWords(answer)}`);
    },
    onBusy(now) {
      busy = now;
      showOffer();
    },
    onRefused: load,
  });
  balance.ask();
  load();
  buying.resume();
  return {
    user,
    buying,
    end() {
      cut.abort();
      buying.end();
      purchases.end();
      balance.end();
      busy = false;
      byId("purchases").replaceChildren();
      show(byId("purchases-note"), true);
    },
  };
}

function changeUser() {
  const user = token() === null ? null : (bearer()?.sub ?? "");
  if (session && session.user === user) return;
  session?.end();
  session = user === null ? null : startSession(user);
  show(byId("purchases-section"), session !== null);
  show(byId("buy"), session !== null);
  showOffer();
}

function stepBy(step) {
  quantity.value = String(Math.min(Number(quantity.max), Math.max(1, wanted() + step)));
  showOffer();
}

byId("stock-bar").replaceWith(bar.node);
byId("fewer").addEventListener("click", () => stepBy(-1));
byId("more").addEventListener("click", () => stepBy(1));
quantity.addEventListener("input", showOffer);
quantity.addEventListener("change", () => stepBy(0));
byId("buy-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const offer = offerOf(sale, stock, wanted());
  if (session && offer.can) session.buying.buy(wanted(), offer.can === "join");
});
document.addEventListener("visibilitychange", () => sale && readSale());
// A sale that opens at a time counts down to it.
setInterval(() => sale?.state === "SCHEDULED" && showOffer(), 1_000);

try {
  sale = await patiently(() => ask("GET", `/v1/sales/${encodeURIComponent(saleId)}`), {
    onWait: () => setText(byId("sale-state"), "Out of reach, trying again"),
  });
  followStock(saleId, {
    onStock: showStock,
    onState(state) {
      byId("stream-state").dataset.state = state;
      setText(byId("stream-state"), STREAM_WORDS[state]);
      document.body.classList.toggle("is-stale", state !== "live");
    },
  });
  showSale();
  rereadInTime();
  signIn("To buy, paste the token that you were given. Watching needs none.", changeUser);
} catch (problem) {
  if (!(problem instanceof Problem)) throw problem;
  setText(byId("page-note"), ["SALE_NOT_FOUND", "INVALID_ARGUMENT"].includes(problem.reason) ? "There is no such sale." : refusal(problem));
  show(byId("page-note"), true);
  setText(byId("sale-state"), "Not found");
}
