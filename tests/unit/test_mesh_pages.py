"""Where a page of a list ends, and where the next one begins."""

from google.protobuf.wrappers_pb2 import StringValue

from mesh.pages import PAGE_BYTES_MAX, Listed
from mesh.peer_limits import ANSWER_BYTES_MAX


def written(row: str) -> StringValue:
    return StringValue(value=row)


def page_of(rows: list[str], size: int) -> tuple[list[str], str]:
    """The rows of the first page of ``rows`` as they are read for it, and its token."""
    messages, token = Listed(rows[: size + 1], size, lambda last: f"after {last[:3]}").page(written)
    return [message.value for message in messages], token


def test_a_page_ends_at_its_number_of_rows_and_has_a_token_if_there_are_more() -> None:
    assert page_of([], 2) == ([], "")
    assert page_of(["a"], 2) == (["a"], "")
    assert page_of(["a", "b"], 2) == (["a", "b"], "")
    assert page_of(["a", "b", "c"], 2) == (["a", "b"], "after b")


def test_a_page_ends_at_its_bytes_and_the_next_begins_where_it_ended() -> None:
    third = PAGE_BYTES_MAX // 3
    rows = [f"{number:03}" + "x" * (third - 10) for number in range(7)]
    assert page_of(rows, 100) == (rows[:3], "after 002")
    assert page_of(rows[3:], 100) == (rows[3:6], "after 005")
    assert page_of(rows[6:], 100) == (rows[6:], "")
    # Nothing was read beyond the page, and yet there is more than fits into it.
    assert page_of(rows[:4], 4) == (rows[:3], "after 002")
    assert page_of(rows, 2) == (rows[:2], "after 001")


def test_a_page_and_a_row_as_large_as_that_fit_into_an_answer() -> None:
    assert PAGE_BYTES_MAX * 2 <= ANSWER_BYTES_MAX


def test_a_row_that_is_too_large_for_a_page_is_one_by_itself() -> None:
    rows = [f"{number:03}" + "x" * PAGE_BYTES_MAX for number in range(2)]
    assert page_of(rows, 10) == (rows[:1], "after 000")
    assert page_of(rows[1:], 10) == (rows[1:], "")
