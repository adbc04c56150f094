// What states and reasons mean, in plain words: what happened, what it costs, and what can be done.

import { amount, count, duration, numberRanges, shares } from "./format.js";

const UNCHARGED = "Nothing was charged.";

const SALE_STATES = {
  DRAFT: "Not open yet",
  SCHEDULED: "Opens soon",
  OPEN: "Open",
  PAUSED: "Paused",
  SOLD_OUT: "Sold out",
  CLOSED: "Closed",
};

/** A sale's state. */
export const saleState = (state) => SALE_STATES[state] ?? state;

const PURCHASE_STATES = {
  WAITLISTED: "In line",
  RESERVED: "Set aside for you",
  SETTLING: "Being paid",
  CONFIRMED: "Bought",
  FAILED: "Not bought",
  CANCELLED: "Cancelled",
  PARKED: "Delayed",
  REFUNDING: "Refund under way",
  REFUNDED: "Refunded",
};

/** A purchase's state, as a headline. */
export const purchaseState = (state) => PURCHASE_STATES[state] ?? state;

/** Why a purchase ended without shares. */
const FAILURES = {
  INSUFFICIENT_FUNDS: "Your balance was too low to pay for it.",
  ACCOUNT_NOT_FOUND: "You have no account in this currency.",
  HOLD_EXPIRED: "The payment took too long and was given up.",
  SALE_CLOSED: "The sale closed before your turn in line came.",
  ABANDONED: "Your connection broke off before the purchase was recorded.",
  FAILED_BY_OPERATOR: "An operator ended it after it could not be paid.",
};

/** Where a purchase stands, and what that means for its buyer. */
export function purchaseWords(purchase) {
  const wanted = shares(purchase.quantity);
  switch (purchase.state) {
    case "WAITLISTED":
      return `${placeWords(purchase)} You pay only if you get ${purchase.quantity === 1 ? "the share" : "the shares"}.`;
    case "RESERVED":
      return `${wanted} ${purchase.quantity === 1 ? "is" : "are"} yours once paid, which happens by itself.`;
    case "SETTLING":
      return `The payment for ${wanted} is under way.`;
    case "CONFIRMED":
      return `You own ${purchase.quantity === 1 ? "share" : "shares"} ${numberRanges(purchase.share_numbers ?? [])}.`;
    case "FAILED":
      return `${FAILURES[purchase.reason] ?? "It could not be completed."} ${UNCHARGED}`;
    case "CANCELLED":
      return `You cancelled it. ${UNCHARGED}`;
    case "PARKED":
      return "The payment needs somebody to look at it. You need do nothing, and cannot be charged twice.";
    case "REFUNDING":
      return "Your money is on its way back to your balance.";
    case "REFUNDED":
      return `${purchase.amount ? amount(purchase.amount) : "The money"} is back on your balance.`;
    default:
      return "";
  }
}

function placeWords({ waitlist_position: place, estimated_wait_s: wait }) {
  if (!place) return "You are in line.";
  if (place === 1) return "You are next in line.";
  return `Place ${count(place)} in line${wait ? `, at least ${duration(wait)}` : ""}.`;
}

const REFUSALS = {
  SOLD_OUT: `Sold out before your request came. ${UNCHARGED}`,
  SALE_NOT_OPEN: `The sale takes no purchases just now. ${UNCHARGED}`,
  USER_LIMIT_REACHED: `You already have, or wait for, as many shares as one person may. ${UNCHARGED}`,
  PURCHASE_LIMIT_EXCEEDED: `That is more than this sale sells in one purchase. ${UNCHARGED}`,
  NOT_ELIGIBLE: `This sale is for invited people only, and you are not among them. ${UNCHARGED}`,
  WAITLIST_FULL: `The line is full. ${UNCHARGED}`,
  RESERVATION_RELEASED: `This purchase has ended already; press the button to ask anew. ${UNCHARGED}`,
  REQUEST_ID_REUSED: "This request was sent before with another quantity; your purchases below tell what became of it.",
  SALE_NOT_FOUND: "There is no such sale.",
  PURCHASE_NOT_CANCELLABLE: "Too late to cancel: the payment has begun.",
  PURCHASE_NOT_REFUNDABLE: "There is nothing to refund.",
  REFUND_WINDOW_OVER: "Too long ago: refunds are no longer given for it.",
  UNAUTHENTICATED: "Your token is not valid, or has expired. Paste a new one.",
  PERMISSION_DENIED: "Your token does not allow this.",
  SALE_STATE_CONFLICT: "The sale's state has changed meanwhile and does not allow this any more.",
  UNREACHABLE: "The gateway cannot be reached.",
  UNAVAILABLE: "A part of the system is away. Try again in a moment.",
  STOCK_RECALIBRATING: "The stock is being recounted. Try again in a moment.",
  DEADLINE_EXCEEDED: "It takes too long just now. Try again in a moment.",
  OVERLOADED: "Very much is going on at this moment. Try again in a moment.",
  USER_RATE_LIMITED: "You are asking very often. Try again in a moment.",
};

/** What a refused request means. */
export const refusal = (problem) => REFUSALS[problem.reason] ?? `It was refused: ${problem.message}.`;

/** Why a request is sent again after a pause; what it waits for. */
export function waitingWords(problem) {
  if (problem.reason === "USER_RATE_LIMITED") return "You are asking very often.";
  if (problem.status === 429) return "Very many people are buying at this moment.";
  if (problem.reason === "STOCK_RECALIBRATING") return "The stock is being recounted.";
  if (problem.status === 0) return "The gateway cannot be reached just now.";
  return "The sale is out of reach just now.";
}
