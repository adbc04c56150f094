"""What the load generator is told and what it tells: a plan file, lines on its pipes, a results file."""

import math
from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec


class Buyer(msgspec.Struct, frozen=True, array_like=True):
    """One user who wants one share."""

    user_id: str
    token: str
    request_id: str
    waits: bool = False
    """Asks to join the waitlist if there is no share."""


class LoadPlan(msgspec.Struct, frozen=True):
    """A burst. The file holds tokens: only its owner may read it."""

    host: str
    port: int
    path: str
    """Where to POST, for example /v1/sales/.../purchases."""
    results_file: str
    buyers: list[Buyer]
    connections: int = 2000
    """Keep-alive connections, all open before the start."""
    attempts_max: int = 60
    """Sends per buyer and wave, the first included. With 1, a buyer told 429 has been answered."""
    offered_per_s: float = 0.0
    """Buyers who arrive each second, whether or not others are answered; 0: each connection takes the next one as soon
    as it is free. A buyer's time runs from the arrival, also while no connection is free."""
    gone_share: float = 0.0
    """Part of the buyers who break their connection off right after they have sent, 0 to 1; evenly spread."""
    wave_s_max: float = 60.0
    """Longest first wave, seconds; who has no answer by then counts as an error."""
    answer_s_max: float = 10.0
    """Longest wait for one answer, seconds; then the connection is given up and the buyer tries again."""


class Progress(msgspec.Struct, frozen=True):
    """A line from the generator, about every 100 ms. Counts since the start; ``at`` is CLOCK_MONOTONIC, seconds."""

    at: float
    event: str = "progress"
    """"ready" once (all connections open), "progress" after."""
    answered: int = 0
    """Buyers who have had an answer (202 or 409)."""
    accepted: int = 0
    """Buyers whose last answer was 202, those in line not among them."""
    waitlisted: int = 0
    """Buyers whose last answer was 202 with a place in line."""
    sold_out: int = 0
    """Buyers whose last answer was 409 SOLD_OUT."""
    shed_429: int = 0
    """Attempts answered 429."""
    errors: int = 0
    """Attempts that ended in anything but 202, 409 and 429, and buyers who never got an answer."""
    in_flight: int = 0
    """Requests sent and not answered, and repetitions that wait for their time."""
    hoping: int = 0
    """Buyers refused SOLD_OUT who will try again when stock returns."""
    first_wave_over: bool = False


class Command(msgspec.Struct, frozen=True):
    """A line to the generator. ``verb``: "start"; "stock" (``available`` units are on sale again); "finish"."""

    verb: str
    available: int = 0


class BuyerResult(msgspec.Struct, frozen=True, array_like=True):
    """How it went for one buyer, in the order of the plan. Status 0: never answered."""

    first_status: int
    first_reason: str
    latency_ms: float
    """From the first send to the first answer, waits after 429 included."""
    answered_at_s: float
    """When the first answer came, seconds after the start."""
    status: int
    """The last answer, after the second wave."""
    reason: str
    attempts: int
    purchase_id: str
    """As the 202 named it."""
    waitlisted: bool = False
    """Whether that 202 was for a place in line."""
    waitlist_position: int = 0
    """The place that it named; 0: none."""


class LoadResults(msgspec.Struct, frozen=True):
    """The results file."""

    started_at: float
    """CLOCK_MONOTONIC, seconds."""
    burst_wall_s: float
    """From the start to the last first answer."""
    shed_429: int
    errors: int
    error_kinds: dict[str, int]
    """What the errors were: a status code with its reason, or what happened to the connection."""
    buyers: list[BuyerResult]
    cpu_s: float = 0.0
    """Processor time that the generator took from the start on."""


def purchases_at(gateway_url: str, sale_id: str) -> tuple[str, int, str]:
    """Host, port and path to which the purchases of a sale are sent: the first three fields of a LoadPlan."""
    parts = urlsplit(gateway_url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port, f"/v1/sales/{sale_id}/purchases"


def is_among(index: int, share: float) -> bool:
    """Whether the one of this number (from 0) is chosen, such that ``share`` of any run of numbers are, evenly
    spread."""
    return math.floor((index + 1) * share) > math.floor(index * share)


def render_request(plan: LoadPlan, buyer: Buyer) -> bytes:
    """The whole HTTP request of one buyer."""
    # Spelt as short as it can be without the wish: the gateway knows by its length that it need not read it.
    body = '{"quantity":1,"waitlist":true}' if buyer.waits else '{"quantity":1}'
    return (
        f"POST {plan.path} HTTP/1.1\r\nHost: {plan.host}:{plan.port}\r\nAuthorization: Bearer {buyer.token}\r\n"
        f"Idempotency-Key: {buyer.request_id}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode("ascii")


def line(message: msgspec.Struct) -> bytes:
    """A message as one line of JSON."""
    return msgspec.json.encode(message) + b"\n"


def first_latencies(buyers: Sequence[BuyerResult], status: int | None = None) -> list[float]:
    """Latencies of first answers, milliseconds, ascending; only those with ``status`` if it is given."""
    wanted = (202, 409) if status is None else (status,)
    return sorted(item.latency_ms for item in buyers if item.first_status in wanted)
