"""Which kinds of peers may call which methods of the Balance Service."""

from mesh.callers import allow_list

#: Money comes in and goes out by the treasury alone; it is held, captured, released and given back by the settlement
#: worker alone. Everybody else reads: the gateway what it shows a user, operators what an audit needs.
ALLOWED = allow_list(
    "flashsale.balance.v1.BalanceService",
    {
        "BatchCreateAccounts": "treasury",
        "BatchDeposit": "treasury",
        "CreateAccount": "treasury",
        "Deposit": "treasury",
        "Withdraw": "treasury",
        "GetBalance": "treasury operator",
        "BatchGetBalances": "gateway treasury operator",
        "BatchPlaceHolds": "settlement",
        "BatchCaptureHolds": "settlement",
        "BatchReleaseHolds": "settlement",
        "ReverseCapture": "settlement",
        "BatchReverseCaptures": "settlement",
        "BatchGetHolds": "purchase operator",
        "ListHolds": "operator",
        "ListAccounts": "treasury operator",
        "ListLedgerEntries": "treasury operator",
        "CheckBooks": "gateway treasury operator",
    },
)
