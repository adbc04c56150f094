// Questions and longer readings over the page. The browser's own dialog keeps the keyboard inside, closes on Escape and
// gives the focus back.

import { el } from "./dom.js";

function open(dialog) {
  document.body.append(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  // A press beside the sheet closes it; one that only ends there, after a selection, does not.
  dialog.addEventListener("pointerdown", (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.showModal();
  return dialog;
}

/** Shows a sheet with a heading and content; gives the dialog. */
export function showSheet(heading, ...content) {
  const close = el("button", { class: "quiet", type: "button", onclick: () => dialog.close() }, "Close");
  const dialog = el(
    "dialog",
    { class: "sheet", "aria-label": heading },
    el("div", { class: "sheet-body" }, el("header", { class: "sheet-head" }, el("h2", {}, heading), close), ...content),
  );
  return open(dialog);
}

/**
 * Asks before something is done; gives whether it was confirmed. With `field` (an input) the answer is its value
 * instead, null when it was not confirmed.
 */
export function confirmed(heading, text, { action, danger = false, field = null, label = "" }) {
  return new Promise((resolve) => {
    let answer = null;
    const form = el(
      "form",
      {
        class: "sheet-body",
        onsubmit: (event) => {
          event.preventDefault();
          answer = field ? field.value : true;
          dialog.close();
        },
      },
      el("h2", {}, heading),
      el("p", {}, text),
      field && el("label", { class: "field" }, label, field),
      el(
        "div",
        { class: "sheet-actions" },
        el("button", { class: "quiet", type: "button", onclick: () => dialog.close() }, "Not now"),
        el("button", { class: danger ? "danger" : "primary", type: "submit" }, action),
      ),
    );
    const dialog = el("dialog", { class: "sheet is-question", "aria-label": heading }, form);
    dialog.addEventListener("close", () => resolve(answer ?? (field ? null : false)));
    open(dialog);
  });
}
