// Sending a wish until it is answered, and saying meanwhile what is going on.

import { announce } from "./announce.js";
import { Problem, ask, patiently } from "./api.js";
import { el, setText, show } from "./dom.js";
import { shares, time } from "./format.js";
import { refusal, waitingWords } from "./words.js";
import { closeWish, makeWish, openWish } from "./wishes.js";

/** A wish found after a reload is sent again by itself only if it is younger than this; else its owner is asked. */
const FRESH_MS = 2 * 60_000;

/**
 * Buys for one user in one sale, one wish at a time. `panel` shows what goes on; `onPurchase(purchase)` gets the answer
 * of a wish that was granted, `onBusy(busy)` whether one is under way, `onRefused(problem)` why one was not.
 */
export class Buying {
  #cut = null;
  #wish = null;

  constructor(saleId, user, panel, { onPurchase, onBusy, onRefused }) {
    Object.assign(this, { saleId, user, panel, onPurchase, onBusy, onRefused });
  }

  /** Takes up a wish that an earlier load of this page has left open. */
  resume() {
    const wish = openWish(this.saleId, this.user);
    if (!wish) return;
    if (Date.now() - wish.madeAt < FRESH_MS) this.#send(wish);
    else this.#askAgain(wish, `You asked for ${shares(wish.quantity)} at ${time(new Date(wish.madeAt).toISOString())}; the answer never came.`);
  }

  /** Asks for shares; with `waitlist`, to wait in line for them if need be. */
  buy(quantity, waitlist) {
    if (this.#wish) return;
    this.#send(makeWish(this.saleId, this.user, quantity, waitlist));
  }

  /** Stops sending, because the page ends or somebody else signs in; the wish stays written down. */
  end() {
    this.#cut?.abort();
    this.#wish = null;
    show(this.panel, false);
  }

  async #send(wish) {
    this.#wish = wish;
    this.onBusy(true);
    const cut = (this.#cut = new AbortController());
    const words = this.#sending(wish, () => this.#giveUp(wish));
    try {
      const purchase = await patiently(
        () => {
          words.asking();
          return ask("POST", `/v1/sales/${encodeURIComponent(this.saleId)}/purchases`, {
            // The wish to wait is left out where there is none: a sold-out sale is then refused without a look inside.
            body: wish.waitlist ? { quantity: wish.quantity, waitlist: true } : { quantity: wish.quantity },
            key: wish.key,
            signal: cut.signal,
          });
        },
        { signal: cut.signal, onWait: words.waiting },
      );
      closeWish(wish);
      this.#done();
      this.onPurchase(purchase);
    } catch (problem) {
      if (cut.signal.aborted) return;
      this.#done();
      if (!(problem instanceof Problem)) throw problem;
      if (problem.passes) {
        this.#askAgain(wish, `${waitingWords(problem)} Your request has had no answer yet.`);
        return;
      }
      // Without a valid token nothing was decided: the wish goes on once its owner has signed in again.
      if (problem.status !== 401) closeWish(wish);
      this.#say(refusal(problem), "refused");
      this.onRefused(problem);
    } finally {
      words.end();
    }
  }

  #done() {
    this.#wish = null;
    this.#cut = null;
    show(this.panel, false);
    this.onBusy(false);
  }

  #giveUp(wish) {
    this.#cut?.abort();
    closeWish(wish);
    this.#done();
    this.onRefused(null);
  }

  #sending(wish, giveUp) {
    const what = wish.waitlist ? `a place in line for ${shares(wish.quantity)}` : shares(wish.quantity);
    const head = el("p", { class: "wish-head" });
    const countdown = el("span", { class: "num countdown" });
    const foot = el("p", { class: "hint" });
    const stop = el("button", { class: "quiet small", type: "button", onclick: giveUp }, "Stop trying");
    let ticking = 0;
    const asking = () => {
      clearInterval(ticking);
      setText(head, `Asking for ${what} …`);
      setText(countdown, "");
    };
    const waiting = (problem, ms) => {
      if (!foot.textContent) announce(`${waitingWords(problem)} Your request is sent again by itself.`);
      const until = performance.now() + ms;
      setText(head, waitingWords(problem));
      setText(foot, "It is the same request each time, so you cannot buy twice. Leave this page open.");
      show(stop, true);
      const tick = () => setText(countdown, `again in ${Math.max(1, Math.ceil((until - performance.now()) / 1000))} s`);
      clearInterval(ticking);
      ticking = setInterval(tick, 250);
      tick();
    };
    show(stop, false);
    this.panel.replaceChildren(
      el("span", { class: "spinner", "aria-hidden": "true" }),
      el("div", { class: "wish-words" }, el("div", { class: "wish-line" }, head, countdown), foot, stop),
    );
    this.panel.dataset.kind = "sending";
    show(this.panel, true);
    return { asking, waiting, end: () => clearInterval(ticking) };
  }

  #askAgain(wish, text) {
    this.#wish = wish;
    this.onBusy(true);
    const again = el("button", { class: "primary small", type: "button", onclick: () => this.#send(wish) }, "Ask again");
    const drop = el("button", { class: "quiet small", type: "button", onclick: () => this.#giveUp(wish) }, "Never mind");
    this.#say(text, "open", el("div", { class: "wish-actions" }, again, drop));
  }

  #say(text, kind, ...more) {
    this.panel.replaceChildren(el("div", { class: "wish-words" }, el("p", { class: "wish-head" }, text), ...more));
    this.panel.dataset.kind = kind;
    show(this.panel, true);
    announce(text);
  }
}
