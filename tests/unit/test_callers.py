"""Who may call what, as each service has it written down."""

import pytest
from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from balance_svc.callers import ALLOWED as BALANCE
from inventory_svc.callers import ALLOWED as INVENTORY
from mesh.callers import AllowList
from purchase_svc.callers import ALLOWED as PURCHASE
from stack.certificates import IDENTITIES
from stack.peers import identity_for

TABLES = [
    (BALANCE, balance.DESCRIPTOR.services_by_name["BalanceService"]),
    (INVENTORY, inventory.DESCRIPTOR.services_by_name["InventoryService"]),
    (PURCHASE, purchase.DESCRIPTOR.services_by_name["PurchaseService"]),
]
ALL = {method: kinds for table, _ in TABLES for method, kinds in table.items()}
KINDS = {identity.partition("/")[0] for identity in IDENTITIES}
#: What moves money or makes shares somebody's.
MOVES = ("BatchPlaceHolds", "BatchCaptureHolds", "BatchReleaseHolds", "BatchConfirmReservations", "ReverseCapture",
         "BatchReverseCaptures")  # fmt: skip


@pytest.mark.parametrize(("table", "service"), TABLES, ids=lambda each: getattr(each, "name", ""))
def test_every_method_of_the_contract_has_a_list_and_no_other(table: AllowList, service: object) -> None:
    methods = service.methods_by_name  # type: ignore[attr-defined]
    full_name = service.full_name  # type: ignore[attr-defined]
    assert set(table) == {f"{full_name}/{method}" for method in methods}
    assert all(table.values())


def test_only_kinds_that_there_are_may_do_anything() -> None:
    assert {kind for kinds in ALL.values() for kind in kinds} <= KINDS


def test_only_the_purchase_services_worker_holds_captures_and_confirms() -> None:
    for name in MOVES:
        allowed = [kinds for method, kinds in ALL.items() if method.endswith(f"/{name}")]
        assert allowed == [frozenset({"settlement"})], name


def test_only_the_treasury_brings_money_in_or_takes_it_out() -> None:
    for name in ("Deposit", "BatchDeposit", "Withdraw", "CreateAccount", "BatchCreateAccounts"):
        assert ALL[f"flashsale.balance.v1.BalanceService/{name}"] == frozenset({"treasury"}), name


def test_the_gateway_only_reads_balances() -> None:
    may = {method.partition("/")[2] for method, kinds in BALANCE.items() if "gateway" in kinds}
    assert may == {"BatchGetBalances", "CheckBooks"}


def test_services_that_call_nobody_may_call_nothing() -> None:
    assert not {"inventory", "balance"} & {kind for kinds in ALL.values() for kind in kinds}


@pytest.mark.parametrize("method", ALL)
def test_people_on_this_machine_call_each_method_as_somebody_who_may(method: str) -> None:
    assert identity_for(method).partition("/")[0] in ALL[method]
