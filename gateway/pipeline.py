"""The chain: authenticate, validate, admit and record, exchange, forward, normalise, record, reply.

The field list of `Pipeline` is the architecture, read from top to bottom. This is the only place where a refusal
becomes an outcome, and the only place that knows every stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.admission import Policies, refuse_unless_admitted
from gateway.audit import Auditor, Record
from gateway.authentication import authenticate
from gateway.credentials import Exchange, VendorCredential
from gateway.document import Document, read_document
from gateway.errors import Problem, Refusal
from gateway.keys import Registry
from gateway.model import Admission, Arrival, Call, Caller, Charge, Outcome, Reply, UpstreamAnswer, UpstreamRequest, Verdict
from gateway.normalisation import normalise, outcome_of
from gateway.validation import Validator


class Ledger(Protocol):
    """Where keys, charges and records are kept."""

    @property
    def registry(self) -> Registry:
        """The keys as last read."""

    async def refresh(self) -> bool:
        """Read the keys again if they changed; say whether they did. Raises: Refusal `ledger_unavailable`."""

    async def admit(self, call: Call, charges: tuple[Charge, ...], intent: Record, epoch: int) -> Admission | Verdict | None:
        """Charge every quota and record the intent, or neither.

        Returns the admission, the verdict that refused, or None when the keys are newer than `epoch`.
        Raises: Refusal `ledger_unavailable`.
        """

    def settle(self, record: Record) -> None:
        """Take an outcome or a refusal to be recorded; it is never lost, and no caller waits for it."""


class Upstream(Protocol):
    """The vendor's API."""

    async def forward(self, request: UpstreamRequest) -> UpstreamAnswer:
        """Send one request. Raises: Refusal for every way of getting no answer."""


class Vault(Protocol):
    """Where the vendor's credential is kept."""

    def current(self) -> tuple[VendorCredential, tuple[str, ...]]:
        """Return the credential and the forms to look for in answers."""


class Observer(Protocol):
    """What is told of each record, for log and metrics."""

    def recorded(self, record: Record) -> None:
        """Note one record."""

    def failed(self, request_id: str, error: Exception) -> None:
        """Note an error nobody foresaw."""


@dataclass(slots=True)
class _Story:
    """How far one arrival came, so that its end can be told."""

    caller: Caller | None = None
    call: Call | None = None
    admission: Admission | None = None
    verdict: Verdict | None = None
    credential_version: str = ""
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Every stage of a call, in order."""

    body_bytes_max: int
    validator: Validator
    policies: Policies
    auditor: Auditor
    ledger: Ledger
    vault: Vault
    exchange: Exchange
    upstream: Upstream
    observer: Observer
    clock: Callable[[], float]

    async def handle(self, arrival: Arrival) -> Reply:
        """Return the one reply to one arrival, having recorded how it ended."""
        story = _Story()
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
        refusal = Refusal(problem)
        story = _Story(refusal=refusal)
        outcome = outcome_of(refusal, arrival.request_id)
        self._conclude(arrival, story, outcome)
        return Reply(arrival.request_id, outcome)

    async def _carry_out(self, arrival: Arrival, story: _Story) -> Outcome:
        document = read_document(arrival.body, self.body_bytes_max)
        admission = await self._admit(arrival, document, story)
        credential, forms = self.vault.current()
        request = self.exchange.exchange(admission, credential, forms)
        story.credential_version = request.credential_version
        answer = await self.upstream.forward(request)
        return normalise(answer, request, admission.call, arrival.request_id)

    async def _admit(self, arrival: Arrival, document: Document, story: _Story) -> Admission:
        """Authenticate, validate, charge and record, again from the start when the keys changed meanwhile."""
        for _ in range(3):
            epoch = self.ledger.registry.epoch
            story.caller = await self._authenticate(arrival, document)
            story.call = self.validator.validate(document, story.caller)
            charges = self.policies.charges(story.call)
            intent = self.auditor.intent(arrival, story.call)
            answer = await self.ledger.admit(story.call, charges, intent, epoch)
            if isinstance(answer, Admission):
                story.admission, story.verdict = answer, answer.verdict
                self.observer.recorded(intent)
                return answer
            if answer is not None:
                story.verdict = answer
                refuse_unless_admitted(answer)
            await self.ledger.refresh()
        raise Refusal(Problem.ledger_unavailable)

    async def _authenticate(self, arrival: Arrival, document: Document) -> Caller:
        try:
            return authenticate(arrival, document, self.ledger.registry)
        except Refusal as refusal:
            # A key issued a moment ago is not in the copy this process holds.
            if refusal.problem is not Problem.credential_unknown or not await self.ledger.refresh():
                raise
            return authenticate(arrival, document, self.ledger.registry)

    def _conclude(self, arrival: Arrival, story: _Story, outcome: Outcome) -> None:
        ended_at = self.clock()
        if story.admission is not None:
            record = self.auditor.outcome(arrival, story.admission, outcome, ended_at, story.credential_version)
        else:
            record = self.auditor.refusal(arrival, story.caller, story.call, outcome, story.refusal, ended_at)
        self.ledger.settle(record)
        self.observer.recorded(record)


def _broken(story: _Story, arrival: Arrival, error: BaseException) -> Outcome:
    story.refusal = Refusal(Problem.internal, error=type(error).__name__)
    return outcome_of(story.refusal, arrival.request_id)
