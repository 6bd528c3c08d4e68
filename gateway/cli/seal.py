"""`gateway audit`: seals the trail, verifies it, and proves single records to others."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress

from gateway.cli.opened import operator, read_settings, with_store
from gateway.config import Settings
from gateway.embedded import make_folder
from gateway.errors import Refusal
from gateway.ledger.connect import FAULTS
from gateway.ledger.names import KEYS_TAG
from gateway.opened import Opened, UsageError, instant
from gateway.stores import archive_folder
from gateway.telemetry import Logger, make_logger
from gateway.trail.archive import CHECKPOINT, PUBLIC_KEY, Archive, ArchiveError
from gateway.trail.copies import Copies, CopyError
from gateway.trail.note import NoteError, PublicKey, Signer
from gateway.trail.prove import ProofError, check_proof, prove_request
from gateway.trail.seal import Sealed, Sealer
from gateway.trail.verify import Report, verify
from gateway.vault import read_secret

_NAME: Final = "masking-gateway"
_SIGNING_KEY: Final = "signing.key"
_EVERY_SECONDS: Final = 1.0
_IDLE_LOG_SECONDS: Final = 60.0
_AGAIN_SECONDS: Final = 5.0
_KIND_WORDS: Final = {"altered": "ALTERED", "incomplete": "INCOMPLETE", "note": "note"}


def add_seal(commands: Any, configured: argparse.ArgumentParser) -> None:
    """Add the subcommands to `gateway audit`."""
    command = commands.add_parser("seal", parents=[configured], help="seal the trail, for ever; one sealer for all gateways")
    command.add_argument("--once", action="store_true", help="seal what there is, and end")
    command.add_argument("--beside", type=int, metavar="PID", help="end when the process that started this one has ended")
    command.set_defaults(run=_seal)

    command = commands.add_parser("signing-key", help="make a sealer's key; the public one is for whoever verifies")
    command.add_argument("--name", default=_NAME, help="who signs, as checkpoints say")
    command.add_argument("file", type=Path, help="where the key goes; the public one is printed")
    command.set_defaults(run=_signing_key)

    given = argparse.ArgumentParser(add_help=False, parents=[configured])
    given.add_argument("--archive", type=Path, metavar="FOLDER", help="the sealed trail; that of the settings if not given")
    given.add_argument("--public-key", metavar="KEY", help="the sealer's public key, or a file with it")

    command = commands.add_parser(
        "verify", parents=[given], help="0: the sealed trail is sound; 1: altered; 2: incomplete; 3: it could not be looked at"
    )
    command.add_argument("--since", metavar="WHEN", help="read only what may be as new; the rest by its hashes")
    command.add_argument("--checkpoint", type=Path, metavar="FILE", help="an older one: the trail must only have grown since")
    command.add_argument("--proof", type=Path, metavar="FILE", help="check what `prove` wrote, with the public key alone")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=_verify)

    command = commands.add_parser("prove", parents=[given], help="write the proof that a request's records are sealed")
    command.add_argument("request_id")
    command.set_defaults(run=_prove)

    command = commands.add_parser("close", parents=[configured], help="declare that a writer and its journal are lost")
    command.add_argument("writer")
    command.add_argument("--why", required=True)
    command.set_defaults(run=_close)


def _seal(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        settings = opened.settings
        log = make_logger(settings.log.level).of("trail")
        signer = _signer(settings, opened.folder)
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        folder = archive_folder(settings, os.environ)
        with await _opened_archive(folder, log, stopping, arguments) as archive:
            (folder / PUBLIC_KEY).write_text(f"{signer.public}\n", encoding="utf-8")
            async with opened.client() as client:
                accounts = (*settings.accounts, KEYS_TAG)
                hours, days = settings.audit.stream_hours, settings.audit.keep_days
                record = opened.registry.record
                sealer = Sealer(client, accounts, archive, signer, hours * 3600, time.time, record, days * 86_400)
                async with _copied(settings, folder, log):
                    await _seal_for_ever(sealer, log, stopping, arguments)
        return 0

    return with_store(arguments, work)


def _copied(settings: Settings, folder: Path, log: Logger) -> AbstractAsyncContextManager[None]:
    """Return what keeps the copy of the trail up to date, if there is to be one. Raises: UsageError."""
    audit = settings.audit
    if not audit.copy_url:
        return nullcontext()

    def tell(wrong: CopyError | None) -> None:
        if wrong is None:
            log.info("trail.copied_again")
        else:
            log.error("trail.not_copied", why=str(wrong))

    try:
        return Copies(audit.copy_url, audit.copy_endpoint or None).following(folder, tell)
    except CopyError as error:
        raise UsageError(f"audit.copy_url: {error}") from None


async def _opened_archive(folder: Path, log: Logger, stopping: asyncio.Event, arguments: argparse.Namespace) -> Archive:
    """Return the archive, once no other process has it."""
    while True:
        try:
            return Archive(folder)
        except ArchiveError as error:
            if arguments.once or stopping.is_set() or _orphaned(arguments):
                raise
            log.warning("trail.waits", why=str(error))
            await _pause(stopping, _AGAIN_SECONDS)


async def _seal_for_ever(sealer: Sealer, log: Logger, stopping: asyncio.Event, arguments: argparse.Namespace) -> None:
    logged_at, broken = 0.0, ""
    while True:
        began, sealed, last = time.monotonic(), None, arguments.once or stopping.is_set() or _orphaned(arguments)
        try:
            sealed = await sealer.seal()
            broken = ""
        except (*FAULTS, Refusal) as error:
            if arguments.once:
                raise
            if broken != type(error).__name__:
                broken = type(error).__name__
                log.error("trail.not_sealed", error=broken)  # noqa: TRY400 - no traceback: it may tell what the log must not
        if sealed is not None:
            logged_at = _told(sealed, log, logged_at)
        if sealed is not None and sealed.more:
            continue
        if last:
            break
        if not stopping.is_set():
            await _pause(stopping, max(0.0, _EVERY_SECONDS - (time.monotonic() - began)))
    if not broken:
        await sealer.aclose()


def _told(sealed: Sealed, log: Logger, logged_at: float) -> float:
    for alarm in sealed.alarms:
        log.error("trail.unsound", why=alarm)
    if not sealed.added and time.monotonic() - logged_at < _IDLE_LOG_SECONDS:
        return logged_at
    # Not only a convenience: a checkpoint that has left the machine is one that nobody can roll back.
    log.info("trail.sealed", size=sealed.size, added=sealed.added, checkpoint=sealed.note)
    return time.monotonic()


async def _pause(stopping: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        pass


def _orphaned(arguments: argparse.Namespace) -> bool:
    return arguments.beside is not None and os.getppid() != arguments.beside


def _signer(settings: Settings, folder: Path) -> Signer:
    """Return the sealer's key; in the state folder one is made if none is set. Raises: UsageError, SecretUnreadable."""
    try:
        if settings.audit.signing_key is not None:
            return Signer.parse(read_secret(settings.audit.signing_key, os.environ).reveal())
        path = folder / _SIGNING_KEY
        if not path.exists():
            make_folder(folder)  # A sealer may be the first on its machine.
            _write_key(path, Signer.generate(_NAME))
        return Signer.parse(path.read_text(encoding="utf-8"))
    except NoteError as error:
        raise UsageError(f"audit.signing_key: {error}; make one with `gateway audit signing-key FILE`") from None


