// Who is asking: the bearer token of this tab. It comes pasted, or in the address as #token=..., a part that browsers
// never send anywhere, and is taken out of the address bar at once, so that nobody shares it with a link.

import { read, write } from "./store.js";

const NAME = "token";

/** "change" when there is another token, or none any more; its `detail` says why not, "" if its owner wanted it so. */
export const tokenChanges = new EventTarget();

/** The token, or null. */
export const token = () => read(NAME);

/** Keeps a token; null forgets it, and `why` tells its owner the reason. */
export function keepToken(text, why = "") {
  write(NAME, text);
  tokenChanges.dispatchEvent(new CustomEvent("change", { detail: why }));
}

/** What the token says of its bearer, for display alone (the gateway checks it): { sub, role }, or null. */
export function bearer() {
  try {
    const payload = token().split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    const claims = JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(payload), (c) => c.charCodeAt(0))));
    return { sub: String(claims.sub), role: claims.role === undefined ? null : String(claims.role) };
  } catch {
    return null;
  }
}

function takeFromAddress() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!found) return;
  history.replaceState(history.state, "", location.pathname + location.search);
  keepToken(found.trim());
}

takeFromAddress();
addEventListener("hashchange", takeFromAddress);
