// The operator's board: one question a second to the gateway, however much is shown, and none while nobody looks.

import { answersPanel } from "./answers_panel.js";
import { Problem, ask, backoff, pause } from "./api.js";
import { auditPanel } from "./audit_panel.js";
import { byId, keyed, setText, show } from "./dom.js";
import { time } from "./format.js";
import { operatorSale } from "./operator_sale.js";
import { deadLettersPanel, parkedPanel, queuePanel } from "./queue_panels.js";
import { signIn } from "./sign_in.js";
import { keepToken, token } from "./token.js";
import { refusal } from "./words.js";

const EVERY_MS = 1_000;
/** What has fallen out of the queue is read every so many seconds. */
const FALLEN_EVERY = 5;

const showAnswers = answersPanel(byId("answers"));
const showAudit = auditPanel(byId("audit"));
const showQueue = queuePanel(byId("queue"));
const letters = deadLettersPanel(byId("dead-letters"));
const parked = parkedPanel(byId("parked"));
const showSales = keyed(byId("sales"), (sale) => sale.sale_id, () => operatorSale(lookNow));

/** Sales that go on come first, those that are over last; within each the newest, as the gateway lists them. */
const LIVELINESS = { OPEN: 0, SOLD_OUT: 0, PAUSED: 0, SCHEDULED: 1, DRAFT: 2, CLOSED: 3 };
const liveliness = (sale) => LIVELINESS[sale.state] ?? 3;

let watching = null;
let wake = () => {};

function lookNow() {
  wake();
}

function freshness(state, words) {
  byId("freshness").dataset.state = state;
  setText(byId("freshness"), words);
  document.body.classList.toggle("is-stale", state !== "live");
}

function showOverview(overview) {
  showAnswers(overview.answers);
  showQueue(overview.queue);
  showAudit(overview.audit);
  showSales([...overview.sales].sort((a, b) => liveliness(a) - liveliness(b)));
  show(byId("sales-note"), overview.sales.length === 0);
  show(byId("board"), true);
  show(byId("freshness"), true);
  show(byId("page-note"), overview.away.length > 0);
  setText(byId("page-note"), `Away: ${overview.away.join(", ")}. What they know is missing here, or old.`);
  freshness("live", time(overview.time));
}

async function watch(signal) {
  let failures = 0;
  for (let round = 0; ; round += 1) {
    const asked = performance.now();
    let restMs = EVERY_MS;
    if (!document.hidden) {
      try {
        showOverview(await ask("GET", "/v1/operator/overview", { signal }));
        if (round % FALLEN_EVERY === 0) await Promise.all([letters.look(), parked.look()]);
        failures = 0;
      } catch (problem) {
        if (!(problem instanceof Problem)) throw problem;
        if (!problem.passes) throw problem;
        freshness("reconnecting", "Out of reach");
        if (failures > 2 || byId("board").hidden) {
          setText(byId("page-note"), `${refusal(problem)} Trying again.`);
          show(byId("page-note"), true);
        }
        restMs = Math.max(problem.retryAfterMs ?? 0, backoff(failures));
        failures += 1;
      }
    }
    // A second from question to question, unless something was done that its doer wants to see.
    const rest = Math.max(100, restMs - (performance.now() - asked));
    const nap = new AbortController();
    wake = () => nap.abort();
    await pause(rest, AbortSignal.any([nap.signal, signal])).catch(() => signal.throwIfAborted());
  }
}

function changeUser() {
  watching?.abort();
  show(byId("board"), false);
  show(byId("page-note"), false);
  show(byId("freshness"), false);
  if (token() === null) return;
  const cut = (watching = new AbortController());
  watch(cut.signal).catch((problem) => {
    if (cut.signal.aborted) return;
    if (!(problem instanceof Problem)) throw problem;
    show(byId("board"), false);
    if (problem.status === 403) keepToken(null, "This token is not an operator's.");
    else {
      setText(byId("page-note"), refusal(problem));
      show(byId("page-note"), true);
    }
  });
}

document.addEventListener("visibilitychange", lookNow);
signIn("This page is for operators: paste a token whose role is operator.", changeUser);
