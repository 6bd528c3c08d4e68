"""What Prometheus reads: how requests end and how long they take, and how everything stands that they need.

Workers of one command share one view: each leaves what it sees in a folder, and the one that is asked puts it together.
`FAMILIES` is all there is to be read.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from gateway.addresses import is_within
from gateway.calling import Account
from gateway.counts import BOUNDS, NONE, OTHER, Requests, Timed
from gateway.identities import Identities
from gateway.ledger.batch import ROUND_TRIPS
from gateway.ledger.store import RedisLedger, Serving
from gateway.model import Slot

FOLDER_VARIABLE: Final = "GATEWAY_METRICS"
"""Names the folder that the workers of one command share; not set where there is one worker."""
ALARMS: Final = (
    "credential.accepted_again", "credential.none_left", "credential.rejected", "credential.switched",
    "journal.broken", "journal.damaged", "journal.unsealed_forgotten",
    "trail.forked", "trail.journal_unreadable", "trail.redis_lost_records",
)  # fmt: skip
"""Events of the log that somebody should look at; each is told from 0 on, since what begins at 1 does not rise."""
_LOOK_EVERY_SECONDS: Final = 1.0
_CHECKPOINT_EVERY: Final = 5
_RECENT: Final = 30
"""Looks over which the largest lag and usage are told: longer than between two readings of Prometheus."""
_STALE_SECONDS: Final = 5.0
"""What a worker saw so long ago is so no more; what it counted stays counted."""
_KEYS_MAX: Final = 100
_POLICIES_MAX: Final = 100

Kind = Literal["counter", "gauge", "histogram"]
Merged = Literal["sum", "max", "min"]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric."""

    name: str
    """Of a counter without the `_total` that is read."""
    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    merged: Merged = "sum"
    """What workers tell together: of a gauge that each has for itself the sum, else what somebody should see."""
    bounds: tuple[float, ...] = ()
    """Of a histogram, in seconds."""


def _counter(name: str, labels: str, meaning: str) -> Family:
    return Family(name, "counter", tuple(labels.split()), meaning)


def _gauge(name: str, labels: str, meaning: str, merged: Merged = "max") -> Family:
    return Family(name, "gauge", tuple(labels.split()), meaning, merged)


def _histogram(name: str, labels: str, meaning: str, bounds: tuple[float, ...]) -> Family:
    return Family(name, "histogram", tuple(labels.split()), meaning, bounds=bounds)


