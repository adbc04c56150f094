"""Which kinds of peers may call which methods of the Purchase Service."""

from mesh.callers import allow_list

#: Buying is for the gateway, which has checked who its user is, and for clients: services of other teams that buy for
#: users of theirs and vouch for them. Operators look, and deal with what is left over.
ALLOWED = allow_list(
    "flashsale.purchase.v1.PurchaseService",
    {
        "CreatePurchase": "gateway client",
        "BatchCreatePurchases": "gateway client",
        "GetPurchase": "gateway operator client",
        "ListPurchases": "gateway operator client",
        "WatchPurchase": "gateway operator client",
        "CancelPurchase": "gateway client",
        "RefundPurchase": "gateway client",
        "GetReceipt": "gateway operator client",
        "SummarizeSale": "gateway operator",
        "GetSaleStatement": "gateway operator",
        "ListDeadLetters": "gateway operator",
        "ReplayDeadLetters": "gateway operator",
        "BatchReplayParkedPurchases": "gateway operator",
    },
)
