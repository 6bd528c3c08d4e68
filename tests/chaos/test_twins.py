"""Two gateways of one name, as on a machine that was copied while it ran: one goes on under another, and both are told whole."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import httpx
import pytest

from tests.chaos.promise import M1, M2, Answer, archive_of, assert_kept, body_of, seal, sealed
from tests.running import UNSET, Process, Stack, until

CALLS = 150


def well(stack: Stack, url: str) -> bool:
    return bool(stack.http.get(url + "/readyz").json()["status"] == "ok")


@pytest.mark.parametrize("redis_is_there", [True, False])
def test_twins_lose_nothing(start: Callable[..., Stack], redis_is_there: bool) -> None:
    """Found out at the first record, or, where they met before Redis was there, amid all that waits."""
    stack = start(audit='sealing = "apart"', read_ms=5000, total_ms=9000)
    stack.set_masking(M1, M2)
    stack.gateway.stop()
    if not redis_is_there:
        stack.redis.kill()
    twins = []
    for name in ("one", "two"):
        config = stack.folder / f"{name}.toml"
        config.write_text(stack.config.read_text().replace(str(stack.folder / "state"), str(stack.folder / name)))
        words = [sys.executable, "-m", "tests.chaos.killing", "writer=host-twin", "serve", "--port", "0", "--config", str(config)]
        twins.append(Process(stack.folder, name, words, stack._environ))
    urls = [twin.address() for twin in twins]
    answers: list[Answer] = []

    def call(url: str, first: int) -> None:
        with httpx.Client(trust_env=False, timeout=30) as client:
            for number in range(first, first + CALLS):
                headers = {"Authorization": f"Bearer {stack.key}", "X-Request-Id": Answer(number, 0).request_id}
                status = client.post(url + UNSET, json=body_of(number), headers=headers).status_code
                answers.append(Answer(number, status))

    callers = [threading.Thread(target=call, args=(url, CALLS * number)) for number, url in enumerate((*urls, *urls))]
    for caller in callers:
        caller.start()
    if not redis_is_there:
        until(lambda: len(answers) > CALLS, what="some calls without Redis")
        stack.redis.start()
    for caller in callers:
        caller.join()
    until(lambda: all(well(stack, url) for url in urls), seconds=30, what="all being well")
    for number, url in enumerate(urls, 4):
        call(url, CALLS * number)
    assert [twin.stop() for twin in twins] == [0, 0]
    seal(stack)

    records = sealed(archive_of(stack))
    seen = assert_kept(records, stack.vendor_calls(), answers)
    assert len(answers) == 6 * CALLS
    assert seen["answered 500"] == 0
    # How many were made before the twins knew their caller depends on the machine.
    assert seen["calls"] >= (6 if redis_is_there else 2) * CALLS
    assert sum(twin.output().count('"trail.forked"') for twin in twins) == 1
    (renamed,) = [record for record in records if record.get("why") == "instead of host-twin"]
    assert renamed["stage"] == "open"
    assert stack.cli("audit", "verify").returncode == 0
