"""What Prometheus reads: when keys end, how credentials and limits stand, which issuers' keys are to be had.

Workers that share a port share one view: each leaves what it sees in a folder, and the one that is asked puts it together.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from gateway.addresses import is_within
from gateway.calling import Account
from gateway.identities import Identities

FOLDER_VARIABLE: Final = "GATEWAY_METRICS"
"""Names the folder that the workers of one command share; not set where there is one worker."""
_WRITE_EVERY_SECONDS: Final = 1.0
_STALE_SECONDS: Final = 5.0
"""What a worker saw so long ago is so no more; what it counted stays counted."""
_SUMMED: Final = frozenset(("gateway_upstream_calls",))
"""Gauges of which every worker has its own; of the others the highest is what somebody should see."""


class _Sample(msgspec.Struct, array_like=True):
    name: str
    labels: dict[str, str]
    value: float


class _Family(msgspec.Struct, array_like=True):
    name: str
    documentation: str
    type: str
    samples: list[_Sample]


_read_families = msgspec.json.Decoder(list[_Family]).decode


@dataclass(frozen=True, slots=True, eq=False)
class Metrics(Collector):
    """One process' view, or that of all workers of one command."""

    identities: Identities
    accounts: Mapping[str, Account]
    networks: tuple[str, ...]
    """That may read them."""
    clock: Callable[[], float]
    """Unix seconds."""
    folder: Path | None = None
    """Shared by all workers; None: there is one."""

    async def answer(self, request: Request) -> Response:
        """Answer in Prometheus' text format; 403 from elsewhere."""
        # The connection's own address: a header is no reason to show who has keys here.
        if request.client is None or not is_within(request.client.host, self.networks):
            return Response("not from this network; see server.metrics_networks\n", 403, media_type="text/plain")
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def keep_written(self) -> None:
        """Tell the other workers for ever what this one sees. Raises: OSError."""
        while self.folder is not None:
            path = self.folder / f"{os.getpid()}.json"
            new = path.with_suffix(".new")
            new.write_bytes(msgspec.json.encode([_packed(metric) for metric in self._own()]))
            new.replace(path)
            await asyncio.sleep(_WRITE_EVERY_SECONDS)

    def collect(self) -> Iterable[Metric]:
        """Yield what all workers see."""
        return _merged([[_packed(metric) for metric in self._own()], *self._others()])

    def _others(self) -> Iterator[list[_Family]]:
        own = f"{os.getpid()}.json"
        for path in sorted(self.folder.glob("*.json")) if self.folder is not None else ():
            if path.name == own:
                continue
            stale = time.time() - path.stat().st_mtime > _STALE_SECONDS
            yield [family for family in _read_families(path.read_bytes()) if family.type == "counter" or not stale]

    def _own(self) -> Iterable[Metric]:
        ends = GaugeMetricFamily(
            "gateway_key_ends_in_seconds", "Until a live key that has an end ends.", labels=("service", "key_id", "version")
        )
        for entry in self.identities.registry.current.entries.values():
            for version in entry.versions:
                if version.expires_at is not None and version.state(self.clock()) == "live":
                    ends.add_metric((entry.service, entry.key_id, str(version.number)), version.expires_at - self.clock())
        yield ends
        active = GaugeMetricFamily(
            "gateway_credential_active", "1 for the slot in use, 0 for the one that stands by.", labels=("account", "slot")
        )
        rejected = GaugeMetricFamily(
            "gateway_credential_rejected", "1 while the vendor rejects the slot's credential.", labels=("account", "slot")
        )
        for name, account in self.accounts.items():
            for slot, credential in account.vault.loaded.items():
                active.add_metric((name, slot), slot == account.slots.active)
                rejected.add_metric((name, slot), account.slots.is_rejected(credential))
        yield active
        yield from self._limits()
        yield from self._upstream()
        yield rejected
        issuers = GaugeMetricFamily(
            "gateway_issuer_available", "1 while an issuer's public keys are to be had.", labels=("issuer",)
        )
        unavailable = self.identities.jwks.problems()
        for name in self.identities.jwks.names:
            issuers.add_metric((name,), name not in unavailable)
        yield issuers

    def _upstream(self) -> Iterable[Metric]:
        places = GaugeMetricFamily(
            "gateway_upstream_calls", "Calls of this process: under way, or waiting for their turn.", labels=("account", "state")
        )
        paused = GaugeMetricFamily(
            "gateway_upstream_paused",
            "1 while this process makes no calls, or single ones, since most fail.",
            labels=("account",),
        )
        retries = CounterMetricFamily(
            "gateway_retries", "Further tries of calls that failed, by this process' own decision.", labels=("account",)
        )
        repeats = CounterMetricFamily(
            "gateway_idempotency_repeats",
            "Requests for a call that was asked for before under the same key, by how that call stood.",
            labels=("account", "standing"),
        )
        for name, account in self.accounts.items():
            retries.add_metric((name,), account.retries_left.spent)
            for standing, count in account.ledger.repeats.items():
                repeats.add_metric((name, standing), count)
            places.add_metric((name, "under_way"), account.bulkhead.in_use)
            places.add_metric((name, "waiting"), account.bulkhead.waiting)
            paused.add_metric((name,), account.bulkhead.breaker.state != "closed")
        yield places
        yield paused
        yield retries
        yield repeats

    def _limits(self) -> Iterable[Metric]:
        labels = ("account", "policy", "mode")
        refused = CounterMetricFamily(
            "gateway_limit_refused", "Calls a limit refused, or in shadow would have refused, by this process.", labels=labels
        )
        away = GaugeMetricFamily("gateway_degraded", "1 while Redis is away and limits are local.", labels=("account",))
        degraded = CounterMetricFamily(
            "gateway_degraded_calls", "Calls that were admitted without Redis, by this process.", labels=("account",)
        )
        for name, account in self.accounts.items():
            for (policy, shadow), count in account.ledger.refusals.items():
                refused.add_metric((name, policy, "shadow_deny" if shadow else "deny"), count)
            away.add_metric((name,), account.ledger.down)
            degraded.add_metric((name,), account.ledger.degraded)
        yield refused
        yield away
        yield degraded


def _packed(metric: Metric) -> _Family:
    samples = [_Sample(sample.name, dict(sample.labels), float(sample.value)) for sample in metric.samples]
    return _Family(metric.name, metric.documentation, metric.type, samples)


def _merged(views: Iterable[list[_Family]]) -> Iterable[Metric]:
    """Yield the families of several workers as one: what is counted is summed, of what is so the highest is told."""
    families: dict[str, _Family] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for family in (family for view in views for family in view):
        families.setdefault(family.name, family)
        known = values.setdefault(family.name, {})
        summed = family.type == "counter" or family.name in _SUMMED
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            known[key] = known.get(key, 0.0) + sample.value if summed else max(known.get(key, sample.value), sample.value)
    for name, family in families.items():
        metric = Metric(name, family.documentation, family.type)
        for (sample_name, labels), value in values[name].items():
            metric.add_sample(sample_name, dict(labels), value)
        yield metric
