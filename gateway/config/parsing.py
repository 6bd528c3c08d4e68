"""The whole document: read, and held against itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gateway.config.policies import policy_faults, with_built_in
from gateway.config.sections import Console, Oidc, Settings
from gateway.config.tables import ConfigError, Fault, read_table
from gateway.model import SLOTS


def parse(document: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Return the settings of a parsed TOML document.

    `GATEWAY_REDIS_URL` in `environ` fills an empty `redis.url`.
    Raises: ConfigError with every fault at once.
    """
    faults: list[Fault] = []
    if "quotas" in document:
        faults.append(Fault("quotas", "is now policies: write [policies.caller] for [quotas.caller]"))
    tables = {name: table for name, table in document.items() if name != "quotas"}
    settings: Settings | None = read_table(
        Settings, {**tables, "policies": with_built_in(document.get("policies", {}))}, "", faults
    )
    if settings is not None:
        faults.extend(_contradictions(settings))
    if faults or settings is None:
        raise ConfigError(tuple(faults))
    if not settings.redis.url and environ.get("GATEWAY_REDIS_URL"):
        merged = {**document, "redis": {**document.get("redis", {}), "url": environ["GATEWAY_REDIS_URL"]}}
        return parse(merged, {})
    return settings


def _contradictions(settings: Settings) -> list[Fault]:
    """Return what no single setting shows."""
    faults = [*_account_faults(settings), *_workload_faults(settings), *policy_faults(settings.policies, settings.accounts)]
    if settings.server.ops_port and settings.server.ops_port == settings.server.port:
        faults.append(Fault("server.ops_port", "must not be server.port"))
    faults.extend(_oidc_faults(settings.console))
    if settings.redis.cluster and settings.redis.sentinels:
        faults.append(Fault("redis.cluster", "cannot be true together with redis.sentinels"))
    if not all(re.fullmatch(r"[^:\s]+:\d{1,5}", sentinel) for sentinel in settings.redis.sentinels):
        faults.append(Fault("redis.sentinels", 'must be texts like "10.0.0.1:26379"'))
    if settings.audit.pseudonym_key_id in dict(settings.audit.pseudonym_keys):
        faults.append(
            Fault("audit.pseudonym_keys", f"names the current key, {settings.audit.pseudonym_key_id}: give that one another name")
        )
    if settings.upstream.send_traceparent and not settings.tracing.endpoint:
        faults.append(Fault("upstream.send_traceparent", "needs tracing.endpoint: without it there is no span to name"))
    if settings.upstream.read_timeout_ms > settings.upstream.total_timeout_ms:
        faults.append(Fault("upstream.read_timeout_ms", "must not be longer than upstream.total_timeout_ms"))
    if settings.server.finish_seconds * 1000 <= settings.upstream.longest_ms:
        faults.append(
            Fault(
                "server.drain_seconds",
                f"must be longer than server.lame_duck_seconds and {settings.upstream.longest_ms} ms, twice "
                "upstream.pool_timeout_ms and upstream.total_timeout_ms, or calls in flight are cut when the gateway stops",
            )
        )
    return faults


def _oidc_faults(console: Console) -> list[Fault]:
    oidc, here = console.oidc, "console.oidc"
    if not oidc.issuer:
        told = "is missing; without it nobody signs in by what else stands in this table"
        return [Fault(f"{here}.issuer", told)] if oidc != Oidc() else []
    faults = []
    if not oidc.client_id:
        faults.append(Fault(f"{here}.client_id", "is missing; it is the console's name at the provider"))
    if not console.public_url:
        told = "is missing; console.oidc needs it, since the provider sends people back to this address"
        faults.append(Fault("console.public_url", told))
    if not oidc.auditor and not oidc.operator:
        faults.append(Fault(f"{here}.operator", "is missing, like auditor; name groups in one of them, or nobody has a role"))
    if both := set(oidc.auditor) & set(oidc.operator):
        faults.append(Fault(f"{here}.auditor", f"names {', '.join(sorted(both))} like operator; a group has one role"))
    return faults


def _account_faults(settings: Settings) -> list[Fault]:
    faults = []
    if not settings.accounts:
        faults.append(Fault("accounts", "is missing; name the vendor account in a table like [accounts.main]"))
    for name, account in settings.accounts.items():
        for slot in SLOTS:
            credential, here = account.slot(slot), f"accounts.{name}.{slot}"
            if credential.ssid and (credential.user_id or credential.token):
                faults.append(Fault(here, "has both ssid and user_id or token; the vendor wants one form"))
            elif (credential.given or slot == SLOTS[0]) and not credential.ssid and not (credential.user_id and credential.token):
                faults.append(Fault(here, "is missing; give ssid, or user_id and token"))
    return faults


def _workload_faults(settings: Settings) -> list[Fault]:
    faults = [
        Fault(f"issuers.{name}", "give one of jwks_url and jwks_file")
        for name, issuer in settings.issuers.items()
        if bool(issuer.jwks_url) == bool(issuer.jwks_file)
    ]
    faults += [
        Fault(
            f"issuers.{name}.stale_seconds_max", "must be longer than max_age_seconds, or its tokens are refused between readings"
        )
        for name, issuer in settings.issuers.items()
        if issuer.stale_seconds_max <= issuer.max_age_seconds
    ]
    seen: set[tuple[str, str]] = set()
    for name, workload in settings.workloads.items():
        if workload.issuer not in settings.issuers:
            faults.append(Fault(f"workloads.{name}.issuer", f"there is no [issuers.{workload.issuer}]"))
        if (workload.issuer, workload.subject) in seen:
            faults.append(Fault(f"workloads.{name}.subject", "stands in another workload too"))
        seen.add((workload.issuer, workload.subject))
        faults.extend(
            Fault(f"workloads.{name}.accounts", f"there is no [accounts.{account}]")
            for account in workload.accounts
            if account not in settings.accounts
        )
    issuers = [issuer.issuer for issuer in settings.issuers.values()]
    faults.extend(Fault("issuers", f"two tables have the issuer {text}") for text in set(issuers) if issuers.count(text) > 1)
    return faults