FAMILIES: Final = (
    _gauge("gateway_build_info", "version config", "1, for the version and the digest of its settings"),
    _gauge("gateway_workers", "", "workers that serve", "sum"),
    _counter(
        "gateway_requests",
        "account service operation decision result status problem",
        "requests by how they ended; `none` where it was not known, `other` for the service beyond the first 100",
    ),
    _histogram("gateway_request_duration_seconds", "result", "from a request's arrival to its last record", BOUNDS),
    _gauge("gateway_requests_under_way", "", "requests that are being answered", "sum"),
    _counter("gateway_http_refused", "problem", "requests refused before they were read whole, and not recorded"),
    _counter("gateway_unforeseen_errors", "", "errors that nobody foresaw; the log says `call.broke`"),
    _counter("gateway_upstream_requests", "account result", "requests to the vendor by class of status, or by problem"),
    _histogram("gateway_upstream_duration_seconds", "account", "from sending to the vendor's whole answer, or to none", BOUNDS),
    _gauge("gateway_upstream_calls", "account state", "calls `under_way`, or `waiting` for their turn", "sum"),
    _gauge("gateway_upstream_places", "account", "calls that may be under way at once", "sum"),
    _gauge("gateway_upstream_paused", "account", "1 while no calls are made, or single ones, since most fail"),
    _counter("gateway_retries", "account", "further tries of calls that failed"),
    _counter("gateway_idempotency_repeats", "account standing", "requests for a call of before, by how that one stood"),
    _counter(
        "gateway_limit_admitted",
        "account policy",
        "times a limit was asked about a call that was admitted; by number once for each",
    ),
    _counter("gateway_limit_refused", "account policy mode", "times a limit refused (`deny`), or would have (`shadow_deny`)"),
    _gauge("gateway_limit_used_ratio", "account policy", "largest share of a burst in use of the last 30 s; 1: all of it"),
    _gauge("gateway_limit_changes", "account", "live changes of limits in force"),
    _gauge("gateway_credential_active", "account slot", "1 for the slot in use, 0 for the one that stands by"),
    _gauge("gateway_credential_rejected", "account slot", "1 while the vendor rejects the slot's credential"),
    _gauge("gateway_credential_unreadable", "account slot", "1 while the slot's credential cannot be read again"),
    _gauge("gateway_credential_loaded_timestamp_seconds", "account slot", "when the slot's value was read first"),
    _gauge(
        "gateway_key_ends_in_seconds",
        "service key_id version replaced",
        "until a live key that has an end ends; `replaced`: whether a newer version is there; beyond the first 100 `other`",
        "min",
    ),
    _gauge("gateway_keys_unreadable", "", "entries of keys that cannot be read"),
    _gauge("gateway_issuer_available", "issuer", "1 while an issuer's public keys are to be had", "min"),
    _gauge("gateway_degraded", "account", "1 while Redis is away and limits are local"),
    _counter("gateway_degraded_calls", "account", "calls that were admitted without Redis"),
    _counter("gateway_redis_outages", "account", "times that Redis went away"),
    _histogram("gateway_redis_round_trip_seconds", "account", "round trips to Redis that were answered", ROUND_TRIPS),
    _gauge("gateway_processes", "account", "processes of all gateways, as Redis last said"),
    _gauge("gateway_upkeep_age_seconds", "account", "since a process last did what is to be done for ever"),
    _gauge("gateway_journal_bytes", "account", "bytes in journals", "sum"),
    _gauge("gateway_journal_segments", "account", "files of journals", "sum"),
    _gauge("gateway_journal_broken", "account", "1 while a journal's disk refuses what it is given"),
    _gauge("gateway_journal_disk_free_bytes", "account", "free bytes of the journals' disk", "min"),
    _gauge("gateway_journal_used_ratio", "account", "share in use of what may wait for Redis; at 1 no call is admitted"),
    _gauge("gateway_trail_waiting_records", "account", "records that wait for Redis", "sum"),
    _gauge("gateway_trail_unsealed_records", "account", "records not known to be sealed", "sum"),
    _gauge("gateway_checkpoint_timestamp_seconds", "", "until when the trail is sealed; nothing before the first checkpoint"),
    _gauge("gateway_checkpoint_records", "", "records sealed in all"),
    _counter("gateway_alarms", "account event", "events of the log that somebody should look at"),
    _gauge("gateway_loop_lag_seconds", "", "latest that the loop was, of the last 30 s"),
    _counter("process_cpu_seconds", "", "CPU time used"),
    _gauge("process_resident_memory_bytes", "", "memory in use", "sum"),
    _gauge("process_virtual_memory_bytes", "", "memory mapped", "sum"),
    _gauge("process_open_fds", "", "open file descriptors, of the worker with most"),
    _gauge("process_max_fds", "", "most that a worker may have open", "min"),
    _gauge("process_start_time_seconds", "", "when the newest worker started"),
)
_BY_NAME: Final = {family.name: family for family in FAMILIES}


class _Row(msgspec.Struct, array_like=True):
    name: str
    labels: tuple[str, ...]
    values: list[float]
    """One; of a histogram what `Durations.told` returns."""


_read_rows = msgspec.json.Decoder(list[_Row]).decode


class Vault(Protocol):
    """Where an account's credentials are kept."""

    @property
    def slots(self) -> Collection[Slot]:
        """The slots there are."""

    @property
    def loaded_at(self) -> Mapping[Slot, float]:
        """Unix seconds by slot."""

    @property
    def unreadable(self) -> Collection[Slot]:
        """The slots whose credential could not be read again."""


