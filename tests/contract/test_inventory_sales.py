"""InventoryService, sales: what creating, reading, listing and changing their state promise."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as pb

from mesh.errors import from_rpc_error
from tests.support.inventory_rig import InventoryRig, inventory_rig
from tests.support.servers import Servers


@pytest_asyncio.fixture(scope="module")
async def rig(servers: Servers) -> AsyncIterator[InventoryRig]:
    async with inventory_rig(servers) as opened:
        yield opened


async def refusal(call: Any) -> tuple[grpc.StatusCode, str, set[str]]:
    """Status code, reason and wrong fields of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return caught.value.code(), error.reason_name, {field for field, _ in error.violations}


NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "SALE_NOT_FOUND", set[str]())
CONFLICT = (grpc.StatusCode.FAILED_PRECONDITION, "SALE_STATE_CONFLICT", set[str]())


async def test_a_new_sale_is_a_draft_with_the_terms_asked_for(rig: InventoryRig) -> None:
    sale = await rig.create_sale(50, per_user=3, per_purchase=2)
    assert sale.state == pb.SaleState.SALE_STATE_DRAFT
    assert (sale.total, sale.per_user_limit, sale.per_purchase_limit) == (50, 3, 2)
    assert (sale.unit_price.amount_minor, sale.unit_price.currency_code) == (1_000, "EUR")
    assert sale == (await rig.inventory.GetSale(pb.GetSaleRequest(sale_id=sale.sale_id))).sale
    assert await rig.stock(sale.sale_id) == (50, 0, 0)


@pytest.mark.parametrize(("total", "per_purchase"), [(4, 4), (500, 10)])
async def test_limits_of_zero_stand_for_the_defaults(rig: InventoryRig, total: int, per_purchase: int) -> None:
    sale = await rig.create_sale(total, per_user=0, per_purchase=0)
    assert (sale.per_purchase_limit, sale.per_user_limit) == (per_purchase, per_purchase)


async def test_repeating_a_creation_gives_the_same_sale(rig: InventoryRig) -> None:
    request_id = uuid.uuid4().hex
    first = await rig.create_sale(5, request_id=request_id)
    await rig.inventory.OpenSale(pb.OpenSaleRequest(sale_id=first.sale_id))
    again = await rig.create_sale(5, request_id=request_id)
    assert again.sale_id == first.sale_id
    assert again.state == pb.SaleState.SALE_STATE_OPEN


async def test_a_request_id_cannot_create_another_sale(rig: InventoryRig) -> None:
    request_id = uuid.uuid4().hex
    await rig.create_sale(5, request_id=request_id)
    found = await refusal(rig.create_sale(6, request_id=request_id))
    assert found == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED", set())


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"request_id": ""}, "request_id"),
        ({"request_id": "x" * 129}, "request_id"),
        ({"display_name": ""}, "display_name"),
        ({"display_name": "x" * 201}, "display_name"),
        ({"unit_price": Money(amount_minor=0, currency_code="EUR")}, "unit_price.amount_minor"),
        ({"unit_price": Money(amount_minor=1_000_000_001, currency_code="EUR")}, "unit_price.amount_minor"),
        ({"unit_price": Money(amount_minor=1, currency_code="euro")}, "unit_price.currency_code"),
        ({"total": 0}, "total"),
        ({"total": 10_000_001}, "total"),
        ({"total": -1}, "total"),
        ({"per_user_limit": -1}, "per_user_limit"),
        ({"per_purchase_limit": 1_001}, "per_purchase_limit"),
    ],
)
async def test_a_wrong_field_is_named(rig: InventoryRig, given: dict[str, Any], field: str) -> None:
    assert await refusal(rig.create_sale(**given)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
        {field},
    )


async def test_sales_are_listed_newest_first_page_by_page(rig: InventoryRig) -> None:
    created = [(await rig.create_sale(1)).sale_id for _ in range(5)]
    listed: list[str] = []
    token = ""
    while len(listed) < 5:
        page = await rig.inventory.ListSales(pb.ListSalesRequest(page_size=2, page_token=token))
        assert len(page.sales) == 2
        listed += [sale.sale_id for sale in page.sales]
        token = page.next_page_token
        assert token
    assert listed[:5] == created[::-1]


async def test_the_last_page_has_no_token(rig: InventoryRig) -> None:
    await rig.create_sale(1)
    page = await rig.inventory.ListSales(pb.ListSalesRequest(page_size=1_000))
    assert page.next_page_token == ""


@pytest.mark.parametrize("token", ["nonsense!", "bm9uc2Vuc2U=", "é"])
async def test_a_page_token_that_is_none_is_refused(rig: InventoryRig, token: str) -> None:
    found = await refusal(rig.inventory.ListSales(pb.ListSalesRequest(page_token=token)))
    assert found == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", {"page_token"})


async def state_after(rig: InventoryRig, sale_id: str, *verbs: str) -> int:
    state = 0
    for verb in verbs:
        request = getattr(pb, f"{verb}SaleRequest")(sale_id=sale_id)
        state = (await getattr(rig.inventory, f"{verb}Sale")(request)).sale.state
    return state


async def test_legal_transitions_and_their_repetition(rig: InventoryRig) -> None:
    sale_id = (await rig.create_sale(5)).sale_id
    assert await state_after(rig, sale_id, "Open", "Open") == pb.SaleState.SALE_STATE_OPEN
    assert await state_after(rig, sale_id, "Pause", "Pause") == pb.SaleState.SALE_STATE_PAUSED
    assert await state_after(rig, sale_id, "Open") == pb.SaleState.SALE_STATE_OPEN
    assert await state_after(rig, sale_id, "Close", "Close") == pb.SaleState.SALE_STATE_CLOSED


async def test_a_closed_sale_stays_closed(rig: InventoryRig) -> None:
    sale_id = (await rig.create_sale(5)).sale_id
    await state_after(rig, sale_id, "Close")
    assert await refusal(state_after(rig, sale_id, "Open")) == CONFLICT
    assert await refusal(state_after(rig, sale_id, "Pause")) == CONFLICT


async def test_a_draft_cannot_be_paused(rig: InventoryRig) -> None:
    sale_id = (await rig.create_sale(5)).sale_id
    assert await refusal(state_after(rig, sale_id, "Pause")) == CONFLICT
    assert await rig.stock(sale_id) == (5, 0, 0)


CALLS = [
    ("GetSale", pb.GetSaleRequest),
    ("OpenSale", pb.OpenSaleRequest),
    ("PauseSale", pb.PauseSaleRequest),
    ("CloseSale", pb.CloseSaleRequest),
    ("GetStock", pb.GetStockRequest),
    ("RecalibrateSale", pb.RecalibrateSaleRequest),
    ("ListReservations", pb.ListReservationsRequest),
]


@pytest.mark.parametrize(("name", "request_type"), CALLS)
async def test_an_unknown_sale_is_not_found(rig: InventoryRig, name: str, request_type: Any) -> None:
    call = getattr(rig.inventory, name)
    assert await refusal(call(request_type(sale_id=str(uuid.uuid4())))) == NOT_FOUND


@pytest.mark.parametrize(("name", "request_type"), CALLS)
async def test_a_sale_id_that_is_no_uuid_is_refused(rig: InventoryRig, name: str, request_type: Any) -> None:
    call = getattr(rig.inventory, name)
    found = await refusal(call(request_type(sale_id="42")))
    assert found == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", {"sale_id"})
    found = await refusal(call(request_type()))
    assert found == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", {"sale_id"})
