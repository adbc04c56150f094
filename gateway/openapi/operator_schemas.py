"""What bodies of operators' requests and answers look like."""

from gateway.metrics import ANSWER_KINDS
from gateway.openapi.json_schema import Schema, flag, listed, moment, number, or_null, record, ref, text, uuid, whole
from gateway.openapi.schemas import NEXT_PAGE, OPTIONAL, PURCHASE, PURCHASE_STATE, REASON, SALE, SALE_STATE
from gateway.operating import ELIGIBLE_BYTES_MAX, ELIGIBLE_MAX, PARKED_MAX, REPLAY_MAX, TOTAL_MAX
from mesh.validation import ID_LENGTH_MAX

_COUNT = {
    "state": PURCHASE_STATE,
    "reason": or_null(REASON),
    "purchases": whole("Purchases"),
    "units": whole("Their shares together"),
}
_SETTLEMENT = {
    "settled": whole("Purchases that settlement has ended"),
    "unsettled": whole("Purchases that it has yet to end"),
    "rate_per_s": number("How many it ends a second"),
    "eta_s": or_null(number("When it will be through, seconds; null while nothing moves")),
    "oldest_age_s": or_null(number("Age of the oldest that is not settled, seconds")),
}

OPERATOR_SCHEMAS: dict[str, Schema] = {
    "OperatedSale": record(
        "A sale as an operator sees it",
        {**SALE, "state_actor": text('Who changed it last; "schedule", "stock": itself')},
    ),
    "SaleChanges": record(
        "A page of what was done with a sale",
        {
            "changes": listed(
                record(
                    "One change",
                    {
                        "change_time": or_null(moment("When")),
                        "actor": text("Who"),
                        "from_state": or_null(SALE_STATE),
                        "to_state": SALE_STATE,
                        "total": whole("Shares of the sale from then on", 1),
                    },
                ),
                "Changes, oldest first",
            ),
            "next_page_token": NEXT_PAGE,
        },
    ),
    "Statement": record(
        "What a sale has come to",
        {
            "sale_id": uuid("The sale"),
            "final": flag("Whether nothing of it can change any more, but by refunds"),
            "total": whole("Shares of the sale", 1),
            "sold_units": whole("Shares owned"),
            "sold_purchases": whole("Purchases that own them"),
            "captured": ref("Money"),
            "refunded": ref("Money"),
            "unfinished_purchases": whole("Purchases under way"),
            "non_win_counts": listed(
                record("How many did not win for one reason", {**_COUNT, "words": text("The reason in plain words")}),
                "Those who did not win",
            ),
            "non_wins": listed(
                record(
                    "One who did not win",
                    {
                        "purchase_id": uuid("The purchase"),
                        "user_id": text("Whose"),
                        "quantity": whole("Shares", 1),
                        "state": PURCHASE_STATE,
                        "reason": or_null(REASON),
                        "end_time": or_null(moment("When it ended")),
                    },
                ),
                "A page of them",
            ),
            "next_page_token": NEXT_PAGE,
        },
    ),
    "DeadLetters": record(
        "Messages that no worker can settle",
        {
            "count": whole("How many there are"),
            "letters": listed(
                record(
                    "One message",
                    {
                        "first_seen_time": or_null(moment("When it was put aside")),
                        "partition": or_null(whole("The partition it was met in")),
                        "body_bytes": whole("Its size"),
                        "reason": text("Why it cannot be settled"),
                        "purchase_ids": listed(text("An id"), "Purchases that it names"),
                    },
                ),
                "The oldest",
            ),
        },
    ),
    "Replay": {
        "type": "object",
        "additionalProperties": False,
        "description": "How many dead letters to send again; without a body: 20",
        "properties": {"most": whole("Letters", 1, maximum=REPLAY_MAX, default=20)},
    },
    "Replayed": record(
        "What became of dead letters",
        {
            "purchases": whole("Purchases that are queued again"),
            "letters_left": whole("Letters that stay"),
            "why": listed(text("A reason"), "Why those stay that were looked at"),
        },
    ),
    "ParkedPurchases": record(
        "A page of purchases whose attempts are exhausted",
        {
            "purchases": listed(
                record(
                    "A purchase with whose it is",
                    {**PURCHASE, "user_id": text("Whose"), "request_id": text("Its Idempotency-Key")},
                    OPTIONAL,
                ),
                "Purchases",
            ),
            "next_page_token": NEXT_PAGE,
        },
    ),
    "ParkedIds": {
        "type": "object",
        "additionalProperties": False,
        "required": ["purchase_ids"],
        "properties": {"purchase_ids": listed(uuid("A purchase"), "Parked purchases", minItems=1, maxItems=PARKED_MAX)},
    },
    "ReplayedParked": record(
        "What became of parked purchases",
        {
            "outcomes": listed(
                record("One", {"purchase_id": uuid("Which"), "reason": or_null(REASON)}),
                "One for each, in order; without a reason it is on its way again",
            )
        },
    ),
    "Total": {
        "type": "object",
        "additionalProperties": False,
        "required": ["total"],
        "properties": {"total": whole("Shares of the sale from now on; never fewer", 1, maximum=TOTAL_MAX)},
    },
    "Schedule": {
        "type": "object",
        "additionalProperties": False,
        "required": ["open_time", "close_time"],
        "description": "When a sale opens and closes by itself, by the database's clock; null: not by itself",
        "properties": {
            "open_time": or_null(
                moment("A DRAFT becomes SCHEDULED. Of a sale that has been opened it stays what it was; null will do")
            ),
            "close_time": or_null(moment("After open_time")),
        },
    },
    "UserIds": {
        "type": "object",
        "additionalProperties": False,
        "required": ["user_ids"],
        "description": f"At most {ELIGIBLE_BYTES_MAX} bytes; longer lists come in several requests",
        "properties": {
            "user_ids": listed(
                text("A user, as a token's sub names them: printable", minLength=1, maxLength=ID_LENGTH_MAX),
                "Users",
                minItems=1,
                maxItems=ELIGIBLE_MAX,
            )
        },
    },
    "EligibleUsers": record(
        "What became of them",
        {"added": whole("How many were not on the list before"), "eligible": whole("How many users are on it now")},
    ),
    "Overview": record(
        "All sales at one look",
        {
            "time": moment("When it was made"),
            "sales": listed(
                record(
                    "A sale",
                    {
                        **SALE,
                        "state_actor": text("Who changed it last"),
                        "stock": or_null(ref("Stock")),
                        "counts": or_null(listed(record("Purchases in one state", _COUNT), "Purchases by state")),
                        "settlement": or_null(record("How far settlement is", _SETTLEMENT)),
                    },
                ),
                "The newest 50",
            ),
            "answers": record(
                "Answers of this gateway by kind",
                {
                    kind: record("Of this kind", {"total": whole("All"), "per_s": number("A second")})
                    for kind in ANSWER_KINDS
                },
            ),
            "queue": record(
                "The settlement queue; null: not known",
                {
                    "messages": or_null(whole("Messages that wait")),
                    "dead_letters": or_null(whole("Messages that no worker can settle")),
                    "oldest_age_s": or_null(number("Age of the oldest purchase that is not settled, seconds")),
                },
            ),
            "audit": record(
                "The promises at a glance",
                {
                    "verdict": text("The verdict", enum=["kept", "broken", "unknown"]),
                    "checked_at": or_null(moment("When it was looked at last")),
                    "lines": listed(
                        record(
                            "One promise",
                            {
                                "promise": text("Its name"),
                                "text": text("What it says, or what is wrong"),
                                "ok": or_null(flag("Whether it is kept; null: not judged")),
                            },
                        ),
                        "The promises",
                    ),
                },
            ),
            "away": listed(text("A service"), "Services that could not be asked"),
        },
    ),
}
