"""The chain: authenticate, route, validate, admit and record, exchange, forward, normalise, record, reply.

The field lists of `Pipeline` and `Account` are the architecture, read from top to bottom. This is the only place where
a refusal becomes an outcome, and the only place that knows every stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from gateway.admission import Policies, refuse_unless_admitted
from gateway.audit import Auditor, Record, change
from gateway.authentication import Authenticator, Known
from gateway.credentials import Exchange
from gateway.document import Document, read_document
from gateway.errors import Problem, Refusal
from gateway.model import (
    Admission,
    Arrival,
    Attempt,
    Call,
    Caller,
    Charge,
    Outcome,
    Outdated,
    Reply,
    Slot,
    UpstreamAnswer,
    UpstreamRequest,
    VendorCredential,
    Verdict,
)
from gateway.normalisation import normalise, outcome_of
from gateway.routing import Router
from gateway.slots import Slots, is_rejection, shows_acceptance
from gateway.validation import Validator

_TRIES = 3
"""At deciding by what is known, when it changes meanwhile."""
_NOBODYS = "none"
"""Request id of a change that no one request asked for."""


class Identities(Protocol):
    """Where what is known of callers is kept."""

    @property
    def known(self) -> Known:
        """The keys of callers and issuers, as last read."""

    async def refresh(self, stale: str) -> bool:
        """Read again what a refusal called stale; say whether it changed. Raises: Refusal `ledger_unavailable`."""

    async def reach(self, epoch: int) -> None:
        """Read the keys until they are of an epoch at least. Raises: Refusal `ledger_unavailable`."""

    def used(self, caller: Caller, at: float) -> None:
        """Count one request of a caller."""


class Ledger(Protocol):
    """Where charges and records of one account are kept."""

    async def admit(
        self, call: Call, charges: tuple[Charge, ...], intent: Record, epoch: int, active: Slot | None
    ) -> Admission | Verdict | Outdated:
        """Charge every quota and record the intent, or neither.

        Returns the admission, the verdict that refused, or what changed since the call was decided.
        Raises: Refusal `ledger_unavailable`, `signature_replayed`.
        """

    async def switch(self, before: Slot | None, after: Slot, record: Record) -> Slot:
        """Make a slot the active one everywhere, if `before` still is. Returns the active one."""

    def settle(self, record: Record) -> None:
        """Take an outcome or a refusal to be recorded; it is never lost, and no caller waits for it."""


class Upstream(Protocol):
    """The vendor's API."""

    async def forward(self, request: UpstreamRequest) -> UpstreamAnswer:
        """Send one request. Raises: Refusal for every way of getting no answer."""


class Vault(Protocol):
    """Where an account's credentials are kept."""

    @property
    def loaded(self) -> Mapping[Slot, VendorCredential]:
        """The credentials there are."""


class Observer(Protocol):
    """What is told of each record, for log and metrics."""

    def recorded(self, record: Record) -> None:
        """Note one record."""

    def alarm(self, event: str, **facts: str) -> None:
        """Note what somebody should look at."""

    def failed(self, request_id: str, error: Exception) -> None:
        """Note an error nobody foresaw."""


@dataclass(frozen=True, slots=True)
class Account:
    """Everything of one account at the vendor; what befalls one does not touch another."""

    policies: Policies
    auditor: Auditor
    ledger: Ledger
    vault: Vault
    slots: Slots
    upstream: Upstream


