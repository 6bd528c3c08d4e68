"""The composition root: builds every edge and stage from the settings, wires them, and owns opening and closing."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import __version__, docs, embedded
from gateway.audit import Auditor, change
from gateway.authentication import Authenticator
from gateway.bulkhead import Breaker, Bulkhead, State
from gateway.calling import Account, Calling, Upstream
from gateway.config import Settings
from gateway.counts import Counted, Requests, Timed
from gateway.credentials import Exchange
from gateway.endpoints import Check, Fallback, Health, Unset, publish
from gateway.errors import Problem, Refusal
from gateway.idempotency import Idempotency
from gateway.identities import Identities
from gateway.jwks import Jwks, JwksSettings
from gateway.keys import KeyEntry, KeyVersion
from gateway.ledger.registry import KeyRegistry
from gateway.ledger.store import RedisLedger, Serving
from gateway.metrics import FOLDER_VARIABLE, Metrics
from gateway.model import SLOTS, UNSET_PATH, Secret
from gateway.numbers import Pseudonyms
from gateway.openapi import describe_api
from gateway.pipeline import Pipeline
from gateway.proving import Prover
from gateway.retries import Retries
from gateway.routing import Router
from gateway.slots import Slots
from gateway.stores import make_ledger, make_policies, make_registry, read_pseudonym_key
from gateway.telemetry import Board, Logger, LogObserver, make_logger
from gateway.tokens import IssuerRules
from gateway.upstream import HttpUpstream
from gateway.validation import Validator
from gateway.vault import Vault, read_secret

if TYPE_CHECKING:
    from gateway.tracing import Tracing

_JWKS_SECONDS = 5.0
_PAUSE_SECONDS = 1.0


class Application(Starlette):
    """Starlette, past whose middleware and router the one call goes straight: they would cost it a tenth more."""

    def __init__(self, unset: ASGIApp, operators: ASGIApp, ops_port: int, requests: Requests, **options: Any) -> None:
        """`operators` answers what comes by the port `ops_port`, 0: none does; `options` are Starlette's."""
        super().__init__(**options)
        self.unset = unset
        self._operators = operators
        self._ops_port = ops_port
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan."""
        if scope["type"] == "http" and scope["server"][1] == self._ops_port:
            await self._operators(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == UNSET_PATH:
            self._requests.under_way += 1
            try:
                await self.unset(scope, receive, send)
            finally:
                self._requests.under_way -= 1
        else:
            await super().__call__(scope, receive, send)


def create_app(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    logger: Logger | None = None,
    clock: Callable[[], float] = time.time,
    leaving: Callable[[], bool] = lambda: False,
    http_refused: Mapping[str, int] = MappingProxyType({}),
    ops_port: int = 0,
) -> Starlette:
    """Return the gateway as an ASGI application; sockets are opened in its lifespan.

    `leaving` says whether the process is about to end, and so no longer ready; `http_refused` how many requests did not even
    come this far, by problem; what comes by the port `ops_port` gets operators' answers.

    `settings.redis.url` must be set: whoever starts the process starts the embedded server.
    Raises: SecretUnreadable, OSError.
    """
    log = logger or make_logger(settings.log.level)
    folder = embedded.state_folder(settings.server.state_dir, environ)
    pseudonym_key = read_pseudonym_key(settings, environ, folder)
    pseudonyms = Pseudonyms(pseudonym_key, settings.audit.pseudonym_key_id)
    serving = Serving(__version__, sha256(repr(settings).encode()).hexdigest()[:16])
    ledgers = {name: make_ledger(settings, name, environ, log, folder, serving) for name in settings.accounts}
    vaults = {
        name: make_vault(settings, name, environ, pseudonym_key, partial(_credential_changed, log.of("vault"), ledger))
        for name, ledger in ledgers.items()
    }
    tracing = make_tracing(settings, environ, log.of("tracing")) if settings.tracing.endpoint else None
    traceparent = tracing.traceparent if tracing is not None and settings.upstream.send_traceparent else None
    upstreams = {
        name: HttpUpstream(
            settings.upstream, account.brand, traceparent=traceparent, told=partial(_upstream_told, log.of("upstream"), name)
        )
        for name, account in settings.accounts.items()
    }
    timed = {name: Timed(upstream, time.monotonic) for name, upstream in upstreams.items()}
    accounts = {
        name: make_account(
            settings,
            name,
            pseudonyms,
            ledgers[name],
            vaults[name],
            timed[name],
            partial(_breaker_changed, log.of("upstream"), name),
        )
        for name in settings.accounts
    }
    identities = Identities(
        registry=make_registry(settings, environ),
        jwks=Jwks(jwks_sources(settings), partial(_issuer_changed, log.of("identities"))),
        settings=settings.keys,
        clock=clock,
        warn=partial(_key_ends, log.of("identities")),
    )
    requests = Requests()
    observer = Counted(LogObserver(log.of("calls")), requests, {name: ledger.ended for name, ledger in ledgers.items()})
    pipeline = Pipeline(
        body_bytes_max=settings.server.body_bytes_max,
        identities=identities,
        authenticator=make_authenticator(settings),
        router=Router({name: account.services for name, account in settings.accounts.items()}),
        validator=Validator(settings.validation),
        idempotency=Idempotency(pseudonyms),
        accounts=accounts,
        calling=Calling(Exchange(settings.upstream.number_format), make_retries(settings), observer, clock, time.monotonic),
        clock=clock,
    )
    if tracing is not None:
        pipeline = tracing.stepped(pipeline)

    shared = environ.get(FOLDER_VARIABLE)
    metrics = Metrics(
        identities, accounts, ledgers, vaults, timed, requests, http_refused, serving, settings.server.metrics_networks, clock,
        Path(shared) if shared else None,
    )  # fmt: skip
    provers = [make_prover(settings, name, account) for name, account in accounts.items()]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if tracing is not None:
                tracing.open()
                stack.push_async_callback(tracing.aclose)
            for ledger in ledgers.values():
                await ledger.open()
                # Closed last: what the calls in flight leave behind still has to be written.
                stack.push_async_callback(ledger.aclose)
            await identities.open()
            stack.push_async_callback(identities.aclose)
            for upstream in upstreams.values():
                stack.push_async_callback(upstream.aclose)
            endless: list[Callable[[], Awaitable[None]]] = [vault.watch for vault in vaults.values()]
            endless += [partial(prover.watch, settings.upstream.probe_seconds, observer) for prover in provers]
            endless += [identities.registry.count_for_ever, identities.warn_for_ever]
            endless += [
                metrics.watch,
                partial(_levels_kept_up, identities.registry, log.board),
                partial(_keys_kept_up, identities, ledgers),
                *(ledger.keep_up for ledger in ledgers.values()),
            ]
            for work in endless:
                stack.callback(asyncio.create_task(_kept_up(work, observer)).cancel)
            writers = {name: ledger.writer for name, ledger in ledgers.items()}
            log.info("gateway.opened", version=__version__, writers=writers)
            yield
            log.info("gateway.closing", writers=writers)

    fallback = Fallback(settings.server.cors_origins)
    unset = Unset(pipeline, settings.server, clock)
    document = describe_api(__version__)
    page = docs.render(document)
    health = _health(accounts, ledgers, vaults, identities, leaving)
    alive = [Route("/livez", health.live), Route("/readyz", health.ready)]
    refusing = {404: fallback.not_found, 405: fallback.method_not_allowed}
    return Application(
        unset if tracing is None else tracing.served(unset),
        Starlette(routes=[*alive, Route("/metrics", metrics.answer)], exception_handlers=refusing),
        ops_port,
        requests,
        routes=[
            Route(UNSET_PATH, unset),
            *alive,
            Route("/openapi.json", publish(json.dumps(document).encode(), "application/json")),
            Route(
                "/docs",
                publish(
                    page.html.encode(), "text/html", {"Content-Security-Policy": page.policy, "Referrer-Policy": "no-referrer"}
                ),
            ),
        ],
        exception_handlers=refusing,
        lifespan=lifespan,
    )


def make_account(
    settings: Settings,
    name: str,
    pseudonyms: Pseudonyms,
    ledger: RedisLedger,
    vault: Vault,
    upstream: Upstream,
    breaker_changed: Callable[[State], None] = lambda _: None,
) -> Account:
    """Return everything of one vendor account."""
    bounds = settings.upstream
    breaker = Breaker(bounds.breaker_calls, bounds.breaker_seconds, time.monotonic, breaker_changed)
    return Account(
        policies=make_policies(settings, name, pseudonyms),
        auditor=Auditor(name, pseudonyms),
        ledger=ledger,
        vault=vault,
        slots=Slots(settings.upstream.rejections_to_switch),
        upstream=upstream,
        bulkhead=Bulkhead(bounds.connections_max, bounds.waiting_max, bounds.pool_timeout_ms / 1000, breaker),
    )


def make_retries(settings: Settings) -> Retries:
    """Return how calls are tried again."""
    jitter = secrets.SystemRandom().random
    return Retries(settings.upstream.retries, settings.upstream.longest_ms / 1000, jitter)


def make_prover(settings: Settings, name: str, account: Account) -> Prover:
    """Return what proves the credentials of one vendor account."""
    return Prover(name, account, Exchange(settings.upstream.number_format), time.time, lambda: secrets.token_hex(16))


def make_authenticator(settings: Settings) -> Authenticator:
    """Return what tells who is calling."""
    rules = {
        issuer.issuer: IssuerRules(
            name, issuer.issuer, issuer.audience, issuer.algorithms, issuer.leeway_seconds, issuer.lifetime_seconds_max
        )
        for name, issuer in settings.issuers.items()
    }
    workloads = {(workload.issuer, workload.subject): (name, workload) for name, workload in settings.workloads.items()}
    return Authenticator(rules, workloads, settings.keys.signature_seconds, settings.keys.signature_hosts)


def make_tracing(settings: Settings, environ: Mapping[str, str], log: Logger) -> Tracing:
    """Return what makes spans of calls. Raises: SecretUnreadable, ImportError where the package's extra is missing."""
    from gateway.tracing import Tracing  # noqa: PLC0415 - where there are no spans, nothing of it is loaded

    def told(sent: bool) -> None:
        if sent:
            log.info("spans.sent_again")
        else:
            log.error("spans.not_sent")

    headers = {name: read_secret(reference, environ).reveal() for name, reference in settings.tracing.headers}
    return Tracing(settings, headers, told)


