"""When the gateway may say "sold out" by itself."""

from flashsale.inventory.v1.inventory_service_pb2 import Stock, WatchStockResponse
from hypothesis import given
from hypothesis import strategies as st

from gateway.sold_out import SaleStock
from mesh.identity import fingerprint


def message(
    available: int | None,
    *,
    added: list[str] | None = None,
    removed: list[str] | None = None,
    reset: bool = False,
    is_open: bool = True,
    waiting: int = 0,
) -> WatchStockResponse:
    made = WatchStockResponse(
        fingerprints_reset=reset,
        fingerprints_added=[fingerprint(key) for key in added or []],
        fingerprints_removed=[fingerprint(key) for key in removed or []],
    )
    if available is not None:
        stock = Stock(sale_id="s", available=available, reserved=3, total=available + 3, open=is_open, waiting=waiting)
        made.stock.CopyFrom(stock)
    return made


def known(*messages: WatchStockResponse, now: float = 10.0, fingerprints_max: int = 100) -> SaleStock:
    stock = SaleStock("s", fingerprints_max, sent_s=5.0, sole=True)
    for each in messages:
        stock.apply(each, now)
    return stock


def test_nothing_is_sold_out_before_a_reading() -> None:
    assert not known().is_sold_out_for(fingerprint("key"), 10.0)


def test_sold_out_needs_a_fresh_open_reading_of_zero() -> None:
    assert known(message(0, reset=True)).is_sold_out_for(fingerprint("key"), 10.5)
    assert not known(message(0, reset=True)).is_sold_out_for(fingerprint("key"), 11.0), "it lapses after a second"
    assert not known(message(1, reset=True)).is_sold_out_for(fingerprint("key"), 10.1)
    assert not known(message(0, reset=True, is_open=False)).is_sold_out_for(fingerprint("key"), 10.1)
    assert not known(message(0, reset=True), message(None)).is_sold_out_for(fingerprint("key"), 10.1), (
        "the gate is unavailable"
    )
    assert not known(message(0, reset=True), message(1)).is_sold_out_for(fingerprint("key"), 10.1), "stock is back"


def test_while_anybody_waits_in_line_what_is_available_is_not_for_newcomers() -> None:
    stock = known(message(2, reset=True, waiting=1, added=["waiter"]))
    assert stock.is_sold_out_for(fingerprint("key"), 10.1)
    assert not stock.is_sold_out_for(fingerprint("waiter"), 10.1), "who waits is told its place"
    assert not known(message(2, reset=True, waiting=1, is_open=False)).is_sold_out_for(fingerprint("key"), 10.1)
    stock.apply(message(2, waiting=0), 10.2)
    assert not stock.is_sold_out_for(fingerprint("key"), 10.3), "the line is empty and units are left"


def test_whoever_holds_a_unit_goes_on_until_it_holds_none() -> None:
    stock = known(message(0, reset=True, added=["winner"]))
    assert not stock.is_sold_out_for(fingerprint("winner"), 10.1)
    assert stock.is_sold_out_for(fingerprint("loser"), 10.1)
    stock.apply(message(0, removed=["winner"], added=["next"]), 10.2)
    assert stock.is_sold_out_for(fingerprint("winner"), 10.3)
    assert not stock.is_sold_out_for(fingerprint("next"), 10.3)
    stock.apply(message(0, reset=True, added=["third"]), 10.4)
    assert stock.is_sold_out_for(fingerprint("next"), 10.5)


def test_without_the_whole_set_of_winners_nobody_is_refused() -> None:
    assert not known(message(0)).is_sold_out_for(fingerprint("key"), 10.1), "the set has not begun with a reset"
    stock = known(message(0, reset=True, added=["a", "b", "c"]), fingerprints_max=2)
    assert not stock.is_sold_out_for(fingerprint("key"), 10.1), "more winners than can be kept"
    stock.apply(message(0, removed=["a", "b"]), 10.2)
    assert not stock.is_sold_out_for(fingerprint("key"), 10.3), "what was dropped is not known again by removals"
    stock.apply(message(0, reset=True, added=["c"]), 10.4)
    assert stock.is_sold_out_for(fingerprint("key"), 10.5)


def test_a_stream_that_ended_leaves_nothing_behind() -> None:
    stock = known(message(0, reset=True))
    stock.lapse()
    assert not stock.is_sold_out_for(fingerprint("key"), 10.1)
    stock.apply(message(0), 10.2)
    assert not stock.is_sold_out_for(fingerprint("key"), 10.3)


def test_a_request_sent_on_is_remembered_as_long_as_its_call_can_live_and_at_most_twice_that() -> None:
    stock = known(message(0, reset=True))
    stock.note_sent(fingerprint("key"), 10.0)
    stock.apply(message(0), 14.9)
    assert not stock.is_sold_out_for(fingerprint("key"), 14.95)
    stock.note_sent(fingerprint("other"), 15.1)
    stock.apply(message(0), 20.2)
    assert stock.is_sold_out_for(fingerprint("key"), 20.3)
    assert not stock.is_sold_out_for(fingerprint("other"), 20.3)
    assert (len(stock._sent), len(stock._sent_before)) == (0, 1)


def test_a_request_the_services_refused_is_refused_at_the_door_next_time() -> None:
    stock, mark = known(message(0, reset=True)), fingerprint("key")
    stock.note_sent(mark, 10.0)
    stock.note_refused(mark)
    assert stock.is_sold_out_for(fingerprint("key"), 10.1)
    stock.note_sent(mark, 10.0)
    stock.note_sent(mark, 10.0)
    stock.note_refused(mark)
    assert not stock.is_sold_out_for(fingerprint("key"), 10.1), "its other copy is still on its way"
    stock.note_refused(mark)
    stock.note_refused(mark)
    assert stock.is_sold_out_for(fingerprint("key"), 10.1)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=30), st.integers(0, 1))
def test_no_holder_is_ever_refused_whatever_comes_and_goes(steps: list[tuple[str, bool]], available: int) -> None:
    holders: set[str] = set()
    stock = known(message(available, reset=True))
    for key, takes in steps:
        change = [key] if takes != (key in holders) else []
        (holders.add if takes else holders.discard)(key)
        stock.apply(message(available, added=change if takes else [], removed=[] if takes else change), 10.0)
        for each in "abcdef":
            assert stock.is_sold_out_for(fingerprint(each), 10.5) == (available == 0 and each not in holders)
