"""Peer: FastAPI with DECR in Redis in front, and Celery behind, that charges and records one purchase at a time.

`uvicorn bench.peers.redis_and_celery:app`, and `celery -A bench.peers.redis_and_celery worker`. Settings:
PEER_DATABASE_URL, PEER_REDIS_URL, PEER_AMQP_URL, PEER_JWT_SECRET.
"""

import os
from typing import Any

import psycopg
import redis
from celery import Celery
from fastapi import FastAPI, HTTPException

from bench.peers.orders import Accepted, Asked

celery = Celery("peer", broker=os.environ.get("PEER_AMQP_URL", ""))
celery.conf.update(
    task_ignore_result=True,
    # As durable as what it is compared with: the broker has a task before the buyer is told.
    broker_transport_options={"confirm_publish": True},
    task_acks_late=True,
    broker_pool_limit=40,
    broker_connection_retry_on_startup=True,
)
app = FastAPI()
_RECORD = (
    "INSERT INTO purchases (purchase_id, sale_id, user_id, quantity)"
    " VALUES (%(purchase)s, %(sale)s, %(user)s, %(quantity)s) ON CONFLICT DO NOTHING"
)
_PAY = (
    "UPDATE accounts SET balance = balance - cost FROM (SELECT price * %(quantity)s AS cost FROM sales"
    " WHERE sale_id = %(sale)s) AS due WHERE user_id = %(user)s AND balance >= cost"
)
_gate = redis.Redis.from_url(os.environ.get("PEER_REDIS_URL", "redis://"))
_connection: psycopg.Connection[Any] | None = None


# Not async: what it does blocks, so FastAPI runs it in its thread pool.
@app.post("/v1/sales/{sale_id}/purchases", status_code=202)
def buy(asked: Asked) -> Accepted:
    """Takes a unit from Redis and leaves the rest to a task."""
    if _gate.decrby(f"peer:{asked.sale_id}", asked.quantity) < 0:
        _gate.incrby(f"peer:{asked.sale_id}", asked.quantity)
        raise HTTPException(409, "sold out")
    charge.delay(str(asked.purchase_id), str(asked.sale_id), asked.user_id, asked.quantity)
    return Accepted(purchase_id=asked.purchase_id, state="RESERVED")


@celery.task
def charge(purchase_id: str, sale_id: str, user_id: str, quantity: int) -> None:
    """Charges the buyer and records the purchase; gives the unit back when that is not possible."""
    global _connection
    if _connection is None or _connection.closed:
        _connection = psycopg.connect(os.environ["PEER_DATABASE_URL"])
    wish = {"purchase": purchase_id, "sale": sale_id, "user": user_id, "quantity": quantity}
    with _connection.transaction():
        # Delivered twice, it is there already.
        if not _connection.execute(_RECORD, wish).rowcount:
            return
        paid = _connection.execute(_PAY, wish).rowcount
        if not paid:
            _connection.execute("DELETE FROM purchases WHERE purchase_id = %(purchase)s", wish)
    if not paid:
        _gate.incrby(f"peer:{sale_id}", quantity)
