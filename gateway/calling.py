"""An admitted call is made: once more with the other credential where the vendor rejects the first, or where it was not reached.

What did nothing, or does no more when it is done twice, may be made again; to the account's quota and to the trail each try is
a call of its own.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from gateway.admission import Live, Policies
from gateway.audit import Auditor, Record, abort, change
from gateway.bulkhead import Bulkhead, Place
from gateway.credentials import Exchange
from gateway.errors import Problem, Refusal
from gateway.model import (
    Admission,
    Arrival,
    Attempt,
    Call,
    Charge,
    Once,
    Outcome,
    Outdated,
    Repeated,
    Slot,
    UpstreamAnswer,
    UpstreamRequest,
    VendorCredential,
    Verdict,
)
from gateway.normalisation import normalise, outcome_of
from gateway.retries import Budget, Retries, worth_another_try
from gateway.slots import Slots, is_rejection, shows_acceptance

_HURRIED = 0.8
"""Share of a caller's time; a try that took more of it was ended by the caller's time, or nearly."""
_NOBODYS = "none"
"""Request id of a change that no one request asked for."""


class Ledger(Protocol):
    """Where charges and records of one account are kept."""

    async def admit(
        self, call: Call, charges: tuple[Charge, ...], intent: Record, epoch: int, active: Slot | None, live: Live
    ) -> Admission | Verdict | Outdated | Repeated:
        """Charge every limit and record the intent, or neither.

        Returns the admission, the verdict that refused, what changed since the call was decided, or that it was made before.
        Raises: Refusal `ledger_unavailable`, `signature_replayed`.
        """

    async def switch(self, before: Slot | None, after: Slot, record: Record) -> Slot:
        """Make a slot the active one everywhere, if `before` still is. Returns the active one."""

    async def live(self) -> Live:
        """Return what was changed of the limits. Raises: Refusal `ledger_unavailable`."""

    def settle(self, record: Record, held: Held | None = None, claimed: Claimed | None = None) -> None:
        """Take what closes a call to be recorded, and its places and its key back; no caller waits, and nothing is lost."""


class Upstream(Protocol):
    """The vendor's API."""

    async def forward(self, request: UpstreamRequest, within_seconds: float = math.inf) -> UpstreamAnswer:
        """Send one request, and wait no longer. Raises: Refusal for every way of getting no answer."""


class Vault(Protocol):
    """Where an account's credentials are kept."""

    @property
    def loaded(self) -> Mapping[Slot, VendorCredential]:
        """The credentials there are."""


class Observer(Protocol):
    """What is told of each record, for log and metrics."""

    def recorded(self, record: Record) -> None:
        """Note one record."""

    def ended(self, record: Record) -> None:
        """Note the last record of a request."""

    def alarm(self, event: str, **facts: str) -> None:
        """Note what somebody should look at."""

    def failed(self, request_id: str, error: Exception) -> None:
        """Note an error nobody foresaw."""


@dataclass(frozen=True, slots=True)
class Held:
    """The places that a call takes among those under way, from its first try to its last."""

    holder: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Claimed:
    """The idempotency key that a call claimed, and what becomes of it."""

    once: Once
    """With its owner."""
    answer: bytes
    """To be given again; empty: the key is free."""


@dataclass(frozen=True, slots=True)
class Account:
    """Everything of one account at the vendor; what befalls one does not touch another."""

    policies: Policies
    auditor: Auditor
    ledger: Ledger
    vault: Vault
    slots: Slots
    upstream: Upstream
    bulkhead: Bulkhead
    retries_left: Budget = field(default_factory=Budget)

    async def ask(
        self, call: Call, charges: tuple[Charge, ...], intent: Record, epoch: int, at: float
    ) -> Admission | Verdict | Outdated | Repeated:
        """Put a call to the ledger, whichever slot is active; an intent that is not admitted is withdrawn.

        `at`: Unix seconds. Raises: Refusal `ledger_unavailable`.
        """
        try:
            answer = await self.ledger.admit(call, charges, intent, epoch, None, self.policies.live)
        except BaseException as error:
            self.withdraw(intent, error.problem.slug if isinstance(error, Refusal) else Problem.internal.slug, at)
            raise
        if not isinstance(answer, Admission):
            refused = Problem.quota_exceeded if isinstance(answer, Verdict) else Problem.idempotency_running
            self.withdraw(intent, "decided_anew" if isinstance(answer, Outdated) else refused.slug, at)
        return answer

    def withdraw(self, intent: Record, why: str, at: float) -> None:
        """Close an intent that was not admitted, if it was recorded."""
        if intent.seq >= 0:
            self.ledger.settle(abort(intent, why, at))

    async def catch_up(self, outdated: Outdated) -> None:
        """Learn what changed since a call was decided. Raises: Refusal `ledger_unavailable`."""
        self.slots.active = outdated.active or self.slots.active
        if outdated.limits != self.policies.live.version:
            self.policies.adopt(await self.ledger.live())


