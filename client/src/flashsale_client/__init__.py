"""Buys shares in flash sales: ``AsyncClient`` for asyncio, ``Client`` without; errors by reason in
``flashsale_client.reasons``."""

from flashsale_client import reasons
from flashsale_client.aio import AsyncClient
from flashsale_client.connection import Tls
from flashsale_client.errors import FlashsaleError, Refused, TryAgain
from flashsale_client.following import state_name
from flashsale_client.gathering import Gatherer
from flashsale_client.policy import Policy
from flashsale_client.sync import Client
from flashsale_client.wishes import Answer, Wish, new_request_id

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "FlashsaleError",
    "Gatherer",
    "Policy",
    "Refused",
    "Tls",
    "TryAgain",
    "Wish",
    "new_request_id",
    "reasons",
    "state_name",
]
