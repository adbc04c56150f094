"""Single requests over connections of their own, and their whole answers: to look at what wrk only counts."""

import asyncio

from bench.load.http_answers import Answer, AnswerError, cut_answer
from bench.load.plan import Buyer, LoadPlan, render_request
from bench.load.process import LoadError

_ANSWER_S_MAX = 5.0


async def ask_once(plan: LoadPlan, buyer: Buyer) -> Answer:
    """Sends one request of a plan, whoever its buyers are. Raises LoadError without a whole answer within 5 s."""
    return await send_once(render_request(plan, buyer), plan.host, plan.port, buyer.request_id)


async def send_once(request: bytes, host: str, port: int, what: str) -> Answer:
    """Sends one whole HTTP request. Raises LoadError, which names it ``what``, without a whole answer within 5 s."""
    try:
        async with asyncio.timeout(_ANSWER_S_MAX):
            return await _answer_to(request, host, port)
    except (AnswerError, OSError, TimeoutError) as error:
        raise LoadError(f"{what} was not answered: {error!r}") from error


async def _answer_to(request: bytes, host: str, port: int) -> Answer:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        data = b""
        while (answer := cut_answer(data)) is None:
            more = await reader.read(65_536)
            if not more:
                raise AnswerError("the connection was closed before the answer")
            data += more
        return answer
    finally:
        writer.close()
