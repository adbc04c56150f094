// The audit's verdict at a glance, with a line for each promise it looked at.

import { announce } from "./announce.js";
import { el, keyed, setText, show } from "./dom.js";
import { time } from "./format.js";

const VERDICTS = {
  kept: ["Every promise is kept", "What was sold, what is on sale and what was charged agree."],
  broken: ["A promise is broken", "Pause the sale, and run make audit for the particulars."],
  unknown: ["Not known yet", "Nothing is at rest, or a service is away."],
};

function line() {
  const mark = el("span", { class: "mark", "aria-hidden": "true" });
  const promise = el("strong", {});
  const text = el("span", {});
  return {
    node: el("li", { class: "audit-line" }, mark, el("span", { class: "audit-words" }, promise, " ", text)),
    update(now) {
      mark.parentElement.dataset.ok = String(now.ok);
      setText(promise, now.promise);
      setText(text, now.text);
    },
  };
}

/** Fills `section`; gives the function that takes the overview's audit. */
export function auditPanel(section) {
  const verdict = el("p", { class: "verdict" });
  const words = el("p", { class: "hint" });
  const list = el("ul", { class: "audit-lines" });
  const checked = el("p", { class: "hint num" });
  section.append(el("h2", { id: "audit-head" }, "Audit"), verdict, words, list, checked);
  const update = keyed(list, (each) => each.promise, line);
  let before = null;
  return (audit) => {
    const [head, text] = VERDICTS[audit.verdict] ?? VERDICTS.unknown;
    section.dataset.verdict = audit.verdict;
    setText(verdict, head);
    setText(words, text);
    update(audit.lines ?? []);
    setText(checked, audit.checked_at ? `Looked at ${time(audit.checked_at)}` : "");
    show(checked, Boolean(audit.checked_at));
    if (before && before !== audit.verdict) announce(`Audit: ${head}.`);
    before = audit.verdict;
  };
}