def _write_key(path: Path, signer: Signer) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(signer.text() + "\n")


def _signing_key(arguments: argparse.Namespace) -> int:
    try:
        signer = Signer.generate(arguments.name)
        _write_key(arguments.file, signer)
    except NoteError as error:
        raise UsageError(f"--name: {error}") from None
    except FileExistsError:
        raise UsageError(f"{arguments.file} exists; a key is never overwritten") from None
    print(signer.public)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    try:
        if arguments.proof is not None:
            return _check_proof(arguments)
        folder, key = _archive(arguments), _public_key(arguments)
        older = arguments.checkpoint.read_text(encoding="utf-8") if arguments.checkpoint is not None else None
        report = _verified(folder, key, older, instant("--since", arguments.since))
    except (UsageError, OSError, UnicodeDecodeError) as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 3
    _print_report(report, as_json=arguments.json)
    return report.status


def _verified(folder: Path, key: PublicKey, older: str | None, since: float | None) -> Report:
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("records", total=None)
        return verify(
            folder, key, older=older, since=since, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )


def _print_report(report: Report, *, as_json: bool) -> None:
    at = report.checkpoint.at if report.checkpoint is not None else None
    verdict = ("sound", "altered", "incomplete")[report.status]
    if as_json:
        findings = [{"kind": found.kind, "message": found.message} for found in report.findings]
        print(json.dumps({
            "verdict": verdict, "records": report.records, "writers": report.writers, "checkpoint_at": at,
            "counts": report.counts, "findings": findings,
        }))  # fmt: skip
        return
    for found in report.findings:
        print(f"{_KIND_WORDS[found.kind]}  {found.message}")
    for kind, count in report.counts.items():
        told = sum(found.kind == kind for found in report.findings)
        if count > told:
            print(f"… and {count - told:,} more of kind {kind}")
    print(f"{verdict}: {report.records:,} records of {report.writers:,} writers, sealed up to {at or 'nobody knows when'}")


