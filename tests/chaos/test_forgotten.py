"""A Redis that forgot what is sealed already: what was closed stays closed, whoever carries the writer on."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from gateway.audit import chained
from gateway.ledger import journal as journals
from gateway.ledger.heir import Heir
from tests.integration.test_trail import KEEP_MS, NAMES, Bench, run, stream
from tests.running import Redis


def test_what_a_failover_opened_again_is_not_closed_twice(redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a call was sealed, then lost with the intent being closed; the journal lets go of it; kill -9."""
    monkeypatch.setattr(journals, "SEGMENT_BYTES", 1)

    async def work() -> None:
        bench, heirs = Bench(redis, tmp_path / "j"), Bench(redis, tmp_path / "own", "host-heir")
        bench.trail.write(bench.record("intent", request_id="r1"), "1 k.1")
        await bench.settled()
        bench.trail.send(bench.record("outcome", request_id="r1", intent="host-w-0", result="answered"))
        await bench.settled()
        with redis.client() as client:
            _, (last, _) = client.xrange(NAMES.audit)
            client.xdel(NAMES.audit, last)
            client.hset(NAMES.tips, "host-w", f"0 {chained(stream(redis)[0]).hex()}")
            client.hset(NAMES.open, "host-w-0", "1 k.1")
        bench.trail.sealed = 1

        bench.trail.lost(0)
        bench.trail.send(bench.record())
        await bench.settled()
        bench.trail.journal.forget(1, 2)
        os.close(bench.trail.journal._lock)
        heir = Heir(NAMES, tmp_path / "j", heirs.batch, time.time, heirs.alarms.append, KEEP_MS)
        await heir.look()

        assert [json.loads(record)["stage"] for record in stream(redis)] == ["intent", "beat", "close"]
        with redis.client() as client:
            assert client.hlen(NAMES.open) == 0
        heir.close()
        await heirs.aclose()
        await bench.batch.aclose()
        await bench.connection.aclose()

    run(work)
