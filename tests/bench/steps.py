"""`python -m tests.bench.steps`: what each step of a call costs, in the order in which a call takes them.

The application itself runs here, with a real Redis and a vendor that costs next to nothing; each step is done again and
again by the pieces that the pipeline does it with. CPU is this process'. Steps that wait for somebody are done by 32
callers at once, since what they send together shares its way; `one caller` is the same by one. `whole` is the pipeline from
an arrival to its reply, and what is over HTTP is a gateway's process as `python -m tests.bench` measures it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
import tomllib
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from gateway import config
from gateway.app import Application, create_app
from gateway.calling import Account
from gateway.document import read_document
from gateway.endpoints import Unset
from gateway.model import Admission, Arrival, Attempt, UpstreamAnswer
from gateway.normalisation import normalise
from gateway.telemetry import make_logger
from tests.bench.__main__ import ENVIRON, machine, measure, peers
from tests.bench.vendor import BODY

CALLS = 4_000
AT_ONCE = 32
Step = Callable[[], Awaitable[Any]]


def arrivals(key: str) -> Callable[[], Arrival]:
    numbers = itertools.count()

    def arrival() -> Arrival:
        number = next(numbers) % 100_000
        body = b'{"m1":"98765%05d","m2":"91234%05d","expiry_duration":-1}' % (number, number)
        return Arrival(f"{number:032x}", time.time(), body, (f"Bearer {key}",), source="127.0.0.1")

    return arrival


async def cost(step: Callable[[], Any], callers: int) -> float:
    """Return microseconds of this process' CPU for one."""
    left = iter(range(CALLS))

    async def work() -> None:
        for _ in left:
            found = step()
            if asyncio.iscoroutine(found):
                await found

    for _ in range(50):
        found = step()
        if asyncio.iscoroutine(found):
            await found
    begun = time.process_time()
    await asyncio.gather(*(work() for _ in range(callers)))
    return (time.process_time() - begun) / CALLS * 1e6


def steps(app: Application, key: str) -> dict[str, tuple[Callable[[], Any], bool]]:
    """Return the steps by their names, and whether each waits for somebody."""
    unset = app.unset
    assert isinstance(unset, Unset)
    pipeline = unset.pipeline
    account: Account = pipeline.accounts["bench"]
    new = arrivals(key)
    arrival = new()
    known = pipeline.identities.known
    document = read_document(arrival.body, pipeline.body_bytes_max)
    caller = pipeline.authenticator.authenticate(arrival, document, known)
    call = pipeline.validator.validate(document, caller, "bench")
    credential = account.slots.choose(account.vault.loaded)
    attempt = Attempt(1, credential.slot, credential.version)
    answer = UpstreamAnswer(200, BODY)

    def fresh() -> Any:
        """A call of its own numbers, which no cache knows."""
        return pipeline.validator.validate(read_document(new().body, pipeline.body_bytes_max), caller, "bench")

    async def admit() -> Admission:
        admitted = await account.ledger.admit(
            call, account.policies.charges(call), account.auditor.intent(arrival, call, attempt),
            known.registry.epoch, account.slots.active, account.policies.live,
        )  # fmt: skip
        assert isinstance(admitted, Admission)
        return admitted

    kept: list[Admission] = []
    request = None

    async def forward() -> None:
        assert (await account.upstream.forward(request)).status == 200  # type: ignore[arg-type]  # made below

    def settle() -> None:
        outcome = normalise(answer, request, call, arrival.request_id)  # type: ignore[arg-type]  # the same
        account.ledger.settle(account.auditor.outcome(arrival, kept[0], outcome, time.time(), attempt))

    async def settled() -> None:
        settle()
        await asyncio.sleep(0)

    async def ready() -> None:
        nonlocal request
        kept.append(await admit())
        request = pipeline.calling.exchange.exchange(kept[0], credential)

    return {
        "": (ready, True),
        "parse": (lambda: read_document(arrival.body, pipeline.body_bytes_max), False),
        "authenticate": (lambda: pipeline.authenticator.authenticate(arrival, document, known), False),
        "parse and validate, numbers never seen": (fresh, False),
        "limits, and the intent made": (
            lambda: (account.policies.charges(call), account.auditor.intent(arrival, call, attempt)), False,
        ),
        "the same, admitted and recorded": (admit, True),
        "exchange": (lambda: pipeline.calling.exchange.exchange(kept[0], credential), False),
        "forward": (forward, True),
        "normalise": (lambda: normalise(answer, request, call, arrival.request_id), False),  # type: ignore[arg-type]  # the same
        "normalise, outcome made and settled": (settled, True),
        "a line of the log": (
            lambda: pipeline.calling.observer.recorded(account.auditor.intent(arrival, call, attempt)), False,
        ),
        "whole": (lambda: pipeline.handle(new()), True),
    }  # fmt: skip


async def run(app: Application, key: str, rounds: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, list[float]]] = {}
    async with app.router.lifespan_context(app):
        every = steps(app, key)
        await every.pop("")[0]()
        for _ in range(rounds):
            for name, (step, waits) in every.items():
                for callers in (AT_ONCE, 1) if waits else (1,):
                    figure = await cost(step, callers)
                    found.setdefault(name, {}).setdefault("one" if waits and callers == 1 else "many", []).append(figure)
    return {name: {which: median(figures) for which, figures in figures.items()} for name, figures in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.steps", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gwb")))
        (peer,) = peers(stack, folder, ["gateway"])
        over_http = {which: median(measure(peer, 2.0, callers)["cpu_us"] for _ in range(3)) for which, callers in (("many", AT_ONCE), ("one", 1))}  # fmt: skip
        settings = config.parse(tomllib.loads((folder / "gateway" / "gateway.toml").read_text()), os.environ | ENVIRON)
        # The lines of the log go where those of a gateway in this bench go: to a file.
        with (folder / "log").open("wb") as log:
            told, sys.stdout = sys.stdout, os.fdopen(os.dup(log.fileno()), "w")
            app = create_app(settings, os.environ | ENVIRON, logger=make_logger("info"))
            found = uvloop.run(run(app, peer.key, arguments.rounds))
            sys.stdout = told
    found["whole, over HTTP"] = over_http
    if arguments.json:
        print(json.dumps({"machine": machine(), "steps": found}, indent=1))
        return 0
    print(machine())
    print("| step | CPU µs | one caller |")
    print("|---|--:|--:|")
    for name, figures in found.items():
        print(f"| {name} | {figures['many']:.0f} | {round(figures['one']) if 'one' in figures else '–'} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