StillGood = Callable[[int], Awaitable[int | None]]


@dataclass(slots=True)
class Made:
    """One admitted call and how it is being made; changes where a second try takes the place of the first."""

    account: Account
    call: Call
    admission: Admission
    attempt: Attempt
    credential: VendorCredential
    held: Held
    place: Place
    ends_at: float | None = None
    """Unix seconds at which the caller stops waiting; None: it did not say."""
    until: float = math.inf
    """Seconds of the monotonic clock at which it is over, with all its tries."""


@dataclass(frozen=True, slots=True)
class Calling:
    """Makes admitted calls."""

    exchange: Exchange
    retries: Retries
    observer: Observer
    clock: Callable[[], float]
    """Unix seconds."""
    now: Callable[[], float]
    """A monotonic clock in seconds."""
    normalise: Callable[[UpstreamAnswer, UpstreamRequest, Call, str], Outcome] = normalise

    async def carry_out(self, arrival: Arrival, made: Made, still_good: StillGood) -> Outcome:
        """Return the outcome of a call the vendor carried out.

        `still_good(epoch)` returns the epoch of the keys, that one or later, by which the caller may still call, or None.
        Raises: Refusal for everything else; of several tries the last one's, or, where that one did nothing, the one's of which
        nobody knows whether it did.
        """
        began = self.now()
        made.until = began + self.retries.longest_seconds
        if made.ends_at is not None:
            made.until = min(made.until, began + made.ends_at - self.clock())
        made.account.retries_left.earn()
        doubtful: Refusal | None = None
        retried = 0
        while True:
            try:
                return await self._try(arrival, made, still_good)
            except Refusal as refusal:
                result = refusal.problem.value.result
                if result == "unknown":
                    doubtful = refusal
                if not await self._try_again(arrival, made, refusal, retried, self.now() - began, still_good):
                    # "It was not made" would be true of the last try alone.
                    raise (doubtful if doubtful is not None and result == "refused" else refusal) from None
            retried, began = retried + 1, self.now()

    async def _try(self, arrival: Arrival, made: Made, still_good: StillGood) -> Outcome:
        try:
            return await self._forward(arrival, made)
        except Refusal as refusal:
            return await self._second_chance(arrival, made, refusal, still_good)

    async def _try_again(
        self, arrival: Arrival, made: Made, refusal: Refusal, retried: int, took_seconds: float, still_good: StillGood
    ) -> bool:
        """Wait, then charge and record one more try, and put it in the place of the last; say whether it may be made."""
        if retried == self.retries.most or not worth_another_try(refusal.problem, made.call):
            return False
        if made.account.bulkhead.breaker.state != "closed":
            return False
        pause = self.retries.pause_seconds(retried)
        # One that takes as long as the last would not end in time.
        if self.now() + pause + took_seconds >= made.until or not made.account.retries_left.spend(self.now()):
            return False
        await asyncio.sleep(pause)
        try:
            return await self._admit_again(arrival, made, made.credential, refusal, still_good)
        except Refusal:  # Not to be recorded now, so not to be made.
            return False

    async def _forward(self, arrival: Arrival, made: Made) -> Outcome:
        began = self.now()
        left = made.until - began
        if left <= 0:
            raise Refusal(Problem.deadline_passed)
        request = self.exchange.exchange(made.admission, made.credential)
        try:
            answer = await made.account.upstream.forward(request, left)
            outcome = self.normalise(answer, request, made.call, arrival.request_id)
        except Refusal as refusal:
            # A vendor does not fail where a caller gives it no time.
            if made.ends_at is None or self.now() - began < left * _HURRIED:
                made.place.told(refusal.problem)
            if shows_acceptance(refusal.problem):
                self._accepted(made.account, made.call, made.credential)
            raise
        made.place.told(None)
        self._accepted(made.account, made.call, made.credential)
        return outcome

    async def _second_chance(self, arrival: Arrival, made: Made, refusal: Refusal, still_good: StillGood) -> Outcome:
        account, call, credential = made.account, made.call, made.credential
        if not account.slots.doubts(credential, refusal.problem, call.caller.principal, self.now()):
            raise refusal
        certain = is_rejection(refusal.problem)
        if certain:
            self._rejected(account, call, credential)
        other = account.slots.other(credential, account.vault.loaded)
        try:
            may = other is not None and await self._admit_again(arrival, made, other, refusal, still_good)
        except Refusal:  # Not to be recorded now, so not to be made.
            may = False
        if other is None or not may:
            raise refusal
        try:
            outcome = await self._forward(arrival, made)
        except Refusal as second:
            await self._weigh(account, call, (credential, refusal.problem), (other, second.problem))
            if certain and is_rejection(second.problem):
                raise Refusal(Problem.upstream_credentials_rejected, upstream_status=second.upstream_status) from None
            raise
        await self._weigh(account, call, (credential, refusal.problem), (other, None))
        return outcome

    async def _admit_again(
        self,
        arrival: Arrival,
        made: Made,
        other: VendorCredential,
        refusal: Refusal,
        still_good: StillGood,
    ) -> bool:
        """Charge and record one more try, and put it in the place of the last; say whether it may be made."""
        account = made.account
        attempt = Attempt(made.attempt.number + 1, other.slot, other.version)
        # The nonce was spent by the first try, and the key is this call's already.
        once = replace(made.call.once, owner=made.held.holder) if made.call.once is not None else None
        unsigned = replace(made.call, caller=replace(made.call.caller, nonce=None), once=once)
        epoch = await still_good(0)
        while epoch is not None:
            intent = account.auditor.intent(arrival, made.call, attempt)
            charges = account.policies.draw_again(made.call.caller.principal, made.call.operation)
            answer = await account.ask(unsigned, charges, intent, epoch, self.clock())
            if isinstance(answer, Verdict | Repeated):
                return False
            if isinstance(answer, Admission):
                self.observer.recorded(intent)
                first = account.auditor.outcome(
                    arrival, made.admission, outcome_of(refusal, arrival.request_id), self.clock(), made.attempt
                )
                account.ledger.settle(first)
                self.observer.recorded(first)
                made.admission, made.attempt, made.credential = answer, attempt, other
                return True
            await account.catch_up(answer)
            epoch = await still_good(answer.epoch)
        return False

    async def _weigh(
        self,
        account: Account,
        call: Call,
        first: tuple[VendorCredential, Problem],
        second: tuple[VendorCredential, Problem | None],
    ) -> None:
        """Learn from two answers to one call what they say of the two credentials; None: the call was carried out."""
        (credential, doubt), (other, problem) = first, second
        if problem is None or shows_acceptance(problem):
            if not is_rejection(doubt):  # The other one was taken, so it was the credential after all.
                self._rejected(account, call, credential)
            await self._switch_if_rejected(account, call, credential, other)
            return
        if is_rejection(problem):
            self._rejected(account, call, other)
        if not is_rejection(doubt):
            account.slots.parameters_were_wrong(call.caller.principal, self.now())

    def _accepted(self, account: Account, call: Call, credential: VendorCredential) -> None:
        if account.slots.accepted(credential):
            self.observer.alarm(
                "credential.accepted_again", account=call.account, slot=credential.slot, version=credential.version
            )

    def _rejected(self, account: Account, call: Call, credential: VendorCredential) -> None:
        if not account.slots.rejected(credential):
            return
        self.observer.alarm("credential.rejected", account=call.account, slot=credential.slot, version=credential.version)
        if account.slots.exhausted(account.vault.loaded):
            self.observer.alarm("credential.none_left", account=call.account)

    async def _switch_if_rejected(
        self, account: Account, call: Call, credential: VendorCredential, other: VendorCredential
    ) -> None:
        if account.slots.active != credential.slot or not account.slots.is_rejected(credential):
            return
        record = change(
            "slot.switched", at=self.clock(), request_id=_NOBODYS, account=call.account, operator="gateway",
            slot=other.slot, credential=other.version,
        )  # fmt: skip
        try:
            account.slots.active = await account.ledger.switch(credential.slot, other.slot, record)
        except Refusal:
            return  # The next call tries both credentials again, and then this.
        self.observer.alarm("credential.switched", account=call.account, slot=account.slots.active)
