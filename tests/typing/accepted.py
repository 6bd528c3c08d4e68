"""How services use the client; `mypy --strict` accepts it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from gateway.client import AsyncClient, Client, Done, GatewayError, RateLimited, Refused, Unavailable, Unknown


def end(m1: str, m2: str) -> str:
    with Client("https://gateway.internal", key="gk_live_…", timeout=10, tries=2) as gateway:
        done = gateway.unset(m1=m1, m2=m2)
    name: str = done.operation
    return name if done.replayed else done.request_id


def reschedule(gateway: Client, mask: str) -> float | None:
    try:
        gateway.unset(mask=mask, expires_in_minutes=30, idempotency_key="job-1")
        gateway.unset(mask=mask, expires_at=datetime.now(UTC) + timedelta(hours=1), traceparent=None)
    except RateLimited as error:
        return error.retry_after
    except (Refused, Unavailable, Unknown) as error:
        slug: str = error.error
        status: int | None = error.status
        print(slug, status, error.field, error.policy, error.code, error.origin, error.request_id, error.retryable, error.tries)
    except GatewayError:
        raise
    return None


async def loop() -> Done:
    async with AsyncClient(key=Path("/run/secrets/key"), account="main") as gateway:
        return await gateway.unset(m1="9876543210")
