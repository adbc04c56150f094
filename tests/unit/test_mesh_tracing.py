"""Traces: which purchases are recorded, what is under what, and that off means off."""

import socket
import subprocess
import sys
import time
import timeit
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import pamqp.decode
import pamqp.encode
import pytest

from mesh import tracing
from mesh.identity import purchase_id
from mesh.settings import SettingsError, read_settings
from mesh.trace_export import TraceSettings, exporting
from tests.support.collector import Collector

SALE = "3a6f4c1e-0d1b-4a55-8c7e-5f1f2f1d9b3a"


@dataclass
class Noted:
    """A span that was begun."""

    span_id: int
    name: str
    trace_id: int
    parent: int | None
    attributes: dict[str, tracing.Value] = field(default_factory=dict)
    ended: bool = False
    error: str | None = None

    def set(self, name: str, value: tracing.Value) -> None:
        self.attributes[name] = value

    def end(self, error: str | None) -> None:
        assert not self.ended
        self.ended, self.error = True, error


class Recorder:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.spans: list[Noted] = []

    def begin(
        self,
        name: str,
        kind: tracing.Kind,
        trace_id: int,
        parent: int | None,
        age_s: float,
        attributes: tracing.Attributes,
    ) -> Noted:
        self.spans.append(Noted(len(self.spans) + 1, name, trace_id, parent, dict(attributes)))
        return self.spans[-1]


@pytest.fixture(autouse=True)
def off_again() -> Iterator[None]:
    yield
    tracing.turn_off()


def ids(count: int) -> list[uuid.UUID]:
    return [purchase_id(f"user {number}", SALE, "1") for number in range(count)]


def recording(ratio: float = 1.0) -> Recorder:
    recorder = Recorder()
    tracing.turn_on(recorder, ratio)
    return recorder


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.5, 0.9])
def test_the_part_that_is_asked_for_is_recorded_of_the_purchases_of_one_sale(ratio: float) -> None:
    recorder = recording(ratio)
    with tracing.spans("work", ids(20_000)):
        pass
    expected = 20_000 * ratio
    # Five standard deviations.
    assert abs(len(recorder.spans) - expected) < 5 * (expected * (1 - ratio)) ** 0.5


def test_every_process_decides_alike_and_a_larger_part_holds_the_smaller() -> None:
    found: list[set[int]] = []
    for ratio in (0.1, 0.1, 0.3):
        recorder = recording(ratio)
        # One is told the ids as such, another as text.
        with tracing.spans("work", ids(1000) if len(found) == 1 else map(str, ids(1000))):
            pass
        found.append({span.trace_id for span in recorder.spans})
    assert found[0] == found[1]
    assert found[0] < found[2]


def test_spans_nest_by_purchase_whatever_batch_they_are_in() -> None:
    recorder = recording()
    [one, two] = ids(2)
    with (
        tracing.spans("first caller", [one]),
        tracing.spans("second caller", [two]),
        tracing.spans("batch of both", [one, two]),
    ):
        pass
    by_id = {span.span_id: span for span in recorder.spans}
    parents = {(span.name, span.trace_id): by_id[span.parent].name for span in recorder.spans if span.parent}
    assert parents == {
        ("batch of both", one.int): "first caller",
        ("batch of both", two.int): "second caller",
    }
    assert all(span.ended and span.error is None for span in recorder.spans)


def test_a_span_that_has_ended_is_nobodys_parent() -> None:
    recorder = recording()
    [key] = ids(1)
    with tracing.spans("outer", [key]):
        with tracing.spans("first", [key]):
            pass
        with tracing.spans("second", [key]):
            pass
    outer, first, second = recorder.spans
    assert (first.parent, second.parent) == (outer.span_id, outer.span_id)


def test_the_parent_travels_with_a_call_and_with_a_message() -> None:
    recorder = recording()
    [key] = ids(1)
    with tracing.calling("Service/Method", [key]) as calling:
        metadata = tracing.metadata_of(calling)
    with tracing.publishing("exchange", [key]) as publishing:
        sent = tracing.headers_of(publishing)
        assert sent is not None
        # As it goes over the wire to RabbitMQ and back.
        _, headers = pamqp.decode.field_table(pamqp.encode.field_table(sent))
    for told, parent in ((metadata, recorder.spans[0]), (headers, recorder.spans[1])):
        parents = tracing.parents_in(told)
        assert parents == {key.int: parent.span_id}
        with tracing.under(parents), tracing.spans("callee", [key]):
            pass
        assert recorder.spans[-1].parent == parent.span_id
    with tracing.spans("later", [key]):
        pass
    assert recorder.spans[-1].parent is None


def test_what_is_told_of_parents_is_bounded() -> None:
    recording()
    many = ids(1000)
    with tracing.calling("Service/Method", many) as calling:
        told = tracing.metadata_of(calling)
    assert told is not None
    # Base64, as HTTP/2 carries it: well below the 16 KB of metadata that a server takes.
    assert sum(len(value) * 4 / 3 for _, value in told) < 5_000
    assert len(tracing.parents_in(told)) == 128


@pytest.mark.parametrize(
    "octets",
    [b"", b"x", b"\0" * 23, b"\0" * 24, bytes(24 * 129), "text", 7, None],
    ids=["none", "one", "short", "no span", "too many", "text", "number", "null"],
)
def test_a_parent_that_nobody_of_ours_has_told_is_no_error(octets: object) -> None:
    recording()
    assert tracing.parents_in({tracing.HEADER: octets}) == {}
    assert tracing.parents_in([(tracing.HEADER, octets)]) == {}


