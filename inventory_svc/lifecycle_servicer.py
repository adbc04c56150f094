"""The RPCs of a sale's life: creating it, its states and times, its total, who may buy, and what was done with it."""

from collections.abc import Callable
from typing import Any

from flashsale.inventory.v1 import inventory_service_pb2 as pb

from inventory_svc import conversion, sale_conversion
from inventory_svc.eligibility import Eligibility
from inventory_svc.lifecycle import Lifecycle
from inventory_svc.sale import SaleState, with_defaults
from inventory_svc.sale_book import SaleBook
from mesh import page_token
from mesh.pages import Listed


class LifecycleServicer:
    """A part of InventoryServicer; each RPC's effect and errors are described in the contract.

    ``rescheduled`` is called when a sale may have been given other times.
    """

    def __init__(
        self, sales: SaleBook, lifecycle: Lifecycle, eligibility: Eligibility, rescheduled: Callable[[], None]
    ) -> None:
        self._sales = sales
        self._lifecycle = lifecycle
        self._eligibility = eligibility
        self._rescheduled = rescheduled

    async def CreateSale(self, request: pb.CreateSaleRequest, context: Any) -> pb.CreateSaleResponse:
        """Creates a sale and its gate."""
        terms, times = sale_conversion.terms_of(request)
        sale = await self._sales.create(request.request_id, with_defaults(terms), times, actor=request.actor)
        await self._lifecycle.bring_into_service(sale.sale_id)
        self._rescheduled()
        return pb.CreateSaleResponse(sale=sale_conversion.sale_message(sale))

    async def GetSale(self, request: pb.GetSaleRequest, context: Any) -> pb.GetSaleResponse:
        """Reads a sale."""
        sale = await self._sales.get(conversion.sale_id_of(request.sale_id))
        return pb.GetSaleResponse(sale=sale_conversion.sale_message(sale))

    async def ListSales(self, request: pb.ListSalesRequest, context: Any) -> pb.ListSalesResponse:
        """Lists sales, newest first."""
        size = page_token.page_size(request.page_size, default=100, most=1_000)
        found = await self._sales.page(size + 1, conversion.place_of(request.page_token, conversion.SALES))
        listed = Listed(
            found, size, lambda last: conversion.token_after(conversion.SALES, last.create_time, last.sale_id)
        )
        sales, token = listed.page(sale_conversion.sale_message)
        return pb.ListSalesResponse(sales=sales, next_page_token=token)

    async def ScheduleSale(self, request: pb.ScheduleSaleRequest, context: Any) -> pb.ScheduleSaleResponse:
        """Sets a sale's times."""
        sale_id, times = sale_conversion.schedule_of(request)
        sale = await self._lifecycle.schedule(sale_id, times, request.actor)
        self._rescheduled()
        return pb.ScheduleSaleResponse(sale=sale_conversion.sale_message(sale))

    async def OpenSale(self, request: pb.OpenSaleRequest, context: Any) -> pb.OpenSaleResponse:
        """Opens a sale."""
        return pb.OpenSaleResponse(sale=await self._changed(request, SaleState.OPEN))

    async def PauseSale(self, request: pb.PauseSaleRequest, context: Any) -> pb.PauseSaleResponse:
        """Pauses a sale."""
        return pb.PauseSaleResponse(sale=await self._changed(request, SaleState.PAUSED))

    async def CloseSale(self, request: pb.CloseSaleRequest, context: Any) -> pb.CloseSaleResponse:
        """Closes a sale for good."""
        return pb.CloseSaleResponse(sale=await self._changed(request, SaleState.CLOSED))

    async def _changed(
        self, request: pb.OpenSaleRequest | pb.PauseSaleRequest | pb.CloseSaleRequest, wanted: SaleState
    ) -> pb.Sale:
        sale_id, actor = sale_conversion.change_of(request)
        sale = await self._lifecycle.change(sale_id, wanted, actor)
        return sale_conversion.sale_message(sale)

    async def RaiseSaleTotal(self, request: pb.RaiseSaleTotalRequest, context: Any) -> pb.RaiseSaleTotalResponse:
        """Raises a sale's total."""
        sale_id, total = sale_conversion.raise_of(request)
        sale = await self._lifecycle.raise_total(sale_id, total, request.actor)
        return pb.RaiseSaleTotalResponse(sale=sale_conversion.sale_message(sale))

    async def BatchAddEligibleUsers(
        self, request: pb.BatchAddEligibleUsersRequest, context: Any
    ) -> pb.BatchAddEligibleUsersResponse:
        """Adds users to those who may buy."""
        sale_id, user_ids = sale_conversion.eligible_users_of(request)
        await self._sales.terms(sale_id)
        added, eligible = await self._eligibility.add(sale_id, user_ids)
        return pb.BatchAddEligibleUsersResponse(added=added, eligible=eligible)

    async def ListSaleChanges(self, request: pb.ListSaleChangesRequest, context: Any) -> pb.ListSaleChangesResponse:
        """Lists what was done with a sale."""
        sale_id = conversion.sale_id_of(request.sale_id)
        size = page_token.page_size(request.page_size, default=100, most=1_000)
        listing = sale_conversion.changes_listing(sale_id)
        after_id = sale_conversion.change_after(request.page_token, listing)
        await self._sales.terms(sale_id)
        found = await self._sales.changes(sale_id, after_id=after_id, size=size + 1)
        listed = Listed(found, size, lambda last: page_token.encode(listing, [str(last.change_id)]))
        changes, token = listed.page(sale_conversion.change_message)
        return pb.ListSaleChangesResponse(changes=changes, next_page_token=token)