@dataclass(slots=True, eq=False)
class Metrics(Collector):
    """One process' view, or that of all workers of one command."""

    identities: Identities
    accounts: Mapping[str, Account]
    ledgers: Mapping[str, RedisLedger]
    vaults: Mapping[str, Vault]
    upstreams: Mapping[str, Timed]
    requests: Requests
    http_refused: Mapping[str, int]
    """By problem."""
    serving: Serving
    networks: tuple[str, ...]
    """That may read them."""
    clock: Callable[[], float]
    """Unix seconds."""
    folder: Path | None = None
    """Shared by all workers; None: there is one."""
    # The process' number too: who looks into the folder wants to know whose it is.
    _name: str = field(default_factory=lambda: f"{os.getpid()}-{secrets.token_hex(4)}.json")
    _lags: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _used: dict[str, deque[dict[str, float]]] = field(default_factory=dict)
    """By account: of each look the largest share of each policy's burst that was in use."""
    _checkpoint: tuple[float, int] | None = None
    _process: ProcessCollector = field(default_factory=lambda: ProcessCollector(registry=None))

    async def answer(self, request: Request) -> Response:
        """Answer in Prometheus' text format; 403 from elsewhere."""
        # The connection's own address: a header is no reason to show who has keys here.
        if request.client is None or not is_within(request.client.host, self.networks):
            return Response("not from this network; see server.metrics_networks\n", 403, media_type="text/plain")
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def watch(self) -> None:
        """Look for ever at what is not counted anywhere, and tell the other workers what this one sees. Raises: OSError."""
        looks = 0
        try:
            while True:
                if looks % _CHECKPOINT_EVERY == 0:
                    self._checkpoint = await self.identities.registry.checkpoint() or self._checkpoint
                looks += 1
                for name, ledger in self.ledgers.items():
                    self._used.setdefault(name, deque(maxlen=_RECENT)).append(ledger.verdicts.used_ratios())
                self._write()
                due = time.monotonic() + _LOOK_EVERY_SECONDS
                await asyncio.sleep(_LOOK_EVERY_SECONDS)
                self._lags.append(max(0.0, time.monotonic() - due))
        finally:
            self._write()  # What a worker counted before it ended stays counted.

    def collect(self) -> Iterable[Metric]:
        """Yield what all workers see."""
        return _merged([self._own(), *self._others()])

    def _write(self) -> None:
        if self.folder is None:
            return
        path = self.folder / self._name
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(list(self._own())))
        new.replace(path)

    def _others(self) -> Iterator[list[_Row]]:
        for path in sorted(self.folder.glob("*.json")) if self.folder is not None else ():
            if path.name == self._name:
                continue
            stale = time.time() - path.stat().st_mtime > _STALE_SECONDS
            yield [
                row
                for row in _read_rows(path.read_bytes())
                if row.name in _BY_NAME and (_BY_NAME[row.name].kind != "gauge" or not stale)
            ]

    def _own(self) -> Iterator[_Row]:
        yield _row("gateway_build_info", 1, self.serving.version, self.serving.config)
        yield _row("gateway_workers", 1)
        yield from self._of_requests()
        yield from self._of_identities()
        for name in self.accounts:
            yield from self._of_upstream(name)
            yield from self._of_credentials(name)
            yield from self._of_limits(name)
            yield from self._of_ledger(name)
        yield from self._of_process()

    def _of_requests(self) -> Iterator[_Row]:
        requests = self.requests
        for labels, count in requests.ended():
            yield _row("gateway_requests", count, *labels)
        for result, durations in requests.durations.items():
            yield _Row("gateway_request_duration_seconds", (result,), durations.told())
        yield _row("gateway_requests_under_way", requests.under_way)
        yield _row("gateway_unforeseen_errors", requests.unforeseen)
        for problem, count in self.http_refused.items():
            yield _row("gateway_http_refused", count, problem)
        for name in self.accounts:
            for event in ALARMS:
                count = requests.alarms[name, event] + self.ledgers[name].alarms[event]
                yield _row("gateway_alarms", count, name, event)

    def _of_identities(self) -> Iterator[_Row]:
        registry, now = self.identities.registry, self.clock()
        ends = sorted(
            (version.expires_at - now, entry.service, entry.key_id, version.number, entry.versions[-1].number)
            for entry in registry.current.entries.values()
            for version in entry.versions
            if version.expires_at is not None and version.state(now) == "live"
        )
        for seconds, service, key_id, number, newest in ends[:_KEYS_MAX]:
            yield _row("gateway_key_ends_in_seconds", seconds, service, key_id, str(number), "no" if number == newest else "yes")
        for seconds, *_ in ends[_KEYS_MAX : _KEYS_MAX + 1]:
            yield _row("gateway_key_ends_in_seconds", seconds, OTHER, OTHER, NONE, NONE)
        yield _row("gateway_keys_unreadable", len(registry.unreadable))
        unavailable = self.identities.jwks.problems()
        for name in self.identities.jwks.names:
            yield _row("gateway_issuer_available", name not in unavailable, name)
        if self._checkpoint is not None:
            until, size = self._checkpoint
            yield _row("gateway_checkpoint_timestamp_seconds", until)
            yield _row("gateway_checkpoint_records", size)

    def _of_upstream(self, name: str) -> Iterator[_Row]:
        account, upstream = self.accounts[name], self.upstreams[name]
        for result, count in upstream.results.items():
            yield _row("gateway_upstream_requests", count, name, result)
        yield _Row("gateway_upstream_duration_seconds", (name,), upstream.durations.told())
        yield _row("gateway_upstream_calls", account.bulkhead.in_use, name, "under_way")
        yield _row("gateway_upstream_calls", account.bulkhead.waiting, name, "waiting")
        yield _row("gateway_upstream_places", account.bulkhead.places, name)
        yield _row("gateway_upstream_paused", account.bulkhead.breaker.state != "closed", name)
        yield _row("gateway_retries", account.retries_left.spent, name)
        for standing, count in self.ledgers[name].repeats.items():
            yield _row("gateway_idempotency_repeats", count, name, standing)

    def _of_credentials(self, name: str) -> Iterator[_Row]:
        account, vault = self.accounts[name], self.vaults[name]
        for slot, credential in account.vault.loaded.items():
            yield _row("gateway_credential_active", slot == account.slots.active, name, slot)
            yield _row("gateway_credential_rejected", account.slots.is_rejected(credential), name, slot)
            yield _row("gateway_credential_loaded_timestamp_seconds", vault.loaded_at[slot], name, slot)
        for slot in vault.slots:
            yield _row("gateway_credential_unreadable", slot in vault.unreadable, name, slot)

    def _of_limits(self, name: str) -> Iterator[_Row]:
        ledger, live = self.ledgers[name], self.accounts[name].policies.live
        for policy, count in _few(ledger.verdicts.admitted().items()):
            yield _row("gateway_limit_admitted", count, name, policy)
        for mode, shadow in (("deny", False), ("shadow_deny", True)):
            refusals = ((policy, count) for (policy, which), count in ledger.verdicts.refusals.items() if which == shadow)
            for policy, count in _few(refusals):
                yield _row("gateway_limit_refused", count, name, policy, mode)
        used: dict[str, float] = {}
        for one in self._used.get(name, ()):
            for policy, ratio in one.items():
                used[policy] = max(ratio, used.get(policy, 0.0))
        for policy, ratio in _few(used.items(), max):
            yield _row("gateway_limit_used_ratio", ratio, name, policy)
        yield _row("gateway_limit_changes", len(live.policies) + len(live.terms), name)

    def _of_ledger(self, name: str) -> Iterator[_Row]:
        ledger = self.ledgers[name]
        yield _row("gateway_degraded", ledger.down, name)
        yield _row("gateway_degraded_calls", ledger.degraded, name)
        yield _row("gateway_redis_outages", ledger.outages, name)
        yield _Row("gateway_redis_round_trip_seconds", (name,), ledger.round_trips.told())
        yield _row("gateway_processes", ledger.processes, name)
        yield _row("gateway_upkeep_age_seconds", ledger.upkeep_seconds, name)
        journal = ledger.journal
        sizes = journal.sizes
        yield _row("gateway_journal_bytes", sum(sizes), name)
        yield _row("gateway_journal_segments", len(sizes), name)
        yield _row("gateway_journal_broken", bool(journal.broken), name)
        with suppress(OSError):
            yield _row("gateway_journal_disk_free_bytes", journal.disk_free_bytes, name)
        yield _row("gateway_journal_used_ratio", ledger.waiting_ratio, name)
        yield _row("gateway_trail_waiting_records", ledger.waiting, name)
        yield _row("gateway_trail_unsealed_records", ledger.unsealed, name)

    def _of_process(self) -> Iterator[_Row]:
        yield _row("gateway_loop_lag_seconds", max(self._lags, default=0.0))
        for metric in self._process.collect():
            if metric.name in _BY_NAME:
                yield _row(metric.name, metric.samples[0].value)


