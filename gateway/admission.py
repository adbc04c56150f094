"""Whether a purchase may go on by the shape of its request. Rules only, no I/O."""

import msgspec

from gateway.problems import HttpError
from mesh.errors import invalid_argument
from mesh.validation import ID_LENGTH_MAX, is_name

#: Largest body of a request, bytes, unless its route takes more.
BODY_BYTES_MAX = 4096
#: Longest Authorization header, characters. A token of ours is about 250.
AUTHORIZATION_LENGTH_MAX = 4096
#: Largest quantity that is passed on; each sale has its own, lower limit.
QUANTITY_MAX = 1000


#: Announced lengths of bodies that cannot ask for the waitlist: the shortest that does is {"waitlist":true}. As text,
#: because the door compares what was sent with them.
LENGTHS_WITHOUT_WISH = frozenset(map(str, range(len('{"waitlist":true}'))))


#: A whole number in JSON: 1.0 is one, and many languages write it so (JSON Schema, draft 2020-12, section 4.2.3).
Whole = int | float


def whole(field: str, value: Whole, low: int, high: int) -> int:
    """The number. Raises INVALID_ARGUMENT when it has a fraction, or is not from ``low`` to ``high``."""
    if not low <= value <= high or value != int(value):
        raise invalid_argument((field, f"must be {low} to {high}, a whole number"))
    return int(value)


class PurchaseBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a buyer sends: how many shares, and whether to wait in line if there are too few."""

    quantity: Whole = 1
    waitlist: bool = False


_ONE_SHARE = PurchaseBody()
_DECODER = msgspec.json.Decoder(PurchaseBody, strict=True)


def too_large(bytes_max: int) -> HttpError:
    """The refusal of a body of more bytes than that."""
    return HttpError(413, f"the body is larger than {bytes_max} bytes")


def body_length(content_length: str | None, bytes_max: int = BODY_BYTES_MAX) -> int | None:
    """The announced length of a body, bytes; None when it is not announced. Raises HttpError 413 above ``bytes_max``,
    400 for what is no length."""
    if content_length is None:
        return None
    if not (content_length.isascii() and content_length.isdecimal()):
        raise HttpError(400, "the Content-Length header is not a whole number")
    # By digits first: a number of thousands of digits is never converted.
    if len(content_length) > 10 or int(content_length) > bytes_max:
        raise too_large(bytes_max)
    return int(content_length)


def check_content_type(content_type: str | None) -> None:
    """Raises HttpError 415 for a body that says it is not JSON. One that says nothing is taken for JSON."""
    if content_type is not None and content_type.partition(";")[0].strip().lower() != "application/json":
        raise HttpError(415, "the body must be application/json")


def check_authorization_length(authorization: str | None) -> None:
    """Raises HttpError 431 for a header no token of ours can be."""
    if authorization is not None and len(authorization) > AUTHORIZATION_LENGTH_MAX:
        raise HttpError(431, f"the Authorization header is longer than {AUTHORIZATION_LENGTH_MAX} characters")


def is_idempotency_key(text: str) -> bool:
    """Whether ``text`` can name a purchase: 1 to 128 printable ASCII characters, no space at the ends."""
    return text.isascii() and is_name(text)


def idempotency_key(text: str | None) -> str:
    """The request id. Raises INVALID_ARGUMENT when it is missing or malformed."""
    if text is None or not is_idempotency_key(text):
        raise invalid_argument(("Idempotency-Key", f"must be 1 to {ID_LENGTH_MAX} printable ASCII characters"))
    return text


def purchase_of(body: bytes) -> PurchaseBody:
    """What a body asks for, one share when it is empty. Raises INVALID_ARGUMENT for anything but
    ``{"quantity": n, "waitlist": bool}`` with n from 1 to QUANTITY_MAX, either left out or not."""
    if not body:
        return _ONE_SHARE
    try:
        wanted = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_argument(("body", str(error) or "is not JSON")) from error
    if type(wanted.quantity) is int and 1 <= wanted.quantity <= QUANTITY_MAX:
        return wanted
    return PurchaseBody(whole("quantity", wanted.quantity, 1, QUANTITY_MAX), wanted.waitlist)
