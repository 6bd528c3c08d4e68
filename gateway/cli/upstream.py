"""`gateway upstream`: see, prove and change which of an account's credentials is used."""

from __future__ import annotations

import argparse
import os
import secrets
import time
from dataclasses import dataclass
from typing import Any

from gateway import audit
from gateway.app import make_account, make_prover, make_vault
from gateway.cli.opened import operator, tell, with_store
from gateway.ledger.store import RedisLedger
from gateway.model import SLOTS, Slot, VendorCredential
from gateway.opened import Opened, UsageError
from gateway.proving import Proof
from gateway.stores import read_pseudonym_key
from gateway.trail.table import slot_table
from gateway.upstream import HttpUpstream
from gateway.vault import Vault


def add_upstream(parser: argparse.ArgumentParser, configured: argparse.ArgumentParser) -> None:
    """Add the subcommands to `gateway upstream`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, help_text in (
        ("list", _list, "show the slots of every account, and which is active"),
        ("check", _check, "prove credentials by a recorded call that can do nothing; status 1 if one is not good"),
        ("promote", _promote, "prove the credential that stands by, and make it the active one"),
        ("rollback", _rollback, "make the credential active again that was so before, without proving it"),
    ):
        command = commands.add_parser(name, parents=[configured], help=help_text)
        if name != "list":
            command.add_argument("--account", help="needed where there are several")
        if name == "check":
            command.add_argument("--slot", choices=SLOTS, help="both if not given")
        if name == "promote":
            command.add_argument("--unproved", action="store_true", help="do not prove it first")
        if name in ("list", "check"):
            command.add_argument("--json", action="store_true")
        command.set_defaults(run=run)


@dataclass(frozen=True, slots=True)
class _Desk:
    """One account, as an operator works on it."""

    opened: Opened
    account: str
    ledger: RedisLedger
    vault: Vault

    def row(self, slot: Slot, active: Slot, **more: Any) -> dict[str, Any]:
        """Return what is listed of a slot."""
        credential = self.vault.loaded.get(slot)
        return {
            "account": self.account,
            "slot": slot,
            "state": "active" if slot == active else "standby",
            "version": credential.version if credential else None,
            **more,
        }

    async def prove(self, credential: VendorCredential) -> Proof:
        """Make one recorded call with a credential."""
        settings = self.opened.settings
        upstream = HttpUpstream(settings.upstream, settings.accounts[self.account].brand)
        account = make_account(settings, self.account, self.opened.pseudonyms, self.ledger, self.vault, upstream)
        try:
            return await make_prover(settings, self.account, account).prove(credential, operator())
        finally:
            await upstream.aclose()

    async def switch(self, after: Slot, what: str) -> None:
        """Make a slot active everywhere, and record who did it."""
        credential = self.vault.loaded.get(after)
        record = audit.change(
            what,
            at=time.time(),
            request_id=secrets.token_hex(16),
            account=self.account,
            operator=operator(),
            slot=after,
            credential=credential.version if credential else None,
        )
        await self.ledger.switch(None, after, record)
        print(f"{self.account}: {after} is active, on every process from its next call on")


async def _desk(opened: Opened, account: str) -> _Desk:
    version_key = read_pseudonym_key(opened.settings, os.environ, opened.folder)
    vault = make_vault(opened.settings, account, os.environ, version_key)
    return _Desk(opened, account, await opened.ledger(account), vault)


async def _one(arguments: argparse.Namespace, opened: Opened) -> _Desk:
    return await _desk(opened, opened.one_account(arguments.account))


def _list(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        rows = []
        for account in opened.settings.accounts:
            desk = await _desk(opened, account)
            active = await desk.ledger.active()
            rows += [desk.row(slot, active) for slot in SLOTS if opened.settings.accounts[account].slot(slot).given]
        tell(rows, slot_table, as_json=arguments.json)
        return 0

    return with_store(arguments, work)


def _check(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        desk = await _one(arguments, opened)
        active = await desk.ledger.active()
        rows = []
        for slot in (arguments.slot,) if arguments.slot else SLOTS:
            credential = desk.vault.loaded.get(slot)
            if credential is None and not opened.settings.accounts[desk.account].slot(slot).given:
                if arguments.slot:
                    raise UsageError(f"--slot: [accounts.{desk.account}.{slot}] is empty")
                continue
            proof = await desk.prove(credential) if credential else Proof(False, "unreadable")
            rows.append(desk.row(slot, active, good=proof.good, said=proof.said))
        tell(rows, slot_table, as_json=arguments.json)
        return 0 if all(row["good"] for row in rows) else 1

    return with_store(arguments, work)


def _promote(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        desk = await _one(arguments, opened)
        after = _other(await desk.ledger.active())
        credential = desk.vault.loaded.get(after)
        if credential is None:
            raise UsageError(f"[accounts.{desk.account}.{after}] is empty or cannot be read: there is nothing to promote")
        if not arguments.unproved:
            proof = await desk.prove(credential)
            if not proof.good:
                raise UsageError(
                    f"{desk.account}: {after} is {proof.said}; nothing was changed (--unproved promotes it all the same)"
                )
        await desk.switch(after, "slot.promoted")
        return 0

    return with_store(arguments, work)


def _rollback(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        desk = await _one(arguments, opened)
        after = _other(await desk.ledger.active())
        if after not in desk.vault.loaded:
            raise UsageError(f"[accounts.{desk.account}.{after}] is empty or cannot be read: there is nothing to go back to")
        await desk.switch(after, "slot.rolled_back")
        return 0

    return with_store(arguments, work)


def _other(slot: Slot) -> Slot:
    return SLOTS[1 - SLOTS.index(slot)]
