"""Reports every fault of a configuration at once: its text, its secrets, Redis, and the vendor's address."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import httpx
from redis.exceptions import RedisError

from gateway import config, embedded, settings_file
from gateway.app import jwks_sources
from gateway.config import ConfigError, Fault, SecretReference, Settings
from gateway.jwks import Jwks
from gateway.ledger.connect import connect
from gateway.model import SLOTS, UNSET_PATH
from gateway.telemetry import Logger
from gateway.vault import SecretUnreadable, open_to_others, read_secret

_ANSWER_SECONDS = 3.0
_DURABLE = {"appendonly": "yes", "maxmemory-policy": "noeviction"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    level: Literal["fault", "warning", "note"]
    path: str
    message: str
    line: int | None = None
    """Line of the configuration file, where the setting stands in it."""

    def __str__(self) -> str:
        place = f"{self.path} (line {self.line})" if self.line else self.path
        return f"{self.level}: {place}: {self.message}"


def check(path: Path, environ: Mapping[str, str], *, online: bool) -> list[Finding]:
    """Return every finding. Online, Redis and the vendor's address are asked too; the vendor is not called."""
    try:
        settings = config.parse(settings_file.document(path), environ)
    except ConfigError as error:
        lines = settings_file.lines_of(path)
        return [Finding("fault", fault.path, fault.message, settings_file.line_of(fault.path, lines)) for fault in error.faults]
    lines = settings_file.lines_of(path)
    findings = [
        *_secrets(settings, environ),
        *_extras(settings),
        *_folder(settings, environ),
        *asyncio.run(_issuers(settings, online=online)),
    ]
    if online:
        findings += asyncio.run(_online(settings, environ))
    return [Finding(found.level, found.path, found.message, settings_file.line_of(found.path, lines)) for found in findings]


def start_faults(settings: Settings, environ: Mapping[str, str], log: Logger) -> None:
    """Raise what must not wait for the first call, and warn of the rest. Raises: ConfigError."""
    findings = [*_secrets(settings, environ), *_extras(settings)]
    for found in findings:
        if found.level == "warning":
            log.warning("secret.found", path=found.path, message=found.message)
    faults = tuple(Fault(found.path, found.message) for found in findings if found.level == "fault")
    fatal = tuple(fault for fault in faults if not _spared(fault.path, faults, settings))
    if fatal:
        raise ConfigError(fatal)
    for fault in faults:
        log.error("secret.found", path=fault.path, message=fault.message)


def _spared(path: str, faults: tuple[Fault, ...], settings: Settings) -> bool:
    """Say whether a fault is of one slot of an account while its other slot is whole: that one can serve."""
    for name, account in settings.accounts.items():
        for slot, other in zip(SLOTS, reversed(SLOTS), strict=True):
            if path.startswith(f"accounts.{name}.{slot}.") and account.slot(other).given:
                return not any(fault.path.startswith(f"accounts.{name}.{other}.") for fault in faults)
    return False


def durability(settings: Settings, environ: Mapping[str, str], log: Logger) -> None:
    """Warn of a Redis that may lose records, or refuse it where `audit.strict` says so. Raises: ConfigError."""
    findings = asyncio.run(_redis(settings, environ))
    for found in findings:
        log.warning("redis.found", level_found=found.level, path=found.path, message=found.message)
    if settings.audit.strict and findings:
        raise ConfigError(tuple(Fault(found.path, found.message) for found in findings))