def _row(name: str, value: float, *labels: str) -> _Row:
    return _Row(name, labels, [float(value)])


def _few(
    by_policy: Iterable[tuple[str, float]], together: Callable[[float, float], float] = lambda one, other: one + other
) -> Iterable[tuple[str, float]]:
    """Return the first policies by name and the rest as one: live changes may bring any number of them."""
    found: dict[str, float] = {}
    for policy, value in by_policy:
        name = policy if policy in found or len(found) < _POLICIES_MAX else OTHER
        found[name] = together(found[name], value) if name in found else value
    return found.items()


def _merged(views: Iterable[Iterable[_Row]]) -> Iterator[Metric]:
    """Yield what several workers see as one: every family, also one that has no sample yet."""
    found: dict[str, dict[tuple[str, ...], list[float]]] = {family.name: {} for family in FAMILIES}
    for row in (row for view in views for row in view):
        known = found[row.name]
        before = known.get(row.labels)
        together = _TOGETHER[_BY_NAME[row.name].merged]
        known[row.labels] = row.values if before is None else list(map(together, before, row.values))
    for family in FAMILIES:
        yield _metric(family, found[family.name])


_TOGETHER: Final[Mapping[Merged, Callable[[float, float], float]]] = {
    "sum": lambda one, other: one + other,
    "max": max,
    "min": min,
}


def _metric(family: Family, found: Mapping[tuple[str, ...], list[float]]) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.meaning, labels=family.labels)
        for labels, (*counts, total) in found.items():
            reached, buckets = 0.0, []
            for bound, count in zip((*family.bounds, math.inf), counts, strict=True):
                reached += count
                buckets.append(("+Inf" if bound == math.inf else repr(bound), reached))
            histogram.add_metric(labels, buckets, total)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.meaning, labels=family.labels)
    for labels, (value,) in found.items():
        metric.add_metric(labels, value)
    return metric