async def _kept_up(work: Callable[[], Awaitable[None]], observer: Counted) -> None:
    """Do what is to be done for ever, also after an error that nobody foresaw."""
    while True:
        try:
            await work()
        except Exception as error:
            observer.failed("none", error)
        await asyncio.sleep(_PAUSE_SECONDS)


async def _levels_kept_up(registry: KeyRegistry, board: Board) -> None:
    """Let live changes of the log's levels hold here, and end when they are to, also while Redis is away."""
    ends: dict[str, tuple[str, float]] = {}
    while True:
        with suppress(Refusal):
            ends = {
                name: (made.level, time.monotonic() + made.left_seconds) for name, made in (await registry.log_levels()).items()
            }
        board.adopt({name: level for name, (level, end) in ends.items() if end > time.monotonic()})
        await asyncio.sleep(_PAUSE_SECONDS)


async def _keys_kept_up(identities: Identities, ledgers: Mapping[str, RedisLedger]) -> None:
    """Read the keys again when they changed, also without a call: should Redis go away, they must not be old."""
    while True:
        await asyncio.sleep(_PAUSE_SECONDS)
        with suppress(Refusal):
            await identities.reach(max(ledger.epoch for ledger in ledgers.values()))


def make_vault(
    settings: Settings,
    account: str,
    environ: Mapping[str, str],
    version_key: Secret,
    changed: Callable[[str, str, str], None] = lambda *_: None,
) -> Vault:
    """Return one account's credentials, read once; `changed(slot, version, why not)` is told. Raises: SecretUnreadable."""
    slots = {slot: settings.accounts[account].slot(slot) for slot in SLOTS}
    return Vault(slots, environ, version_key, settings.upstream.command_seconds, changed)


