"""What Prometheus reads: when keys end, how credentials and limits stand, which issuers' keys are to be had."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from gateway.addresses import is_within
from gateway.calling import Account
from gateway.identities import Identities


@dataclass(frozen=True, slots=True, eq=False)
class Metrics(Collector):
    """One process' view; what it says is the same in every process but for `rejected`."""

    identities: Identities
    accounts: Mapping[str, Account]
    networks: tuple[str, ...]
    """That may read them."""
    clock: Callable[[], float]
    """Unix seconds."""

    async def answer(self, request: Request) -> Response:
        """Answer in Prometheus' text format; 403 from elsewhere."""
        # The connection's own address: a header is no reason to show who has keys here.
        if request.client is None or not is_within(request.client.host, self.networks):
            return Response("not from this network; see server.metrics_networks\n", 403, media_type="text/plain")
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges."""
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
        for name, account in self.accounts.items():
            places.add_metric((name, "under_way"), account.bulkhead.in_use)
            places.add_metric((name, "waiting"), account.bulkhead.waiting)
            paused.add_metric((name,), account.bulkhead.breaker.state != "closed")
        yield places
        yield paused

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
