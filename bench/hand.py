"""What a person needs to buy a share by hand.

`python -m bench.hand token USER` prints a token and nothing else, `operator-token USER` that of an operator;
`account USER EUR` puts money on an account; `new-sale [SHARES] [PRICE]` opens a sale and prints the curl lines (SHARES
and PRICE may also be set in the environment).
"""

import os
import re
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence

import uvloop
from flashsale.balance.v1 import balance_service_pb2 as balance

from bench.clients import call, open_clients
from bench.seeding import CURRENCY, SeedingError, fund_accounts, open_sale
from gateway.local_tokens import issue
from mesh.errors import DomainError
from mesh.validation import is_name
from stack import environment
from stack.errors import StackError

_USAGE = """usage: python -m bench.hand token USER
       python -m bench.hand operator-token USER
       python -m bench.hand account USER EUR     (EUR: 0.01 to 10,000,000.00, for example 100 or 99.50)
       python -m bench.hand new-sale [SHARES] [PRICE]
"""
_DAY_S = 24 * 3600
_SHARES_DEFAULT, _PRICE_DEFAULT = "100", "25.00"
_EUR_MAX, _SHARES_MAX = 10_000_000, 10_000_000


class UsageError(Exception):
    """The command cannot be meant; the message says what is wrong."""


def cents(text: str) -> int:
    """An amount in EUR with at most two decimals, as cents. Raises UsageError, also below 0.01 and above 10,000,000."""
    match = re.fullmatch(r"(\d{1,8})(?:\.(\d{1,2}))?", text, re.ASCII)
    amount = int(match[1]) * 100 + int((match[2] or "0").ljust(2, "0")) if match else 0
    if not 1 <= amount <= _EUR_MAX * 100:
        raise UsageError(f"EUR is {text!r}, but must be 0.01 to {_EUR_MAX:,}.00, with a point and at most two decimals")
    return amount


def _user(text: str) -> str:
    if not is_name(text):
        raise UsageError("USER must be 1 to 128 printable characters, for example USER=alice")
    return text


def _shares(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= _SHARES_MAX and len(text) < 9):
        raise UsageError(f"SHARES is {text!r}, but must be 1 to {_SHARES_MAX:,}")
    return int(text)


def _secret(values: Mapping[str, str]) -> str:
    if "GATEWAY_JWT_SECRET" not in values:
        raise UsageError("this stack's gateway checks tokens by public keys: ask whoever signs them for one")
    return values["GATEWAY_JWT_SECRET"]


def token(values: Mapping[str, str], user_id: str) -> str:
    """A token that is good for a day, as one line."""
    return issue(_secret(values), _user(user_id), _DAY_S) + "\n"


def operator_token(values: Mapping[str, str], user_id: str) -> str:
    """A token that is good for a day, as one line, for an operator: what it does is recorded under ``user_id``."""
    return issue(_secret(values), _user(user_id), _DAY_S, operator=True) + "\n"


async def account(values: Mapping[str, str], user_id: str, eur: str) -> str:
    """Opens the account if need be, puts ``eur`` on it, and says what is there now."""
    amount, user_id = cents(eur), _user(user_id)
    async with open_clients(values) as clients:
        await fund_accounts(clients, {user_id: amount}, f"hand-{uuid.uuid4().hex[:12]}")
        request = balance.GetBalanceRequest(user_id=user_id, currency_code=CURRENCY)
        now = (await call(clients.balance.GetBalance, request)).account
    held = f", of which {now.held_minor / 100:,.2f} EUR are held" if now.held_minor else ""
    return f"{user_id} has {now.balance_minor / 100:,.2f} EUR{held}\n"


async def new_sale(values: Mapping[str, str], shares: str, price: str) -> str:
    """Opens a sale; how to buy a share of it with curl, ready to paste."""
    async with open_clients(values) as clients:
        sale_id = await open_sale(clients, "By hand", _shares(shares), cents(price))
    gateway = values["GATEWAY_URL"]
    return f"""Sale {sale_id} is open: {int(shares):,} shares at {cents(price) / 100:,.2f} EUR. To buy one as alice:

make account USER=alice EUR=100
TOKEN=$(make --silent token USER=alice)
curl -i -X POST {gateway}/v1/sales/{sale_id}/purchases \\
     -H "Authorization: Bearer $TOKEN" -H "Idempotency-Key: $(uuidgen || date +%s%N)" \\
     -H "Content-Type: application/json" -d '{{"quantity": 1}}'

The answer's Location tells where to look what became of it (wait: at most 30 s for the end):
curl -s "{gateway}/v1/purchases/PURCHASE_ID?wait=10" -H "Authorization: Bearer $TOKEN"
curl -s {gateway}/v1/balance -H "Authorization: Bearer $TOKEN"
curl -s {gateway}/v1/sales/{sale_id}/stock
curl -sN {gateway}/v1/sales/{sale_id}/stock/stream

With {{"quantity": 1, "waitlist": true}} she waits in line if there is no share. To cancel, in line too; to have the
money back once it is CONFIRMED; and to read all about it:
curl -i -X DELETE {gateway}/v1/purchases/PURCHASE_ID -H "Authorization: Bearer $TOKEN"
curl -i -X POST {gateway}/v1/purchases/PURCHASE_ID/refund -H "Authorization: Bearer $TOKEN"
curl -s {gateway}/v1/purchases/PURCHASE_ID/receipt -H "Authorization: Bearer $TOKEN"
"""


async def run(arguments: Sequence[str], load: Callable[[], Mapping[str, str]]) -> str:
    """Carries out a command on the stack whose environment ``load`` gives; what to print.

    Raises UsageError, SeedingError or DomainError, and what ``load`` raises.
    """
    match list(arguments):
        case ["token", user_id]:
            return token(load(), user_id)
        case ["operator-token", user_id]:
            return operator_token(load(), user_id)
        case ["account", user_id, eur]:
            return await account(load(), user_id, eur)
        case ["new-sale", *rest] if len(rest) <= 2:
            wanted = [*rest, *[""] * (2 - len(rest))]
            shares = wanted[0] or os.environ.get("SHARES") or _SHARES_DEFAULT
            return await new_sale(load(), shares, wanted[1] or os.environ.get("PRICE") or _PRICE_DEFAULT)
    raise UsageError(_USAGE.rstrip())


def main() -> int:
    """Exit code 2 for a wrong call, 1 when the stack is not up or refuses."""
    try:
        sys.stdout.write(uvloop.run(run(sys.argv[1:], environment.load)))
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (StackError, SeedingError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except DomainError as error:
        sys.stderr.write(f"{error.reason_name}: {error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
