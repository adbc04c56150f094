"""How answers of a call come to each purchase, whatever becomes of the call."""

import uuid
from collections.abc import Iterable, Sequence

import grpc
import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from grpc.aio import AioRpcError, Metadata

from purchase_svc.settlement_rules import Answer
from purchase_svc.settlement_services import Metadata as CallMetadata
from purchase_svc.settlement_services import _ask

IDS = [uuid.UUID(int=n) for n in range(1, 12)]


def failing(code: grpc.StatusCode) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata())


async def test_one_purchase_that_breaks_the_call_does_not_take_its_neighbours_with_it() -> None:
    bad = IDS[6]
    calls: list[int] = []

    async def call(ids: Sequence[uuid.UUID], metadata: CallMetadata) -> Iterable[tuple[str, Answer]]:
        calls.append(len(ids))
        if bad in ids:
            raise failing(grpc.StatusCode.INTERNAL)
        return [(str(each), Answer(0)) for each in ids]

    answers = await _ask("test", call, IDS)
    assert list(answers) == IDS
    assert [key for key, answer in answers.items() if not answer.done] == [bad]
    assert not answers[bad].known
    assert len(calls) <= 2 * len(IDS)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ErrorReason.ERROR_REASON_OVERLOADED),
    ],
)
async def test_a_service_that_is_away_is_asked_once_and_nothing_is_known(code: grpc.StatusCode, reason: int) -> None:
    calls = 0

    async def call(ids: Sequence[uuid.UUID], metadata: CallMetadata) -> Iterable[tuple[str, Answer]]:
        nonlocal calls
        calls += 1
        raise failing(code)

    assert await _ask("test", call, IDS) == dict.fromkeys(IDS, Answer(reason, known=False))
    assert calls == 1


async def test_answers_in_another_order_or_number_are_not_believed() -> None:
    async def reversed_call(ids: Sequence[uuid.UUID], metadata: CallMetadata) -> Iterable[tuple[str, Answer]]:
        return [(str(each), Answer(0)) for each in reversed(ids)]

    async def short_call(ids: Sequence[uuid.UUID], metadata: CallMetadata) -> Iterable[tuple[str, Answer]]:
        return [(str(each), Answer(0)) for each in ids[1:]]

    # One by one the reversed answers are right; the short ones never are.
    assert all(answer.done for answer in (await _ask("test", reversed_call, IDS)).values())
    assert not any(answer.known for answer in (await _ask("test", short_call, IDS)).values())


async def test_nobody_is_asked_about_nothing() -> None:
    async def call(ids: Sequence[uuid.UUID], metadata: CallMetadata) -> Iterable[tuple[str, Answer]]:
        raise AssertionError("asked")

    assert await _ask("test", call, []) == {}
