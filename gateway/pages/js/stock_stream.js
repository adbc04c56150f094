// A sale's stock as it changes (server-sent events), for as long as the page is looked at.

import { backoff } from "./api.js";

/** The gateway ends every stream after a minute, so a stream that is well has said something in this time. */
const SILENCE_MS_MAX = 75_000;
/** A break shorter than this is nobody's concern: it is how a stream is renewed. */
const BREAK_MS_MAX = 2_500;

/**
 * Follows a sale's stock. `onStock(stock)` gets each reading; `onState(state)` is told "live", "recounting" (there is
 * no reading just now) or "reconnecting". Gives a function that ends it.
 */
export function followStock(saleId, { onStock, onState }) {
  let source = null;
  let attempt = 0;
  let reopening = 0;
  let silence = 0;
  let breaking = 0;
  let state = "";

  const become = (now) => {
    clearTimeout(breaking);
    breaking = 0;
    if (state !== now) onState((state = now));
  };

  const heard = (now) => {
    attempt = 0;
    become(now);
    clearTimeout(silence);
    // A phone that slept, or changed its network, may hold a connection that nobody is at the other end of.
    silence = setTimeout(open, SILENCE_MS_MAX);
  };

  function close() {
    clearTimeout(reopening);
    clearTimeout(silence);
    clearTimeout(breaking);
    breaking = 0;
    source?.close();
    source = null;
  }

  function open() {
    close();
    if (document.hidden) return;
    silence = setTimeout(open, SILENCE_MS_MAX);
    source = new EventSource(`/v1/sales/${encodeURIComponent(saleId)}/stock/stream`);
    source.addEventListener("stock", (event) => {
      heard("live");
      onStock(JSON.parse(event.data));
    });
    source.addEventListener("unavailable", () => heard("recounting"));
    source.addEventListener("error", () => {
      breaking ||= setTimeout(() => become("reconnecting"), state === "live" ? BREAK_MS_MAX : 0);
      // After an answer that is no stream (the gateway drains, or says 503) a browser gives up for good; we do not.
      if (source?.readyState !== EventSource.CLOSED) return;
      clearTimeout(reopening);
      reopening = setTimeout(open, backoff(attempt));
      attempt += 1;
    });
  }

  // Nobody looks at a hidden page, so it takes no part of the gateway's streams.
  const look = () => (document.hidden ? close() : open());
  document.addEventListener("visibilitychange", look);
  addEventListener("online", open);
  open();
  return () => {
    document.removeEventListener("visibilitychange", look);
    removeEventListener("online", open);
    close();
  };
}