def _secrets(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    findings = []
    for path, reference in _references(settings):
        try:
            secret = read_secret(reference, environ)
        except SecretUnreadable as error:
            findings.append(Finding("fault", path, str(error)))
            continue
        if path == "audit.pseudonym_key" and len(secret.reveal()) < 32:
            findings.append(Finding("fault", path, "is shorter than 32 characters: make one with `openssl rand -hex 32`"))
        if reference.source == "file" and open_to_others(reference.target[0]):
            findings.append(
                Finding("warning", path, "its file can be read by everyone on this machine, or written by others: chmod 600")
            )
    if settings.audit.pseudonym_key is None and (settings.redis.url or settings.redis.sentinels):
        findings.append(
            Finding(
                "fault",
                "audit.pseudonym_key",
                "is missing; replicas on one Redis need the same one, "
                'e.g. { file = "/run/secrets/pseudonym_key" } made with `openssl rand -hex 32`',
            )
        )
    return findings


def _extras(settings: Settings) -> list[Finding]:
    if settings.tracing.endpoint:
        try:
            import_module("gateway.tracing")
        except ImportError:
            return [Finding("fault", "tracing.endpoint", "needs more packages: pip install 'masking-gateway[otel]'")]
    return []


def _references(settings: Settings) -> list[tuple[str, SecretReference]]:
    named = [
        (f"accounts.{name}.{slot}.{part}", getattr(account.slot(slot), part))
        for name, account in settings.accounts.items()
        for slot in SLOTS
        for part in ("ssid", "user_id", "token")
    ]
    named += [("redis.password", settings.redis.password), ("audit.pseudonym_key", settings.audit.pseudonym_key)]
    named += [(f"tracing.headers.{name}", reference) for name, reference in settings.tracing.headers]
    return [(path, reference) for path, reference in named if reference is not None]


def _folder(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    try:
        embedded.make_folder(embedded.state_folder(settings.server.state_dir, environ))
    except embedded.EmbeddedError as error:
        return [Finding("fault", "server.state_dir", str(error))]
    return []


async def _online(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    vendors = [finding for account in settings.accounts for finding in await _vendor(settings, account)]
    return [*await _redis(settings, environ), *vendors]


async def _redis(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    if not settings.redis.url and not settings.redis.sentinels:
        return []
    try:
        password = read_secret(settings.redis.password, environ) if settings.redis.password else None
        connection = connect(settings.redis, password, read_seconds=_ANSWER_SECONDS)
    except (SecretUnreadable, ValueError, OSError) as error:
        return [Finding("fault", "redis", f"cannot be connected: {type(error).__name__}")]
    try:
        await connection.client.ping()
    except (RedisError, OSError, ValueError) as error:
        await connection.aclose()
        return [Finding("fault", "redis", f"does not answer ({type(error).__name__}): check address, password and TLS")]
    findings = []
    for name, wanted in _DURABLE.items():
        try:
            kept = await connection.client.config_get(name)
            value = kept.get(name, kept.get(name.encode(), b""))
            found = value.decode() if isinstance(value, bytes) else str(value)
        except RedisError:
            findings.append(Finding("warning", "redis", f"does not tell '{name}'; make sure that it is '{wanted}'"))
            continue
        if found != wanted:
            findings.append(
                Finding("warning", "redis", f"'{name}' is '{found}', so acknowledged records can be lost; set it to '{wanted}'")
            )
    await connection.aclose()
    return findings


async def _issuers(settings: Settings, *, online: bool) -> list[Finding]:
    """Read the issuers' public keys as the gateway would; from addresses only where the network may be asked."""
    sources = {name: source for name, source in jwks_sources(settings).items() if online or source.file}
    jwks = Jwks(sources, lambda *_: None)
    await jwks.open()
    await jwks.aclose()
    return [
        Finding("fault", f"issuers.{name}.{'jwks_file' if sources[name].file else 'jwks_url'}", f"cannot be used: {why}")
        for name, why in jwks.problems().items()
    ]


async def _vendor(settings: Settings, account: str) -> list[Finding]:
    upstream, brand = settings.upstream, settings.accounts[account].brand
    verify = ssl.create_default_context(cafile=upstream.ca_file or None)
    try:
        async with httpx.AsyncClient(verify=verify, trust_env=False, timeout=upstream.connect_timeout_ms / 1000) as client:
            await client.options(brand + UNSET_PATH)
    except (httpx.TransportError, OSError) as error:
        return [
            Finding(
                "fault",
                f"accounts.{account}.brand",
                f"cannot be reached ({type(error).__name__}): check address, network and certificate",
            )
        ]
    return []