def test_a_caller_cannot_have_purchases_recorded_that_are_not_to_be() -> None:
    recording()
    many = ids(50)
    with tracing.calling("Service/Method", many) as calling:
        told = tracing.metadata_of(calling)
    recording(0.1)
    with tracing.spans("work", many) as group:
        allowed = set() if group is None else set(tracing.open_spans(many))
    assert 0 < len(allowed) < 50
    assert set(tracing.parents_in(told)) == allowed


def test_an_error_ends_the_spans_and_tells_its_kind_and_not_its_text() -> None:
    recorder = recording()
    with pytest.raises(ValueError, match="secret"), tracing.spans("work", ids(2)):
        raise ValueError("secret")
    assert [(span.ended, span.error) for span in recorder.spans] == [(True, "ValueError")] * 2
    assert tracing.open_spans(ids(2)) == {}


def test_off_it_does_not_even_look_at_the_purchases() -> None:
    def looked_at() -> Iterator[uuid.UUID]:
        raise AssertionError("looked at")
        yield

    with (
        tracing.spans("a", looked_at()) as one,
        tracing.calling("b", looked_at()) as two,
        tracing.sql("c", looked_at()) as three,
        tracing.publishing("d", looked_at()) as four,
        tracing.consuming("e", looked_at()) as five,
        tracing.requests("f", ((each, 0.0) for each in looked_at())) as six,
        tracing.under(tracing.open_spans(looked_at())),
    ):
        assert {one, two, three, four, five, six} == {None}
    assert tracing.metadata_of(one) is None
    assert tracing.headers_of(four) is None


def test_off_it_costs_a_batch_less_than_a_hundredth_of_a_purchase() -> None:
    batch = ids(250)
    work_s = min(
        timeit.repeat(lambda: tracing.spans("work", (each for each in batch)).__enter__(), number=1000, repeat=7)
    )
    # A purchase costs about 100 us of one processor, and a batch meets about ten of these.
    assert work_s / 1000 < 10e-6


def test_off_nothing_is_loaded_for_it() -> None:
    # redis-py loads the library's measurements by itself wherever it is installed: 2 MB, in the Inventory Service only.
    program = (
        "import sys, asyncio, gateway.process, purchase_svc.process, purchase_svc.settlement_process\n"
        "import balance_svc.process\n"
        "from mesh.trace_export import exporting\n"
        "async def main():\n"
        "    async with exporting('test'): pass\n"
        "asyncio.run(main())\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)\n"
        "import inventory_svc.process\n"
        "assert not {'mesh.span_recorder', 'opentelemetry.sdk.trace', 'opentelemetry.exporter'} & sys.modules.keys()\n"
    )
    assert subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": ".:gen"}, timeout=60).returncode == 0


async def test_spans_come_to_the_collector_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        monkeypatch.setenv("MESH_TRACE_RATIO", "1")
        monkeypatch.setenv("MESH_TRACE_OTLP_ENDPOINT", collector.endpoint)
        [key] = ids(1)

        def fail() -> None:
            with tracing.sql("query", [key]) as group:
                assert group is not None
                group.set(key, "flashsale.state", "CONFIRMED")
                raise ValueError("secret")

        async with exporting("a service"):
            with tracing.requests("request", [(key, 0.5)]), pytest.raises(ValueError, match="secret"):
                fail()
        request, query = collector.traces()[key.hex]
    assert (request.service, request.name, request.parent_id) == ("a service", "request", "")
    assert request.end_ns - request.start_ns >= 0.5e9
    assert (query.parent_id, query.failed, request.failed) == (request.span_id, True, False)
    assert query.attributes == {
        "db.system.name": "postgresql",
        "db.query.summary": "query",
        "error.type": "ValueError",
        "flashsale.purchase_id": str(key),
        "flashsale.state": "CONFIRMED",
    }


def test_a_collector_that_does_not_answer_keeps_no_process_from_ending() -> None:
    program = (
        "import asyncio, uuid\n"
        "from mesh import tracing\n"
        "from mesh.trace_export import exporting\n"
        "async def main():\n"
        "    async with exporting('test'):\n"
        "        for number in range(5000):\n"
        "            with tracing.spans('work', [uuid.uuid4()]): pass\n"
        "asyncio.run(main())\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        env = {"PYTHONPATH": ".:gen", "MESH_TRACE_RATIO": "1", "MESH_TRACE_OTLP_ENDPOINT": endpoint}
        began = time.monotonic()
        assert subprocess.run([sys.executable, "-c", program], env=env, timeout=60).returncode == 0
    assert time.monotonic() - began < 8


def test_a_wrong_setting_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="MESH_TRACE_RATIO"):
        read_settings(TraceSettings, "MESH_TRACE_", {"MESH_TRACE_RATIO": "1.5"})
    for wrong in ("collector:4318", "http://", "https://:4318", "http://collector:x", "http://[::1", "https://me:pw@c"):
        with pytest.raises(SettingsError, match="MESH_TRACE_OTLP_ENDPOINT") as told:
            read_settings(TraceSettings, "MESH_TRACE_", {"MESH_TRACE_OTLP_ENDPOINT": wrong})
        assert "pw" not in str(told.value)
