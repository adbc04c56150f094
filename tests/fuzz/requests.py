"""Requests made from a message's descriptor: mostly of the right shape, with values at the edges and beyond them."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_F = FieldDescriptor
_INTEGERS = {_F.CPPTYPE_INT32: 32, _F.CPPTYPE_INT64: 64}
_EDGES = (0, 1, -1, 2, 10, 100, 1_000, 1_001, 10_000, 10_001, 10_000_000, 10_000_001, 10**9, 10**12, 10**12 + 1)
#: Texts that have broken programs.
_ODD_TEXTS = (
    *(
        "",
        " ",
        "\0",
        "a\0b",
        "\u202e",
        "\ud7ff",
        "\ufffe",
        "é" * 128,
        "x" * 128,
        "x" * 129,
        "x" * 5_000,
        "'; DROP TABLE x",
    ),
    *(
        "%s%n",
        "{}",
        "../../etc/passwd",
        "00000000-0000-0000-0000-000000000000",
        "null",
        "-1",
        "1e400",
        "\U0001f600" * 128,
    ),
)
_DEPTH_MAX = 4
#: In 2033, 1970, 9999, and beyond, s.
_TIMES = (2_000_000_000, 0, 253_402_300_799, 253_402_300_800)

Known = Mapping[str, Sequence[str]]


def _fitting(field: FieldDescriptor, known: Known) -> list[str]:
    name = field.name.removesuffix("s")
    return [value for key, values in known.items() if name.endswith(key) for value in values]


def _text(field: FieldDescriptor, known: Known) -> st.SearchStrategy[str]:
    kinds: list[st.SearchStrategy[str]] = [
        st.sampled_from(_ODD_TEXTS),
        st.text(max_size=40),
        st.uuids().map(str),
    ]
    fitting = _fitting(field, known)
    return st.one_of([*kinds, st.sampled_from(fitting)] if fitting else kinds)


def _sensible(field: FieldDescriptor, known: Known) -> st.SearchStrategy[Any]:
    """Values that a service looks at closely, for what is wrong at sight is refused before that."""
    if field.type == _F.TYPE_BYTES:
        # An id.
        return st.binary(min_size=16, max_size=16)
    if field.type == _F.TYPE_STRING:
        return st.sampled_from(_fitting(field, known) or ["a"])
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    if field.full_name == "google.protobuf.Timestamp.seconds":
        return st.sampled_from(_TIMES)
    if field.name == "total":
        return st.sampled_from([1_000, 1_001, 5_000])
    return st.integers(1, 10)


def _integer(bits: int) -> st.SearchStrategy[int]:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    edges = [each for each in (*_EDGES, low, low + 1, high, high - 1) if low <= each <= high]
    return st.one_of(st.sampled_from(edges), st.integers(1, 10), st.integers(low, high))


def _value(field: FieldDescriptor, known: Known, depth: int, *, odd: bool) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
    if not odd and kind != _F.CPPTYPE_MESSAGE and kind != _F.CPPTYPE_BOOL:
        return _sensible(field, known)
    if kind == _F.CPPTYPE_STRING:
        return st.binary(max_size=40) if field.type == _F.TYPE_BYTES else _text(field, known)
    if kind in _INTEGERS:
        return _integer(_INTEGERS[kind])
    if kind == _F.CPPTYPE_UINT32 or kind == _F.CPPTYPE_UINT64:
        return st.integers(0, 2**32 - 1)
    if kind == _F.CPPTYPE_BOOL:
        return st.booleans()
    if kind == _F.CPPTYPE_ENUM:
        numbers = [value.number for value in cast(EnumDescriptor, field.enum_type).values]
        return st.one_of(st.sampled_from(numbers), st.sampled_from([-1, 99, 2**31 - 1, -(2**31)]))
    if kind == _F.CPPTYPE_MESSAGE:
        return messages(cast(Descriptor, field.message_type), known, depth + 1)
    return st.floats()


def messages(descriptor: Descriptor, known: Known, depth: int = 0) -> st.SearchStrategy[Any]:
    """Messages of a kind. ``known`` has values worth trying by the end of a field's name, such as "sale_id"."""
    message_class = GetMessageClass(descriptor)

    @st.composite
    def build(draw: st.DrawFn) -> Any:
        message = message_class()
        # Of ten fields; those that are not odd are there, and such as a service looks at closely.
        oddities = draw(st.sampled_from([0, 1, 1, 5, 10]))
        for field in descriptor.fields:
            odd = draw(st.integers(0, 9)) < oddities
            if depth > _DEPTH_MAX or (odd and draw(st.integers(0, 3)) == 0):
                continue
            value = _value(field, known, depth, odd=odd)
            if field.is_repeated:
                items = draw(st.lists(value, min_size=0 if odd else 1, max_size=4))
                times = draw(st.sampled_from([1, 2, 300, 2_600])) if odd else 1
                getattr(message, field.name).extend(items * times)
            elif field.cpp_type == _F.CPPTYPE_MESSAGE:
                getattr(message, field.name).CopyFrom(draw(value))
            else:
                setattr(message, field.name, draw(value))
        return message

    return build()


@st.composite
def broken(draw: st.DrawFn, octets: bytes) -> bytes:
    """Octets that were right, cut, doubled or changed at some places."""
    changed = bytearray(octets)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(changed)))
        match draw(st.sampled_from(["flip", "insert", "cut", "drop"])):
            case "flip" if place < len(changed):
                changed[place] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                changed[place:place] = draw(st.binary(min_size=1, max_size=12))
            case "cut":
                del changed[place:]
            case _:
                del changed[place : place + draw(st.integers(1, 8))]
    return bytes(changed)
