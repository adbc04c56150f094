"""Page tokens: they come back as they were given out, and nothing else is taken for one."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import page_token
from mesh.errors import DomainError

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@given(st.lists(NAMES, max_size=3), st.lists(NAMES, min_size=1, max_size=2))
def test_a_token_comes_back_as_it_was_given_out(listing: list[str], last: list[str]) -> None:
    assert page_token.decode(page_token.encode(listing, last), listing, len(last)) == last


@given(st.text(min_size=1, max_size=60))
def test_what_was_never_given_out_is_refused(token: str) -> None:
    with pytest.raises(DomainError, match="page_token"):
        page_token.decode(token, ["accounts"], 1)


def test_a_token_is_good_for_its_own_list_and_filters_only() -> None:
    token = page_token.encode(["holds", "sale", "HELD"], ["x"])
    for listing in (["holds", "sale", ""], ["entries", "sale"], []):
        with pytest.raises(DomainError):
            page_token.decode(token, listing, 1)


@pytest.mark.parametrize("nested", [1_000, 3_000, 1_000_000])
def test_a_token_made_to_exhaust_the_parser_is_refused(nested: int) -> None:
    with pytest.raises(DomainError):
        page_token.decode(base64.urlsafe_b64encode(b"[" * nested).decode(), ["l"], 1)


@pytest.mark.parametrize("last", [[], ["a", "b"], ["\0"]])
def test_a_key_of_another_shape_is_refused(last: list[str]) -> None:
    with pytest.raises(DomainError):
        page_token.decode(page_token.encode(["l"], last), ["l"], 1)


@pytest.mark.parametrize(("asked", "given_size"), [(0, 1_000), (1, 1), (10_000, 10_000), (10_001, 10_000)])
def test_a_page_is_never_larger_than_its_bound(asked: int, given_size: int) -> None:
    assert page_token.page_size(asked) == given_size


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(DomainError, match="page_size"):
        page_token.page_size(-1)
