// Numbers, money and times as people read them. One locale, that of the pages' words.

const LOCALE = "en-IE";

const whole = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 1, minimumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat(LOCALE, { timeStyle: "medium" });
const dayAndClock = new Intl.DateTimeFormat(LOCALE, { dateStyle: "medium", timeStyle: "short" });
const moneyFormats = new Map();

/** 12345 -> "12,345". */
export const count = (value) => whole.format(value);

/** A rate per second: one decimal below 10, none above. */
export const rate = (value) => (value > 0 && value < 10 ? tenths : whole).format(value);

/** "1 share", "3 shares". */
export const shares = (value) => `${count(value)} ${value === 1 ? "share" : "shares"}`;

/** 1 -> "1 person", 3 -> "3 people". */
export const people = (value) => `${count(value)} ${value === 1 ? "person" : "people"}`;

/** Minor units (cents) of a currency as money. */
export function money(minor, currencyCode) {
  let format = moneyFormats.get(currencyCode);
  if (!format) {
    format = new Intl.NumberFormat(LOCALE, { style: "currency", currency: currencyCode });
    moneyFormats.set(currencyCode, format);
  }
  return format.format(minor / 10 ** format.resolvedOptions().maximumFractionDigits);
}

/** A Money of the API as money. */
export const amount = (value) => money(value.amount_minor, value.currency_code);

/** "14:03:05" today, with the day otherwise; "" without a time. */
export function time(text) {
  if (!text) return "";
  const when = new Date(text);
  return when.toDateString() === new Date().toDateString() ? clock.format(when) : dayAndClock.format(when);
}

/** Seconds as people say them: "3 s", "2 min 5 s", "1 h 10 min", "2 days 3 h". */
export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return s % 60 && s < 600 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.round(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  const days = Math.floor(s / 86400);
  return `${days} ${days === 1 ? "day" : "days"} ${Math.floor((s % 86400) / 3600)} h`;
}

/** [4, 5, 6, 9] -> "4–6 and 9". */
export function numberRanges(numbers) {
  const ranges = [];
  for (const number of numbers) {
    const last = ranges.at(-1);
    if (last && last[1] === number - 1) last[1] = number;
    else ranges.push([number, number]);
  }
  const texts = ranges.map(([from, to]) => (from === to ? count(from) : `${count(from)}–${count(to)}`));
  return texts.length < 2 ? texts.join("") : `${texts.slice(0, -1).join(", ")} and ${texts.at(-1)}`;
}
