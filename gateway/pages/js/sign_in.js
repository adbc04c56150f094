// Asking for a token, and saying whose it is.

import { byId, el, setText, show } from "./dom.js";
import { bearer, keepToken, token, tokenChanges } from "./token.js";

/**
 * Shows the panel in #sign-in while there is no token, and whose it is in #who once there is. `words` say what it is
 * good for. `onChange()` is called now and whenever the token changes.
 */
export function signIn(words, onChange) {
  const input = el("input", {
    type: "password",
    name: "token",
    required: true,
    autocomplete: "off",
    spellcheck: "false",
    "aria-describedby": "token-hint",
  });
  const why = el("p", { class: "error", role: "alert", hidden: true });
  const panel = byId("sign-in");
  panel.append(
    el(
      "form",
      {
        class: "sign-in",
        onsubmit: (event) => {
          event.preventDefault();
          keepToken(input.value.trim().replace(/^Bearer\s+/i, ""));
          input.value = "";
        },
      },
      el("h2", {}, "Sign in"),
      why,
      el("p", {}, words),
      el("label", { class: "field" }, "Token", input),
      el("button", { class: "primary", type: "submit" }, "Sign in"),
      el("p", { class: "hint", id: "token-hint" }, "It stays in this tab and is forgotten when you close it."),
    ),
  );
  const name = el("span", { class: "who-name" });
  byId("who").append(
    name,
    el("button", { class: "quiet small", type: "button", onclick: () => keepToken(null) }, "Sign out"),
  );

  const look = (event) => {
    setText(why, event?.detail ?? "");
    show(why, why.textContent !== "");
    show(panel, token() === null);
    show(byId("who"), token() !== null);
    setText(name, bearer()?.sub ?? "unknown token");
    onChange();
  };
  tokenChanges.addEventListener("change", look);
  look();
}
