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

Known = Mapping[str, Sequence[str]]


def _text(field: FieldDescriptor, known: Known) -> st.SearchStrategy[str]:
    name = field.name.removesuffix("s")
    kinds: list[st.SearchStrategy[str]] = [
        st.sampled_from(_ODD_TEXTS),
        st.text(max_size=40),
        st.uuids().map(str),
    ]
    fitting = [value for key, values in known.items() if name.endswith(key) for value in values]
    if fitting:
        # Twice, for only what exists is looked at closely.
        kinds += [st.sampled_from(fitting)] * 6
    return st.one_of(kinds)


def _integer(bits: int) -> st.SearchStrategy[int]:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    edges = [each for each in (*_EDGES, low, low + 1, high, high - 1) if low <= each <= high]
    return st.one_of(st.sampled_from(edges), st.integers(1, 10), st.integers(low, high))


def _value(field: FieldDescriptor, known: Known, depth: int) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
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
        for field in descriptor.fields:
            # Most fields are there, for a request with a hole is refused at once.
            if depth > _DEPTH_MAX or draw(st.integers(0, 9)) == 0:
                continue
            value = _value(field, known, depth)
            if field.is_repeated:
                items = draw(st.lists(value, max_size=4))
                times = draw(st.sampled_from([1, 1, 1, 1, 1, 1, 1, 2, 300, 2_600]))
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