def _check_proof(arguments: argparse.Namespace) -> int:
    try:
        document = json.loads(arguments.proof.read_bytes())
        proved = check_proof(document, _public_key(arguments))
    except (ProofError, ValueError, RecursionError) as error:
        print(f"ALTERED  {error if isinstance(error, ProofError) else 'it is no JSON'}")
        return 1
    for one in proved:
        sys.stdout.write(f"{one.record.decode(errors='replace')}\n")
    print(f"sound: {len(proved)} records are in the sealed trail", file=sys.stderr)
    return 0


def _prove(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        try:
            proof = prove_request(opened.sealed, arguments.request_id)
        except ProofError as error:
            raise UsageError(str(error)) from None
        if proof is None:
            print(f"gateway: no sealed record has the request id {arguments.request_id}", file=sys.stderr)
            return 1
        print(json.dumps(proof, indent=1))
        return 0

    return with_store(arguments, work)


def _close(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        ledgers = [await opened.ledger(account) for account in opened.accounts(None)]
        for ledger in ledgers:
            closed = await ledger.close_lost(arguments.writer, operator(), arguments.why)
            if closed is not None:
                print(f"{arguments.writer} is closed; {closed} calls of it have an unknown outcome")
                return 0
        raise UsageError(f"no account knows a writer {arguments.writer} that is open; see `gateway audit verify`")

    return with_store(arguments, work)


def _archive(arguments: argparse.Namespace) -> Path:
    if arguments.archive is not None:
        folder: Path = arguments.archive
    else:
        settings, _ = read_settings(arguments, beside_demo=True)
        folder = archive_folder(settings, os.environ)
    if not (folder / CHECKPOINT).exists():
        raise UsageError(f"there is no sealed trail in {folder}: see `gateway audit seal`, or pass --archive FOLDER")
    return folder


def _public_key(arguments: argparse.Namespace) -> PublicKey:
    given = arguments.public_key
    try:
        if given is None:
            path = _archive(arguments) / PUBLIC_KEY
            print(f"gateway: by the archive's own {path}; pass --public-key with one you keep elsewhere", file=sys.stderr)
            return PublicKey.parse(path.read_text(encoding="utf-8"))
        return PublicKey.parse(Path(given).read_text(encoding="utf-8") if Path(given).is_file() else given)
    except NoteError as error:
        raise UsageError(f"--public-key: {error}") from None
