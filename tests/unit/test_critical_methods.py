"""What is shed last is named as the contracts name it: a misspelt name would be shed with the rest."""

import pytest
from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from balance_svc.process import CRITICAL as BALANCE
from inventory_svc.process import CRITICAL as INVENTORY
from purchase_svc.process import CRITICAL as PURCHASE


@pytest.mark.parametrize(
    ("critical", "file", "service"),
    [
        (BALANCE, balance, "BalanceService"),
        (INVENTORY, inventory, "InventoryService"),
        (PURCHASE, purchase, "PurchaseService"),
    ],
)
def test_every_critical_method_is_one_of_its_service(critical: frozenset[str], file: object, service: str) -> None:
    methods = file.DESCRIPTOR.services_by_name[service].methods_by_name  # type: ignore[attr-defined]
    assert critical
    assert critical <= set(methods)
