"""How services must not use the client; `mypy --strict` rejects each line that says so, and no other."""

from __future__ import annotations

import httpx

from gateway.client import AsyncClient, Client, Done

gateway = Client("https://gateway.internal", "gk_live_…")  # rejected: call-arg
gateway = Client(key=b"gk_live")  # rejected: arg-type
gateway = Client(transport=httpx.AsyncHTTPTransport())  # rejected: arg-type

gateway.unset("9876543210")  # rejected: call-arg
gateway.unset(m1=None)  # rejected: arg-type
gateway.unset(m1=9876543210)  # rejected: arg-type
gateway.unset(m3="9876543210")  # rejected: call-arg
gateway.unset(m1="9876543210", expires_at=1_900_000_000)  # rejected: arg-type
gateway.unset(m1="9876543210", expires_in_minutes=0.5)  # rejected: arg-type
gateway.unset(m1="9876543210").operations  # rejected: attr-defined  # noqa: B018


async def forgotten() -> Done:
    async with AsyncClient() as client:
        return client.unset(m1="9876543210")  # rejected: return-value


def frozen(done: Done) -> None:
    done.replayed = True  # rejected: misc
