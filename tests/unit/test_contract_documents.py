"""The contract's documents are complete, and what would break its users is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from protos import compare, document, show_examples

PURCHASE = "flashsale/purchase/v1/purchase_service.proto"


def changed(folder: Path, change: Callable[[str], str]) -> Path:
    """A copy of the contract, with one file changed."""
    shutil.copytree(compare.PROTOS, folder / "protos", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    path = folder / "protos" / PURCHASE
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    return folder / "protos"


def test_the_contract_breaks_nothing_of_what_was_released() -> None:
    assert compare.breaking(compare.PROTOS, compare.RELEASED) == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("  int32 quantity = 4;\n", "", "quantity"),
        ("  int32 quantity = 4;\n", "  int64 quantity = 4;\n", "int64"),
        ("  PURCHASE_STATE_PARKED = 6;", "  PURCHASE_STATE_STUCK = 6;", "PURCHASE_STATE_PARKED"),
        ("rpc CancelPurchase(", "rpc AbortPurchase(", "CancelPurchase"),
    ],
)
def test_a_change_that_breaks_users_is_told(tmp_path: Path, before: str, after: str, said: str) -> None:
    found = compare.breaking(changed(tmp_path, lambda text: text.replace(before, after, 1)), compare.RELEASED)
    assert found
    assert said in found[0]


def test_an_addition_breaks_nobody(tmp_path: Path) -> None:
    field = "  bool waitlist = 5;\n"
    protos = changed(tmp_path, lambda text: text.replace(field, f"{field}  // New.\n  string note = 6;\n", 1))
    assert compare.breaking(protos, compare.RELEASED) == []


def test_what_cannot_be_compared_is_no_approval(tmp_path: Path) -> None:
    assert compare.breaking(changed(tmp_path, lambda text: text + "\nnonsense"), compare.RELEASED)
    with pytest.raises(RuntimeError, match="buf breaking"):
        compare.breaking(compare.PROTOS, tmp_path / "released.binpb")


def test_the_documents_are_current() -> None:
    assert document.write(document.describe(document.PROTOS)) == document.DOCUMENT.read_text()
    assert show_examples.write(show_examples.EXAMPLES) == show_examples.DOCUMENT.read_text()


def test_every_element_of_the_contract_is_in_the_document_with_its_comment() -> None:
    text = document.DOCUMENT.read_text()
    files = document.describe(document.PROTOS)
    assert {file.package for file in files} >= {"flashsale.balance.v1", "flashsale.common.v1"}
    for file in files:
        for service in file.service:
            for method in service.method:
                assert f"### {method.name}\n" in text
        for message in file.message_type:
            for field in message.field:
                assert f"| `{field.name}` | " in text
        for enum in file.enum_type:
            for value in enum.value:
                assert f"| `{value.name}` | {value.number} | " in text
    # No cell is without its words: buf's lint asks for a comment on everything.
    assert "|  |\n" not in text
    assert "`. \n" not in text
    # What is said of a message as a whole, be it a request, an answer or a part of one.
    for said in ("Requests that were refused at once", "The entries of a transfer sum to zero."):
        assert said in text
    assert "flashsale.settlement" not in text


def test_links_within_the_document_lead_somewhere() -> None:
    text = document.DOCUMENT.read_text()
    lines = text.splitlines()
    headings = {line.removeprefix("### ").strip().lower() for line in lines if line.startswith("### ")}
    assert len(headings) == sum(line.startswith("### ") for line in lines)
    linked = {part.partition(")")[0] for part in text.split("](#")[1:]}
    assert linked - headings == set()
