"""Names that services must compute alike, pinned so that a change of them is noticed."""

from mesh.identity import fingerprint, partition_of, purchase_id

SALE = "7f0c6d0e-8a3f-4d57-9d7e-1d2f3a4b5c6d"


def test_the_same_request_has_the_same_id_on_every_machine_and_version() -> None:
    assert str(purchase_id("alice", SALE, "r-1")) == "0493115e-d9c5-57c6-8c08-c04961ac5242"
    assert fingerprint("r-1") == 0x7D99A80E76BBAD0E
    assert partition_of("alice", 16) == 9


def test_parts_cannot_run_into_each_other() -> None:
    assert purchase_id("ab", SALE, "c") != purchase_id("a", SALE, "bc")
    assert purchase_id("a", SALE, "b").version == 5


def test_users_spread_over_the_partitions() -> None:
    counts = [0] * 16
    for number in range(16_000):
        counts[partition_of(f"user-{number}", 16)] += 1
    assert min(counts) > 800
