"""The services' full names, as gRPC and the health check know them."""

PURCHASE = "flashsale.purchase.v1.PurchaseService"
INVENTORY = "flashsale.inventory.v1.InventoryService"
BALANCE = "flashsale.balance.v1.BalanceService"


def missing(service: str) -> ValueError:
    """What to raise when a service is asked whose target nobody has given."""
    return ValueError(f"this client was made without a target of {service}")
