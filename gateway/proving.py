"""Proves a vendor credential by a call that can do nothing: both parties are one number, which the vendor refuses (1501).

For operators, and for the gateway itself once every credential of an account is rejected: no caller's call is risked
then, and a gateway that is taken out of service for it still finds out that it may serve again. Each such call is
charged to the account's quota and recorded like any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.audit import change
from gateway.calling import Account, Observer
from gateway.credentials import Exchange
from gateway.errors import Problem, Refusal
from gateway.model import OPERATIONS, Admission, Arrival, Attempt, Bindings, Call, Caller, Outdated, PhoneNumber, VendorCredential
from gateway.normalisation import normalise, outcome_of
from gateway.slots import is_rejection, shows_acceptance

PROVING: Final = "proving"
"""Stands where a key's id stands."""
_NOBODY: Final = PhoneNumber("910000000000", "+910000000000", "IN")
"""Nobody's number."""
_DECIDED_BY_NO_KEY: Final = 2**53
"""Stands for the epoch of the keys, none of which is too old for such a call."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What the vendor made of a credential."""

    good: bool
    said: str
    """In a few words."""


@dataclass(frozen=True, slots=True)
class Prover:
    """Proves the credentials of one account."""

    name: str
    account: Account
    exchange: Exchange
    clock: Callable[[], float]
    """Unix seconds."""
    new_id: Callable[[], str]
    """Makes a request id."""

    async def prove(self, credential: VendorCredential, operator: str) -> Proof:
        """Make one recorded call with a credential. Raises: Refusal `ledger_unavailable`."""
        auditor, ledger = self.account.auditor, self.account.ledger
        caller = Caller(f"operator:{operator}", PROVING, Bindings())
        call = Call(caller, self.name, OPERATIONS[0], {"m1": _NOBODY, "m2": _NOBODY}, expiry_duration=-1)
        arrival = Arrival(self.new_id(), self.clock(), b"")
        attempt = Attempt(1, credential.slot, credential.version)
        policies = self.account.policies
        while True:
            intent = auditor.intent(arrival, call, attempt)
            charges = policies.draw_again(caller.principal, call.operation)
            admission = await self.account.ask(call, charges, intent, _DECIDED_BY_NO_KEY, self.clock())
            if not isinstance(admission, Outdated):
                break
            await self.account.catch_up(admission)
        if not isinstance(admission, Admission):
            return Proof(False, "not proved (the account's quota is used up)")
        said: Problem | None = None
        try:
            request = self.exchange.exchange(admission, credential)
            outcome = normalise(await self.account.upstream.forward(request), request, call, arrival.request_id)
        except Refusal as refusal:
            outcome, said = outcome_of(refusal, arrival.request_id), refusal.problem
        ledger.settle(auditor.outcome(arrival, admission, outcome, self.clock(), attempt))
        if said is None or shows_acceptance(said):
            return Proof(True, "good")
        return Proof(False, f"{'rejected' if is_rejection(said) else 'not proved'} ({said.slug})")

    async def watch(self, pause_seconds: float, observer: Observer) -> None:
        """While every credential counts as rejected, prove them again and again, for ever; to be cancelled."""
        slots, vault = self.account.slots, self.account.vault
        while True:
            await asyncio.sleep(pause_seconds)
            if not slots.exhausted(vault.loaded):
                continue
            for credential in vault.loaded.values():
                try:
                    await self._look_again(credential, observer)
                except Refusal:
                    break  # What cannot be recorded now is not sent.

    async def _look_again(self, credential: VendorCredential, observer: Observer) -> None:
        slots = self.account.slots
        if not (await self.prove(credential, "gateway")).good or not slots.accepted(credential):
            return
        observer.alarm("credential.accepted_again", account=self.name, slot=credential.slot, version=credential.version)
        if slots.is_active_rejected(self.account.vault.loaded):
            record = change(
                "slot.switched", at=self.clock(), request_id=self.new_id(), account=self.name, operator="gateway",
                slot=credential.slot, credential=credential.version,
            )  # fmt: skip
            slots.active = await self.account.ledger.switch(slots.active, credential.slot, record)
