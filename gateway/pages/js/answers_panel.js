// What the gateway answers, by kind and second, with the last minute of each as a line.

import { el, keyed, setText } from "./dom.js";
import { count, rate } from "./format.js";

const KINDS = [
  ["accepted", "Accepted"],
  ["waitlisted", "Joined the line"],
  ["sold_out", "Sold out"],
  ["shed", "Shed (429)"],
  ["errors", "Errors"],
];
const POINTS = 60;
const WIDTH = 120;
const HEIGHT = 28;

function line() {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "spark");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  svg.append(path);
  return { svg, path };
}

function tile([kind, name]) {
  const perSecond = el("strong", { class: "num" }, "–");
  const total = el("span", { class: "tile-total num" });
  const { svg, path } = line();
  const history = [];
  return {
    node: el(
      "li",
      { class: "tile", "data-kind": kind },
      el("span", { class: "tile-name" }, name),
      el("span", { class: "tile-figure" }, perSecond, el("span", { class: "unit" }, "/s")),
      total,
      svg,
    ),
    update([, , answers]) {
      const now = answers[kind] ?? { total: 0, per_s: 0 };
      setText(perSecond, rate(now.per_s));
      setText(total, `${count(now.total)} in all`);
      history.push(now.per_s);
      if (history.length > POINTS) history.shift();
      const top = Math.max(1, ...history);
      const points = history.map((value, index) => {
        const x = ((POINTS - history.length + index) / (POINTS - 1)) * WIDTH;
        return `${x.toFixed(1)},${(HEIGHT - 1 - (value / top) * (HEIGHT - 2)).toFixed(1)}`;
      });
      path.setAttribute("points", points.join(" "));
    },
  };
}

/** Fills `list` with a tile for each kind; gives the function that takes the overview's answers. */
export function answersPanel(list) {
  const update = keyed(list, ([kind]) => kind, tile);
  return (answers) => update(KINDS.map(([kind, name]) => [kind, name, answers]));
}
