"""What both FastAPI peers are asked for and answer, as dependency and models of FastAPI and pydantic."""

# mypy: disallow-subclassing-any=False

import uuid
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header
from pydantic import BaseModel, Field

from bench.peers.bearer import user_of


class Wish(BaseModel):
    """What a buyer sends."""

    quantity: int = Field(default=1, ge=1, le=1000)


class Accepted(BaseModel):
    """What a buyer is told."""

    purchase_id: uuid.UUID
    state: str


@dataclass(frozen=True)
class Purchase:
    """A wish with everything else that its request tells: the same request, sent again, is the same purchase."""

    purchase_id: uuid.UUID
    sale_id: uuid.UUID
    user_id: str
    quantity: int


async def _purchase(
    sale_id: uuid.UUID,
    wish: Wish,
    user_id: Annotated[str, Depends(user_of)],
    idempotency_key: Annotated[str, Header()],
) -> Purchase:
    # Async for the same reason as user_of.
    purchase_id = uuid.uuid5(sale_id, f"{len(user_id)}:{user_id}:{idempotency_key}")
    return Purchase(purchase_id, sale_id, user_id, wish.quantity)


#: A parameter of this type is what the request asks for.
Asked = Annotated[Purchase, Depends(_purchase)]
