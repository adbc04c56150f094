"""Which kinds of peers may call which methods of the Inventory Service."""

from mesh.callers import allow_list

#: Stock is taken by the service that sells it, and becomes shares only where money is captured. The gateway acts for
#: buyers and for operators whose tokens it has checked; so it may open and close, but not create, and never reserve.
ALLOWED = allow_list(
    "flashsale.inventory.v1.InventoryService",
    {
        "CreateSale": "operator",
        "GetSale": "gateway purchase settlement operator client",
        "ListSales": "gateway settlement operator client",
        "ScheduleSale": "gateway operator",
        "OpenSale": "gateway operator",
        "PauseSale": "gateway operator",
        "CloseSale": "gateway operator",
        "RaiseSaleTotal": "gateway operator",
        "BatchAddEligibleUsers": "gateway operator",
        "ListSaleChanges": "gateway operator",
        "GetStock": "gateway purchase operator client",
        "WatchStock": "gateway operator client",
        "BatchReserveShares": "purchase",
        "BatchConfirmReservations": "settlement",
        "BatchReleaseReservations": "purchase settlement",
        "BatchGetReservations": "purchase operator",
        "BatchGetWaitlistPositions": "purchase operator",
        "BatchLeaveWaitlist": "purchase",
        "ListWaitlist": "settlement operator",
        "ListWaitlistOutcomes": "settlement",
        "BatchAcknowledgeWaitlistOutcomes": "settlement",
        "ListReservations": "settlement operator",
        "RecalibrateSale": "operator",
    },
)
