"""The chain: authenticate, route, validate, admit and record, then call (exchange, forward, normalise), record, reply.

The field list of `Pipeline`, and of the `Account` a call is routed to, is the architecture, read from top to bottom.
This is where a refusal becomes the outcome that is recorded and replied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from gateway.admission import refuse_unless_admitted
from gateway.audit import Record
from gateway.authentication import Authenticator, Known
from gateway.bulkhead import Place
from gateway.calling import Account, Calling, Claimed, Held, Made
from gateway.deadline import read_deadline, refuse_if_passed
from gateway.document import Document, read_document
from gateway.errors import Problem, Refusal
from gateway.idempotency import Idempotency, answer_again, keep
from gateway.model import Admission, Arrival, Attempt, Call, Caller, Outcome, Repeated, Reply, Verdict
from gateway.normalisation import outcome_of
from gateway.routing import Router
from gateway.validation import Validator

_TRIES = 5
"""At deciding by what is known, when it changes meanwhile."""


class Identities(Protocol):
    """Where what is known of callers is kept."""

    @property
    def known(self) -> Known:
        """The keys of callers and issuers, as last read."""

    async def refresh(self, stale: str) -> None:
        """Read again what a refusal called stale, if it changed. Raises: Refusal `ledger_unavailable`."""

    async def reach(self, epoch: int) -> None:
        """Read the keys until they are of an epoch at least. Raises: Refusal `ledger_unavailable`."""

    def used(self, caller: Caller, at: float) -> None:
        """Count one request of a caller."""


@dataclass(slots=True)
class _Story:
    """How far one arrival came, so that its end can be told."""

    account: Account
    caller: Caller | None = None
    call: Call | None = None
    pending: Record | None = None
    """An intent that was put to the ledger and is not admitted; what ends the story closes it, if it was recorded."""
    place: Place | None = None
    """Among the calls of `account` that are under way."""
    made: Made | None = None
    verdict: Verdict | None = None
    refusal: Refusal | None = None
    replayed: bool = False
    """Whether the call was made before, so that its answer is given again."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Every stage of a call, in order."""

    body_bytes_max: int
    identities: Identities
    authenticator: Authenticator
    router: Router
    validator: Validator
    idempotency: Idempotency
    accounts: Mapping[str, Account]
    calling: Calling
    clock: Callable[[], float]
    """Unix seconds."""

    async def handle(self, arrival: Arrival) -> Reply:
        """Return the one reply to one arrival, having recorded how it ended."""
        story = self._story()
        try:
            outcome = await self._carry_out(arrival, story)
        except Refusal as refusal:
            story.refusal = refusal
            outcome = outcome_of(refusal, arrival.request_id)
        except Exception as error:
            self.calling.observer.failed(arrival.request_id, error)
            outcome = _broken(story, arrival, error)
        except BaseException as error:
            # The drain ran out of time. The vendor may have acted, and the trail has to say so.
            self._conclude(arrival, story, _broken(story, arrival, error))
            raise
        finally:
            if story.place is not None:
                story.place.leave()
        self._conclude(arrival, story, outcome)
        return Reply(arrival.request_id, outcome, story.verdict, story.replayed)

    def refuse(self, arrival: Arrival, problem: Problem) -> Reply:
        """Return the reply to an arrival that the edge could not take whole."""
        story = self._story()
        story.refusal = Refusal(problem)
        outcome = outcome_of(story.refusal, arrival.request_id)
        self._conclude(arrival, story, outcome)
        return Reply(arrival.request_id, outcome)

    async def _carry_out(self, arrival: Arrival, story: _Story) -> Outcome:
        document = read_document(arrival.body, self.body_bytes_max)
        admitted = await self._admit(arrival, document, story)
        if isinstance(admitted, Repeated):
            outcome = answer_again(admitted)
            story.replayed = True
            return outcome
        story.made = admitted

        async def still_good(epoch: int) -> int | None:
            """Return the epoch by which the caller may still call: its key may have been revoked since it was admitted."""
            await self.identities.reach(epoch)
            known = self.identities.known
            try:
                self.authenticator.authenticate(arrival, document, known)
            except Refusal:
                return None
            return known.registry.epoch

        return await self.calling.carry_out(arrival, story.made, still_good)

    async def _admit(self, arrival: Arrival, document: Document, story: _Story) -> Made | Repeated:
        """Authenticate, route, validate, charge and record, again from the start when what is known changed meanwhile."""
        for _ in range(_TRIES):
            known = self.identities.known
            epoch = known.registry.epoch
            story.caller = await self._authenticate(arrival, document, known)
            name = self.router.route(arrival, story.caller)
            account = self._turn_to(story, self.accounts[name])
            story.call = self.validator.validate(document, story.caller, name)
            once = self.idempotency.once(arrival, story.call)
            if once is not None:
                story.call = replace(story.call, once=once)
            ends_at = read_deadline(arrival)
            # Before anything is charged or recorded of one that may have to wait.
            place = story.place = story.place or await account.bulkhead.enter()
            refuse_if_passed(ends_at, self.clock())
            credential = account.slots.choose(account.vault.loaded)
            attempt = Attempt(1, credential.slot, credential.version)
            charges = account.policies.charges(story.call)
            intent = self._intent(story, account.auditor.intent(arrival, story.call, attempt))
            answer = await account.ledger.admit(story.call, charges, intent, epoch, account.slots.active, account.policies.live)
            if isinstance(answer, Admission):
                story.pending = None
                story.verdict = answer.verdict
                self.calling.observer.recorded(intent)
                held = Held(answer.record_id, answer.held)
                return Made(account, story.call, answer, attempt, credential, held, place, ends_at)
            if isinstance(answer, Repeated):
                return answer
            if isinstance(answer, Verdict):
                story.verdict = answer
                refuse_unless_admitted(answer)
            else:
                await account.catch_up(answer)
                await self.identities.reach(answer.epoch)
        raise Refusal(Problem.ledger_unavailable)

    def _turn_to(self, story: _Story, account: Account) -> Account:
        """Let what follows be the account's, and give a place of another one back."""
        if story.place is not None and story.account is not account:
            story.place.leave()
            story.place = None
        story.account = account
        return account

    def _intent(self, story: _Story, intent: Record) -> Record:
        """Return the intent to be put to the ledger: the one that stands in the trail already, where it says the same."""
        before = story.pending
        if before is not None and before.seq >= 0:
            if before.says_the_same(intent):
                return before
            self.accounts[before.account].withdraw(before, "decided_anew", self.clock())
        story.pending = intent
        return intent

    async def _authenticate(self, arrival: Arrival, document: Document, known: Known) -> Caller:
        try:
            return self.authenticator.authenticate(arrival, document, known)
        except Refusal as refusal:
            # A key issued a moment ago is not in the copy this process held.
            stale = refusal.facts.get("stale")
            if not isinstance(stale, str) or not stale:
                raise
            # Decided again in any case: another call may have brought the copy up to date while this one was waiting.
            await self.identities.refresh(stale)
            return self.authenticator.authenticate(arrival, document, self.identities.known)

    def _conclude(self, arrival: Arrival, story: _Story, outcome: Outcome) -> None:
        auditor, ended_at = story.account.auditor, self.clock()
        if story.made is not None:
            record = auditor.outcome(arrival, story.made.admission, outcome, ended_at, story.made.attempt)
        else:
            record = auditor.refusal(
                arrival, story.caller, story.call, outcome, story.refusal, story.verdict, ended_at, story.pending
            )
            if story.replayed:
                auditor.replayed(record)
        if story.caller is not None:
            self.identities.used(story.caller, arrival.received_at)
        story.account.ledger.settle(record, story.made.held if story.made is not None else None, _claimed(story, outcome))
        self.calling.observer.ended(record)

    def _story(self) -> _Story:
        # Until the caller's account is known, what is refused stands in the trail of the first.
        return _Story(next(iter(self.accounts.values())))


def _claimed(story: _Story, outcome: Outcome) -> Claimed | None:
    """Return what becomes of the key that a call claimed, or may have claimed; None: nothing, or it stands as it is."""
    if story.call is None or story.call.once is None:
        return None
    if story.made is not None:
        answer, owner = keep(outcome), story.made.held.holder
    elif story.pending is not None and story.pending.seq >= 0:
        # It was not admitted as far as is known here; an answer of Redis that did not come may say otherwise.
        answer, owner = b"", story.pending.id
    else:
        return None
    return Claimed(replace(story.call.once, owner=owner), answer) if answer is not None else None


def _broken(story: _Story, arrival: Arrival, error: BaseException) -> Outcome:
    story.refusal = Refusal(Problem.internal, error=type(error).__name__)
    return outcome_of(story.refusal, arrival.request_id)
