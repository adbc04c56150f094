// The settlement queue, and what has fallen out of it: messages that no worker can settle, and purchases whose attempts
// are exhausted.

import { actionButton, errorLine } from "./actions.js";
import { announce } from "./announce.js";
import { ask } from "./api.js";
import { confirmed } from "./dialogs.js";
import { el, keyed, setText, show } from "./dom.js";
import { count, duration, time } from "./format.js";

/** Dead letters sent again by one press, and parked purchases by one request. */
const LETTERS_MAX = 20;
const PARKED_MAX = 100;

function figure(name) {
  const value = el("dd", { class: "num" }, "–");
  return { node: el("div", { class: "figure" }, el("dt", {}, name), value), value };
}

/** Fills the section of the queue's depth and age; gives the function that takes the overview's queue. */
export function queuePanel(section) {
  const messages = figure("messages");
  const age = figure("oldest");
  const letters = figure("dead letters");
  section.append(
    el("h2", { id: "queue-head" }, "Settlement queue"),
    el("dl", { class: "figures" }, messages.node, age.node, letters.node),
  );
  return (queue) => {
    // Null is what cannot be known now, because the broker or a service is away.
    setText(messages.value, queue.messages === null ? "?" : count(queue.messages));
    setText(age.value, queue.oldest_age_s ? duration(queue.oldest_age_s) : "–");
    setText(letters.value, queue.dead_letters === null ? "?" : count(queue.dead_letters));
    letters.node.classList.toggle("is-bad", queue.dead_letters > 0);
  };
}

function letterLine() {
  const reason = el("p", { class: "letter-reason" });
  const terms = el("p", { class: "hint num" });
  return {
    node: el("li", { class: "letter" }, reason, terms),
    update(letter) {
      setText(reason, letter.reason);
      const where = letter.partition !== null ? `partition ${letter.partition}` : "partition not known";
      const names = letter.purchase_ids.length ? `, ${count(letter.purchase_ids.length)} purchases` : "";
      setText(terms, [time(letter.first_seen_time), `${where}${names}, ${count(letter.body_bytes)} bytes`].filter(Boolean).join(" · "));
    },
  };
}

/** Fills the section of dead letters; gives { look() }, which reads them again. */
export function deadLettersPanel(section) {
  const list = el("ol", { class: "letters" });
  const none = el("p", { class: "note" }, "There are none.");
  const result = el("p", { class: "hint", role: "status", hidden: true });
  const error = errorLine();
  const replay = actionButton("Replay", "quiet", error, send);
  show(replay, false);
  section.append(
    el("div", { class: "panel-head" }, el("h2", { id: "dead-letters-head" }, "Dead letters"), replay),
    none,
    list,
    result,
    error.node,
  );
  const update = keyed(list, (letter) => `${letter.first_seen_time} ${letter.purchase_ids[0] ?? ""} ${letter.index}`, letterLine);

  async function look() {
    const { letters, count: all } = await ask("GET", "/v1/operator/dead-letters");
    update(letters.map((letter, index) => ({ ...letter, index })));
    show(none, letters.length === 0);
    show(replay, letters.length > 0);
    setText(replay, `Replay ${all > LETTERS_MAX ? `the oldest ${LETTERS_MAX} of ${count(all)}` : count(all)}`);
  }

  async function send() {
    const sure = await confirmed(
      "Replay dead letters?",
      `The oldest ${LETTERS_MAX} at most are sent to their partitions again. What cannot be settled comes back here.`,
      { action: "Replay" },
    );
    if (!sure) return;
    const done = await ask("POST", "/v1/operator/dead-letters/replay", { body: { most: LETTERS_MAX } });
    const stay = done.letters_left ? ` ${count(done.letters_left)} stay: ${done.why.join("; ")}.` : "";
    setText(result, `${count(done.purchases)} purchases are queued again.${stay}`);
    show(result, true);
    announce(result.textContent);
    await look();
  }

  return { look };
}

function parkedLine() {
  const id = el("code", {});
  const terms = el("p", { class: "hint num" });
  return {
    node: el("li", { class: "letter" }, id, terms),
    update(purchase) {
      setText(id, purchase.purchase_id);
      setText(terms, [purchase.user_id, purchase.reason, time(purchase.update_time)].filter(Boolean).join(" · "));
    },
  };
}

/** Fills the section of parked purchases; gives { look() }, which reads them again. */
export function parkedPanel(section) {
  const list = el("ol", { class: "letters" });
  const none = el("p", { class: "note" }, "There are none.");
  const result = el("p", { class: "hint", role: "status", hidden: true });
  const error = errorLine();
  const replay = actionButton("Replay", "quiet", error, letGoOn);
  show(replay, false);
  section.append(
    el("div", { class: "panel-head" }, el("h2", { id: "parked-head" }, "Parked purchases"), replay),
    none,
    list,
    result,
    error.node,
  );
  const update = keyed(list, (purchase) => purchase.purchase_id, parkedLine);
  let ids = [];

  async function look() {
    const { purchases } = await ask("GET", "/v1/operator/parked");
    ids = purchases.map((purchase) => purchase.purchase_id).slice(0, PARKED_MAX);
    update(purchases);
    show(none, purchases.length === 0);
    show(replay, purchases.length > 0);
    setText(replay, `Replay ${count(ids.length)}`);
  }

  async function letGoOn() {
    const wanted = ids;
    const sure = await confirmed(
      "Replay parked purchases?",
      `The workers try ${count(wanted.length)} again, from where each got stuck. Nobody is charged twice.`,
      { action: "Replay" },
    );
    if (!sure) return;
    const { outcomes } = await ask("POST", "/v1/operator/parked/replay", { body: { purchase_ids: wanted } });
    const reasons = outcomes.map((outcome) => outcome.reason).filter(Boolean);
    const stay = reasons.length ? ` ${count(reasons.length)} are not: ${[...new Set(reasons)].join(", ")}.` : "";
    setText(result, `${count(outcomes.length - reasons.length)} are on their way again.${stay}`);
    show(result, true);
    announce(result.textContent);
    await look();
  }

  return { look };
}
