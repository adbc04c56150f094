// Buttons that do something at the gateway, and the place where it says why it did not.

import { Problem } from "./api.js";
import { el, setText, show } from "./dom.js";
import { refusal } from "./words.js";

/** Makes a line that is read out when it shows why something was refused: { node, clear(), tell(problem) }. */
export function errorLine() {
  const node = el("p", { class: "error", role: "alert", hidden: true });
  return {
    node,
    clear: () => show(node, false),
    tell(problem) {
      setText(node, refusal(problem));
      show(node, true);
    },
  };
}

/**
 * Makes a button that does `work()` when it is pressed, and nothing more until that is done. It is never disabled
 * meanwhile: a disabled button loses the focus, and who uses the keyboard would start again at the top of the page.
 */
export function actionButton(words, kind, error, work) {
  const button = el("button", { class: `${kind} small`, type: "button" }, words);
  button.addEventListener("click", async () => {
    if (button.ariaBusy === "true") return;
    button.ariaBusy = "true";
    error.clear();
    try {
      await work();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      error.tell(problem);
    } finally {
      button.ariaBusy = "false";
    }
  });
  return button;
}
