"""Who sends a request, by its token. Remembered: a token's check costs more than all else of a small request."""

import os
from functools import lru_cache
from typing import Annotated

import jwt
from fastapi import Header, HTTPException


@lru_cache(maxsize=65_536)
def _subject(token: str) -> str:
    claims = jwt.decode(token, os.environ["PEER_JWT_SECRET"], algorithms=["HS256"], options={"verify_aud": False})
    return str(claims["sub"])


async def user_of(authorization: Annotated[str, Header()]) -> str:
    """The user. Raises HTTPException 401.

    Async, though it waits for nothing: FastAPI would call a plain function in its thread pool.
    """
    try:
        return _subject(authorization.removeprefix("Bearer "))
    except (jwt.InvalidTokenError, KeyError) as error:
        raise HTTPException(401, "not a valid token") from error
