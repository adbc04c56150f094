"""Reads of what is on accounts. Those of many users at once share a call, so that a flood of them leaves the Balance
Service to the settlement of purchases."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flashsale.balance.v1 import balance_service_pb2 as pb
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.batcher import Batcher
from mesh.errors import DomainError

if TYPE_CHECKING:
    from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceAsyncStub

Key = tuple[str, str]

#: Accounts of one call; the service allows 1,000.
_BATCH_MAX = 500
#: One call under way while the next one gathers: two would be smaller and cost more.
_IN_FLIGHT_MAX = 1


class Balances:
    """Reads accounts by user and currency, which must be well-formed. Whoever calls bounds how many wait."""

    def __init__(self, stub: "BalanceServiceAsyncStub", timeout_s: float, queue_max: int) -> None:
        self._stub = stub
        self._timeout_s = timeout_s
        self._reads: Batcher[Key, pb.Account | None] = Batcher(
            self._call, batch_max=_BATCH_MAX, in_flight_max=_IN_FLIGHT_MAX, queue_max=queue_max
        )

    async def read(self, user_id: str, currency_code: str) -> pb.Account:
        """An account. Raises ACCOUNT_NOT_FOUND, OVERLOADED, DEADLINE_EXCEEDED, and what the call itself raises."""
        try:
            async with asyncio.timeout(self._timeout_s):
                account = await self._reads.submit((user_id, currency_code))
        except TimeoutError as error:
            raise DomainError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED) from error
        if account is None:
            raise DomainError(ErrorReason.ERROR_REASON_ACCOUNT_NOT_FOUND)
        return account

    async def _call(self, keys: Sequence[Key]) -> list[pb.Account | None]:
        accounts = [pb.AccountKey(user_id=user, currency_code=code) for user, code in dict.fromkeys(keys)]
        answer = await self._stub.BatchGetBalances(
            pb.BatchGetBalancesRequest(accounts=accounts), timeout=self._timeout_s
        )
        found = {(account.user_id, account.currency_code): account for account in answer.accounts}
        return [found.get(key) for key in keys]
