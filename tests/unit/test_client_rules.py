"""The client's rules that need no server: errors by reason, targets, what is sent again, batches, and what is news."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as pb
from flashsale_client import Answer, AsyncClient, Client, FlashsaleError, Policy, Refused, Tls, TryAgain, Wish, reasons
from flashsale_client.connection import options_of, target_of
from flashsale_client.errors import error_of_call, error_of_item
from flashsale_client.following import Following
from flashsale_client.gathering import Gatherer
from flashsale_client.repeating import pause_of_call_s, pause_of_item_s
from flashsale_client.wishes import Rounds
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import status_pb2

from mesh.errors import _MAPPINGS, from_rpc_error, suggested_retry_ms

OK = pb.CreatePurchaseOutcome(purchase_id="p", state=pb.PURCHASE_STATE_RESERVED)
OVERLOADED = ErrorReason.ERROR_REASON_OVERLOADED
TLS = Tls(Path("ca.pem"), Path("own.pem"), Path("key.pem"))
SOLD_OUT = ErrorReason.ERROR_REASON_SOLD_OUT


@pytest.mark.parametrize("reason", [each for each in ErrorReason.values() if each])
def test_every_reason_of_the_contract_has_a_class_of_its_own(reason: int) -> None:
    name = ErrorReason.Name(reason).removeprefix("ERROR_REASON_")  # type: ignore[arg-type]
    error = error_of_item(reason, 250)
    assert type(error) is getattr(reasons, "".join(part.capitalize() for part in name.split("_")))
    assert (error.reason, error.retry_after_s) == (name, 0.25)
    # What the services ask to repeat is what the client may repeat, and what has a deadline's unknown outcome.
    again = suggested_retry_ms(reason) > 0 or _MAPPINGS[reason].code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert isinstance(error, TryAgain) == again
    assert isinstance(error, Refused) == (not again and name != "INTERNAL")


def test_a_reason_of_a_newer_contract_is_still_told() -> None:
    error = error_of_item(9_999)
    assert type(error) is FlashsaleError
    assert error.reason == "REASON_9999"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("dns:///purchase.internal:7053", "dns:///purchase.internal:7053"),
        (["127.0.0.1:1"], "127.0.0.1:1"),
        (["127.0.0.1:1", "127.0.0.2:2"], "ipv4:127.0.0.1:1,127.0.0.2:2"),
        (["[::1]:1", "[::1]:2"], "ipv6:[::1]:1,[::1]:2"),
    ],
)
def test_a_list_of_replicas_becomes_one_target(target: str | Sequence[str], expected: str) -> None:
    assert target_of(target) == expected


@pytest.mark.parametrize("target", [[], ["one:1", "other:1"], ["127.0.0.1:1", "[::1]:1"]])
def test_a_list_that_cannot_be_meant_is_refused(target: list[str]) -> None:
    with pytest.raises(ValueError, match=r"address|numeric|IPv4"):
        target_of(target)


@pytest.mark.parametrize("kind", [AsyncClient, Client])
def test_plaintext_leaves_the_machine_only_when_told_to(kind: type[AsyncClient] | type[Client]) -> None:
    for target in ("localhost:1", "127.0.0.1:1", "dns:///localhost:1", "[::1]:1", ["127.0.0.1:1", "127.0.0.1:2"]):
        kind(purchase=target)
    for target in ("10.0.0.1:1", "dns:///purchase:1", "dns://8.8.8.8/purchase:1", ["127.0.0.1:1", "10.0.0.1:1"]):
        with pytest.raises(ValueError, match="tls"):
            kind(purchase=target)
        kind(purchase=target, plaintext=True)
        kind(purchase=target, tls=TLS)


def test_certificates_can_be_named_in_the_environment() -> None:
    assert Tls.from_environment({}) is None
    named = {"MESH_TLS_CA": "/ca.pem", "MESH_TLS_CERTIFICATE": "/own.pem", "MESH_TLS_KEY": "/key.pem"}
    assert Tls.from_environment(named) == Tls(Path("/ca.pem"), Path("/own.pem"), Path("/key.pem"))
    with pytest.raises(ValueError, match="all three"):
        Tls.from_environment({"MESH_TLS_CA": "/ca.pem"})


def test_a_service_must_show_a_certificate_for_its_own_name() -> None:
    options = options_of("flashsale.purchase.v1.PurchaseService", Policy(), TLS)
    assert ("grpc.ssl_target_name_override", "purchase.flashsale") in options


def test_grpc_is_told_to_retry_what_is_unavailable_and_nothing_else() -> None:
    config = json.loads(Policy().service_config("flashsale.purchase.v1.PurchaseService"))
    (every,) = config["methodConfig"]
    assert every["name"] == [{"service": "flashsale.purchase.v1.PurchaseService"}]
    assert every["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert every["retryPolicy"]["maxAttempts"] <= 5
    assert config["retryThrottling"]["maxTokens"] <= 1_000
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    assert "retryPolicy" not in Policy(attempts_max=1).service_config("flashsale.purchase.v1.PurchaseService")


@pytest.mark.parametrize(
    "wrong", [{"attempts_max": 6}, {"batch_max": 1_001}, {"failures_max": 501}, {"timeout_s": 0}, {"backoff_s": 0.001}]
)
def test_a_policy_without_bounds_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Policy(**wrong)


def test_only_what_is_told_to_come_again_does_and_not_for_ever() -> None:
    policy = Policy(repetitions_max=2)
    busy = reasons.Overloaded(retry_after_s=0.3)
    assert pause_of_call_s(busy, 0, 5.0, policy) == 0.3
    assert pause_of_call_s(busy, 2, 5.0, policy) is None
    assert pause_of_call_s(busy, 0, 0.2, policy) is None
    assert pause_of_call_s(reasons.Overloaded(), 0, 5.0, policy) is None
    # gRPC itself has repeated it as often as may be.
    assert pause_of_call_s(reasons.Unavailable(retry_after_s=0.3), 0, 5.0, policy) is None
    assert pause_of_call_s(reasons.SoldOut(), 0, 5.0, policy) is None
    assert pause_of_item_s(reasons.Unavailable(retry_after_s=0.3), 0, 5.0, policy) == 0.3
    assert pause_of_item_s(reasons.SoldOut(), 0, 5.0, policy) is None
    assert pause_of_item_s(reasons.Overloaded(), 0, 5.0, policy) is None


def wishes(count: int) -> list[Wish]:
    return [Wish("sale", f"u{number}") for number in range(count)]


def test_each_wish_gets_its_own_answer_and_only_those_told_to_are_sent_again() -> None:
    rounds = Rounds(wishes(6), Policy(batch_max=2, repetitions_max=1))
    batches = rounds.batches()
    assert batches == [[0, 1], [2, 3], [4, 5]]
    busy = pb.CreatePurchaseOutcome(reason=OVERLOADED, retry_after_ms=200)
    rounds.answered([0, 1], [OK, busy])
    rounds.answered([2, 3], [pb.CreatePurchaseOutcome(reason=SOLD_OUT), busy])
    # What a call has come to, it has come to after all the repetitions it may have.
    rounds.failed([4, 5], reasons.Overloaded(retry_after_s=0.1))
    assert rounds.end_round(left_s=5.0) == 0.2
    assert rounds.batches() == [[1, 3]]
    assert [wish.user_id for wish in rounds.wishes_of([1, 3])] == ["u1", "u3"]
    rounds.answered([1, 3], [OK, busy])
    # Once was all.
    assert rounds.end_round(left_s=5.0) == 0.0
    assert rounds.batches() == []
    answers = rounds.answers()
    assert [answer.wish.user_id for answer in answers] == [f"u{number}" for number in range(6)]
    assert [answer.error.reason if answer.error else "" for answer in answers] == [
        *("", "", "SOLD_OUT"),
        *("OVERLOADED", "OVERLOADED", "OVERLOADED"),
    ]
    for answer in answers[3:]:
        assert answer.error is not None
        assert answer.error.request_id == answer.wish.request_id


def test_nothing_is_sent_again_when_the_time_is_up() -> None:
    rounds = Rounds(wishes(1), Policy())
    rounds.answered([0], [pb.CreatePurchaseOutcome(reason=OVERLOADED, retry_after_ms=200)])
    assert rounds.end_round(left_s=0.1) == 0.0
    assert rounds.batches() == []


async def test_a_gatherer_sends_many_wishes_in_few_batches_and_answers_each_by_itself() -> None:
    sent: list[list[Wish]] = []
    first_batch, go_on = asyncio.Event(), asyncio.Event()

    async def buy_many(batch: Sequence[Wish]) -> list[Answer]:
        sent.append(list(batch))
        first_batch.set()
        await go_on.wait()
        refused = reasons.SoldOut()
        return [Answer(wish, wish.user_id, error=refused if wish.user_id == "u3" else None) for wish in batch]

    async with Gatherer(buy_many, Policy(batch_max=8, batches_at_once=1)) as gatherer:
        wanted = wishes(12)
        tasks = [asyncio.create_task(gatherer.buy(wish)) for wish in wanted]
        await first_batch.wait()
        assert gatherer.waiting == 4
        # Gone before it was sent, so it is never sent.
        tasks[11].cancel()
        go_on.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [len(batch) for batch in sent] == [8, 3]
    for number, answer in enumerate(answers[:11]):
        if number == 3:
            assert isinstance(answer, reasons.SoldOut)
        else:
            assert isinstance(answer, Answer)
            assert answer.purchase_id == f"u{number}"
    assert isinstance(answers[11], asyncio.CancelledError)


async def test_a_gatherer_refuses_what_it_has_no_room_for_and_tells_all_when_a_batch_breaks_off() -> None:
    go_on = asyncio.Event()

    async def buy_many(batch: Sequence[Wish]) -> list[Answer]:
        await go_on.wait()
        raise reasons.Unavailable("away")

    async with Gatherer(buy_many, Policy(batch_max=1, batches_at_once=1, queue_max=1)) as gatherer:
        first = asyncio.create_task(gatherer.buy(Wish("sale", "a")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second = asyncio.create_task(gatherer.buy(Wish("sale", "b")))
        await asyncio.sleep(0)
        with pytest.raises(reasons.Overloaded):
            await gatherer.buy(Wish("sale", "c"))
        go_on.set()
        for task in (first, second):
            with pytest.raises(reasons.Unavailable):
                await task


async def test_a_wish_that_waits_too_long_in_a_gatherer_is_never_sent() -> None:
    sent: list[Wish] = []
    go_on = asyncio.Event()

    async def buy_many(batch: Sequence[Wish]) -> list[Answer]:
        sent.extend(batch)
        await go_on.wait()
        return [Answer(wish, "p") for wish in batch]

    first, second = Wish("sale", "a"), Wish("sale", "b")
    async with Gatherer(buy_many, Policy(batch_max=1, batches_at_once=1, buy_timeout_s=0.05)) as gatherer:
        answers = await asyncio.gather(gatherer.buy(first), gatherer.buy(second), return_exceptions=True)
        go_on.set()
    assert [type(answer) for answer in answers] == [reasons.DeadlineExceeded] * 2
    assert [getattr(answer, "request_id", "") for answer in answers] == [first.request_id, second.request_id]
    assert sent == [first]


UNREADABLE = AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")


@pytest.mark.parametrize("garbage", [b"\xff\xff", status_pb2.Status(code=14, details=[UNREADABLE]).SerializeToString()])
def test_details_that_are_not_ours_leave_the_code_to_tell_why(garbage: bytes) -> None:
    failure = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(("grpc-status-details-bin", garbage)),
        "away",
    )
    assert type(error_of_call(failure)) is reasons.Unavailable
    assert from_rpc_error(failure).reason == ErrorReason.ERROR_REASON_UNAVAILABLE


def state(value: "pb.PurchaseState.ValueType") -> pb.Purchase:
    return pb.Purchase(state=value)


def test_a_stream_taken_up_again_tells_no_state_twice_and_ends_with_the_final_one() -> None:
    following = Following()
    assert following.is_news(state(pb.PURCHASE_STATE_RESERVED))
    assert not following.ended
    pause_s = following.pause_s(reasons.Unavailable(), left_s=10.0)
    assert pause_s is not None
    assert 0 < pause_s <= 2
    assert not following.is_news(state(pb.PURCHASE_STATE_RESERVED))
    assert following.is_news(state(pb.PURCHASE_STATE_CONFIRMED))
    assert following.ended


def test_a_stream_is_not_taken_up_again_for_what_is_final_or_when_time_is_up() -> None:
    assert Following().pause_s(reasons.PurchaseNotFound(), left_s=10.0) is None
    assert Following().pause_s(reasons.Unavailable(), left_s=0.01) is None
    told = Following().pause_s(reasons.Overloaded(retry_after_s=1.5), left_s=10.0)
    assert told is not None
    assert told >= 1.5
    assert Following().pause_s(reasons.Overloaded(), left_s=10.0) is None


def test_streams_that_only_repeat_what_is_known_are_begun_anew_more_and_more_seldom() -> None:
    following = Following()
    pauses = []
    for _ in range(200):
        following.is_news(state(pb.PURCHASE_STATE_RESERVED))
        pause_s = following.pause_s(reasons.Unavailable(), left_s=10.0)
        assert pause_s is not None
        pauses.append(pause_s)
    assert max(pauses[:2]) <= 0.2
    # Up to two seconds each, at random.
    assert sum(pauses) > 100
