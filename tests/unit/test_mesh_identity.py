"""Names that services must compute alike, pinned so that a change of them is noticed."""

import uuid

from mesh.identity import fingerprint, partition_of, purchase_id

SALE = "7f0c6d0e-8a3f-4d57-9d7e-1d2f3a4b5c6d"


def test_the_same_request_has_the_same_id_on_every_machine_and_version() -> None:
    assert str(purchase_id("alice", SALE, "r-1")) == "7f0c6d0e-d461-88f0-9de8-1a339cb0a230"
    assert fingerprint("r-1") == 0x7D99A80E76BBAD0E
    assert partition_of("alice", 16) == 9


def test_parts_cannot_run_into_each_other() -> None:
    assert purchase_id("ab", SALE, "c") != purchase_id("a", SALE, "bc")
    assert purchase_id("a", SALE, "bc") != purchase_id("a", SALE, "b")


def test_a_purchase_s_id_is_a_uuid_that_begins_as_its_sale_s() -> None:
    made = [purchase_id(f"user-{number}", SALE, "r") for number in range(200)]
    assert {(each.version, each.variant) for each in made} == {(8, uuid.RFC_4122)}
    assert {str(each)[:8] for each in made} == {SALE[:8]}
    assert len({each.int & (1 << 62) - 1 for each in made}) == 200


def test_users_spread_over_the_partitions() -> None:
    counts = [0] * 16
    for number in range(16_000):
        counts[partition_of(f"user-{number}", 16)] += 1
    assert min(counts) > 800
