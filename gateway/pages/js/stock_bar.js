// A sale's stock as one bar of three parts, with its figures below.

import { el, setText, show } from "./dom.js";
import { count, people } from "./format.js";

const PARTS = [
  ["sold", "sold"],
  ["reserved", "being paid"],
  ["available", "left"],
];

/** Makes the bar: { node, update(stock) }. */
export function stockBar() {
  const bar = el("div", { class: "bar", role: "img" });
  const figures = el("dl", { class: "figures" });
  const segments = {};
  for (const [name, words] of PARTS) {
    const segment = el("span", { class: `bar-part is-${name}` });
    const value = el("dd", { class: "num" }, "–");
    bar.append(segment);
    figures.append(el("div", { class: `figure is-${name}` }, el("dt", {}, words), value));
    segments[name] = { segment, value };
  }
  const waiting = el("dd", { class: "num" }, "0");
  const line = el("div", { class: "figure is-waiting" }, el("dt", {}, "in line"), waiting);
  figures.append(line);
  return {
    node: el("div", { class: "stock-bar" }, bar, figures),
    update(stock) {
      // Wide enough for the largest figure that can come, so that nothing moves when one loses a digit.
      figures.style.setProperty("--figure", `${count(stock.total).length}ch`);
      for (const [name] of PARTS) {
        show(segments[name].segment, stock[name] > 0);
        segments[name].segment.style.setProperty("--part", String(stock[name] / stock.total));
        setText(segments[name].value, count(stock[name]));
      }
      setText(waiting, count(stock.waiting ?? 0));
      line.classList.toggle("is-none", !stock.waiting);
      const said = PARTS.map(([name, words]) => `${count(stock[name])} ${words}`).join(", ");
      bar.setAttribute("aria-label", `${said}, of ${count(stock.total)}; ${people(stock.waiting ?? 0)} in line`);
    },
  };
}