@dataclass(slots=True)
class _Story:
    """How far one arrival came, so that its end can be told."""

    account: Account
    caller: Caller | None = None
    call: Call | None = None
    admission: Admission | None = None
    attempt: Attempt | None = None
    verdict: Verdict | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Every stage of a call, in order."""

    body_bytes_max: int
    identities: Identities
    authenticator: Authenticator
    router: Router
    validator: Validator
    accounts: Mapping[str, Account]
    exchange: Exchange
    observer: Observer
    clock: Callable[[], float]
    """Unix seconds."""
    now: Callable[[], float]
    """A monotonic clock in seconds."""

    async def handle(self, arrival: Arrival) -> Reply:
        """Return the one reply to one arrival, having recorded how it ended."""
        story = self._story()
        try:
            outcome = await self._carry_out(arrival, story)
        except Refusal as refusal:
            story.refusal = refusal
            outcome = outcome_of(refusal, arrival.request_id)
        except Exception as error:
            self.observer.failed(arrival.request_id, error)
            outcome = _broken(story, arrival, error)
        except BaseException as error:
            # The drain ran out of time. The vendor may have acted, and the trail has to say so.
            self._conclude(arrival, story, _broken(story, arrival, error))
            raise
        self._conclude(arrival, story, outcome)
        return Reply(arrival.request_id, outcome, story.verdict)

    def refuse(self, arrival: Arrival, problem: Problem) -> Reply:
        """Return the reply to an arrival that the edge could not take whole."""
        story = self._story()
        story.refusal = Refusal(problem)
        outcome = outcome_of(story.refusal, arrival.request_id)
        self._conclude(arrival, story, outcome)
        return Reply(arrival.request_id, outcome)

    async def _carry_out(self, arrival: Arrival, story: _Story) -> Outcome:
        document = read_document(arrival.body, self.body_bytes_max)
        call, admission, credential = await self._admit(arrival, document, story)
        try:
            return await self._forward(arrival, story.account, admission, credential)
        except Refusal as refusal:
            return await self._second_chance(arrival, story, call, credential, refusal)

    async def _admit(self, arrival: Arrival, document: Document, story: _Story) -> tuple[Call, Admission, VendorCredential]:
        """Authenticate, route, validate, charge and record, again from the start when what is known changed meanwhile."""
        for _ in range(_TRIES):
            epoch = self.identities.known.registry.epoch
            story.caller = await self._authenticate(arrival, document)
            name = self.router.route(arrival, story.caller)
            story.account = account = self.accounts[name]
            story.call = self.validator.validate(document, story.caller, name)
            credential = account.slots.choose(account.vault.loaded)
            attempt = Attempt(1, credential.slot, credential.version)
            charges = account.policies.charges(story.call)
            intent = account.auditor.intent(arrival, story.call, attempt)
            answer = await account.ledger.admit(story.call, charges, intent, epoch, account.slots.active)
            if isinstance(answer, Admission):
                story.admission, story.attempt, story.verdict = answer, attempt, answer.verdict
                self.observer.recorded(intent)
                return story.call, answer, credential
            if isinstance(answer, Verdict):
                story.verdict = answer
                refuse_unless_admitted(answer)
            else:
                account.slots.active = answer.active
                await self.identities.reach(answer.epoch)
        raise Refusal(Problem.ledger_unavailable)

    async def _authenticate(self, arrival: Arrival, document: Document) -> Caller:
        try:
            caller = self.authenticator.authenticate(arrival, document, self.identities.known)
        except Refusal as refusal:
            # A key issued a moment ago is not in the copy this process holds.
            stale = refusal.facts.get("stale")
            if not isinstance(stale, str) or not stale or not await self.identities.refresh(stale):
                raise
            caller = self.authenticator.authenticate(arrival, document, self.identities.known)
        self.identities.used(caller, arrival.received_at)
        return caller

    async def _forward(self, arrival: Arrival, account: Account, admission: Admission, credential: VendorCredential) -> Outcome:
        request = self.exchange.exchange(admission, credential)
        answer = await account.upstream.forward(request)
        try:
            outcome = normalise(answer, request, admission.call, arrival.request_id)
        except Refusal as refusal:
            if shows_acceptance(refusal.problem):
                self._accepted(account, admission.call, credential)
            raise
        self._accepted(account, admission.call, credential)
        return outcome

    async def _second_chance(
        self, arrival: Arrival, story: _Story, call: Call, credential: VendorCredential, refusal: Refusal
    ) -> Outcome:
        """Make the call once more with the other credential, where the vendor may have rejected the first.

        It refused, so it did nothing. Raises: the first refusal where there is no second chance, else the second's.
        """
        account, service, slots = story.account, call.caller.principal, story.account.slots
        if not slots.doubts(credential, refusal.problem, service, self.now()):
            raise refusal
        certain = is_rejection(refusal.problem)
        if certain:
            self._rejected(account, call, credential)
        other = slots.other(credential, account.vault.loaded)
        admission = None if other is None else await self._admit_again(arrival, story, call, other, refusal)
        if other is None or admission is None:
            raise refusal
        try:
            outcome = await self._forward(arrival, account, admission, other)
        except Refusal as second:
            await self._weigh(account, call, (credential, refusal.problem), (other, second.problem))
            if certain and is_rejection(second.problem):
                raise Refusal(Problem.upstream_credentials_rejected, upstream_status=second.upstream_status) from None
            raise
        await self._weigh(account, call, (credential, refusal.problem), (other, None))
        return outcome

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

    async def _admit_again(
        self, arrival: Arrival, story: _Story, call: Call, other: VendorCredential, refusal: Refusal
    ) -> Admission | None:
        """Charge and record the second try: to the quota and to the trail it is a call of its own."""
        account, first = story.account, story.admission
        attempt = Attempt(2, other.slot, other.version)
        intent = account.auditor.intent(arrival, call, attempt)
        epoch = self.identities.known.registry.epoch
        try:
            answer = await account.ledger.admit(_spent(call), account.policies.account_charge(), intent, epoch, None)
        except Refusal:
            return None  # Not to be recorded now, so not to be made.
        if not isinstance(answer, Admission):
            return None
        self.observer.recorded(intent)
        assert first is not None
        assert story.attempt is not None
        outcome = outcome_of(refusal, arrival.request_id)
        self._record(account, account.auditor.outcome(arrival, first, outcome, self.clock(), story.attempt))
        story.admission, story.attempt = answer, attempt
        return answer

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

    def _conclude(self, arrival: Arrival, story: _Story, outcome: Outcome) -> None:
        auditor, ended_at = story.account.auditor, self.clock()
        if story.admission is not None and story.attempt is not None:
            record = auditor.outcome(arrival, story.admission, outcome, ended_at, story.attempt)
        else:
            record = auditor.refusal(arrival, story.caller, story.call, outcome, story.refusal, ended_at)
        self._record(story.account, record)

    def _record(self, account: Account, record: Record) -> None:
        account.ledger.settle(record)
        self.observer.recorded(record)

    def _story(self) -> _Story:
        # Until the caller's account is known, what is refused stands in the trail of the first.
        return _Story(next(iter(self.accounts.values())))


def _broken(story: _Story, arrival: Arrival, error: BaseException) -> Outcome:
    story.refusal = Refusal(Problem.internal, error=type(error).__name__)
    return outcome_of(story.refusal, arrival.request_id)


def _spent(call: Call) -> Call:
    """Return the call without the nonce, which its first try has spent."""
    return replace(call, caller=replace(call.caller, nonce=None))