def jwks_sources(settings: Settings) -> dict[str, JwksSettings]:
    """Return where the public keys of every issuer are."""
    return {
        name: JwksSettings(
            file=issuer.jwks_file,
            url=issuer.jwks_url,
            ca_file=issuer.jwks_ca_file,
            bearer_file=issuer.jwks_bearer_file,
            max_age_seconds=issuer.max_age_seconds,
            stale_seconds_max=issuer.stale_seconds_max,
            timeout_seconds=_JWKS_SECONDS,
        )
        for name, issuer in settings.issuers.items()
    }


def _credential_changed(log: Logger, ledger: RedisLedger, slot: str, version: str, why: str) -> None:
    account = ledger.account
    if why:
        log.error("credential.unreadable", account=account, slot=slot, why=why)
        return
    log.info("credential.loaded", account=account, slot=slot, version=version)
    record = change(
        "credential.loaded", at=time.time(), request_id=secrets.token_hex(16), account=account, operator="gateway",
        slot=slot, credential=version,
    )  # fmt: skip
    ledger.note(record)


def _upstream_told(log: Logger, account: str, said: int | Problem, seconds: float) -> None:
    if not log.debugs:
        return
    if isinstance(said, Problem):
        log.debug("upstream.not_answered", account=account, problem=said.slug, duration_ms=round(seconds * 1000, 3))
    else:
        log.debug("upstream.answered", account=account, upstream_status=said, duration_ms=round(seconds * 1000, 3))


