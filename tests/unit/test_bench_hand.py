"""Amounts and names typed by people are taken exactly or refused with a reason."""

from collections.abc import Mapping

import pytest

from bench.hand import UsageError, cents, run
from gateway.tokens import TokenChecker


def no_stack() -> Mapping[str, str]:
    raise AssertionError("a wrong command must not reach the stack")


@pytest.mark.parametrize(("text", "expected"), [("100", 10000), ("99.5", 9950), ("0.01", 1), ("10000000.00", 10**9)])
def test_amounts_are_exact(text: str, expected: int) -> None:
    assert cents(text) == expected


@pytest.mark.parametrize("text", ["", "0", "0.00", "-1", "1.005", "1,50", "1e3", "10000000.01", "99999999999", "x"])
def test_other_amounts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="EUR is"):
        cents(text)


@pytest.mark.parametrize("arguments", [[], ["token"], ["account", "alice"], ["new-sale", "1", "2", "3"], ["buy"]])
async def test_a_wrong_command_shows_the_usage(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="usage:"):
        await run(arguments, no_stack)


@pytest.mark.parametrize("arguments", [["token", ""], ["operator-token", ""], ["new-sale", "0"], ["new-sale", "many"]])
async def test_a_wrong_value_is_named(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match=r"USER must|SHARES is"):
        await run(arguments, lambda: {"GATEWAY_JWT_SECRET": "s" * 32, **dict.fromkeys(_TARGETS, "127.0.0.1:9")})


_TARGETS = ("INVENTORY_TARGET", "BALANCE_TARGET", "PURCHASE_TARGET", "GATEWAY_URL")


async def test_an_operator_s_token_is_asked_for_by_name() -> None:
    secret = "s" * 32
    checker = TokenChecker(secret, cache_max=10)
    for command, is_operator in (("token", False), ("operator-token", True)):
        token = (await run([command, "olga"], lambda: {"GATEWAY_JWT_SECRET": secret})).strip()
        caller = checker.caller(f"Bearer {token}")
        assert (caller.user_id, caller.is_operator) == ("olga", is_operator)