def _breaker_changed(log: Logger, account: str, state: State) -> None:
    if state == "open":
        log.error("upstream.paused", account=account)
    elif state == "closed":
        log.info("upstream.resumed", account=account)


def _issuer_changed(log: Logger, name: str, good: bool, why: str) -> None:
    if good:
        log.info("issuer.read", issuer=name)
    else:
        log.error("issuer.unreadable", issuer=name, why=why)


def _key_ends(log: Logger, entry: KeyEntry, version: KeyVersion) -> None:
    log.warning(
        "key.ends_soon",
        service=entry.service,
        key_id=entry.key_id,
        key_version=version.number,
        expires_at=version.expires_at,
        replaced=version is not entry.versions[-1],
    )


class _NotReady(Exception):
    """An edge that a call needs is not there."""


class CredentialsRejected(_NotReady):
    """The vendor rejects every credential of an account."""


class UpstreamPaused(_NotReady):
    """The vendor fails most calls of an account."""


class Leaving(_NotReady):
    """The process is about to end."""


class JwksUnavailable(_NotReady):
    """An issuer's public keys are not to be had."""


async def _stays(leaving: Callable[[], bool]) -> None:
    if leaving():
        raise Leaving


def _health(
    accounts: Mapping[str, Account],
    ledgers: Mapping[str, RedisLedger],
    vaults: Mapping[str, Vault],
    identities: Identities,
    leaving: Callable[[], bool],
) -> Health:
    async def credential_good(name: str) -> None:
        if accounts[name].slots.exhausted(vaults[name].loaded):
            raise CredentialsRejected

    async def upstream_well(name: str) -> None:
        if accounts[name].bulkhead.breaker.state != "closed":
            raise UpstreamPaused

    async def secrets_readable(name: str) -> None:
        vaults[name].ping()

    async def journal_good(name: str) -> None:
        ledgers[name].journal.ping()

    async def issuer_ready(name: str) -> None:
        if name in identities.jwks.problems():
            raise JwksUnavailable

    parts: dict[str, dict[str, Check]] = {
        name: {"ledger": ledger.ready, "credential": partial(credential_good, name), "journal": partial(journal_good, name)}
        for name, ledger in ledgers.items()
    }
    noted: dict[str, Check] = {f"issuer.{name}": partial(issuer_ready, name) for name in identities.jwks.names}
    noted |= {f"account.{name}.secrets": partial(secrets_readable, name) for name in vaults}
    noted |= {f"account.{name}.upstream": partial(upstream_well, name) for name in accounts}
    noted |= {f"account.{name}.redis": ledger.ping for name, ledger in ledgers.items()}
    noted |= {f"account.{name}.upkeep": ledger.kept_up for name, ledger in ledgers.items()}
    noted["keys.redis"] = identities.registry.ping
    return Health({"process": partial(_stays, leaving), "keys": identities.registry.ready}, parts, noted)
