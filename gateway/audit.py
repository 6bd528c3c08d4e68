"""The records: what is written of a call before it is made, and of how it ended; and how each names the one before it.

`Record` is the allow-list: what has no field there is not recorded. No header, body, secret or number is; a number
stands as its pseudonym, country and last two digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Final, Literal

import msgspec

from gateway.errors import Refusal
from gateway.model import Admission, Arrival, Attempt, Call, Caller, Outcome, PhoneNumber, Verdict
from gateway.numbers import Pseudonyms

Stage = Literal[
    "intent", "outcome", "refusal", "abort", "change", "search", "open", "beat", "degraded", "recovered", "close"
]  # fmt: skip


class Record(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One line of the audit trail. A field that does not apply is left out."""

    stage: Stage
    """Of a call: `intent` before anything is decided, and one that closes it: `outcome` where the vendor was called,
    `refusal` where it was not, `abort` where nobody knows or where it was decided anew. `refusal` alone: refused before the
    limits were asked. `change` of a key, slot, limit or log level; `search` by number. Of the writer itself: `open`, `beat`,
    `degraded` and `recovered` with Redis, `close`."""
    writer: str = ""
    """The process that wrote it. Set by the writer, like `seq` and `prev`."""
    seq: int = -1
    """Rises by one with each record of a writer; with it, a record's identity."""
    prev: str = ""
    """`chained` of the writer's record before, in hexadecimal; left out of its first."""
    at: str
    """When the request arrived (intent, refusal) or ended (outcome); RFC 3339, UTC, milliseconds."""
    request_id: str | None = None
    trace_id: str | None = None
    account: str
    service: str | None = None
    """The authenticated service; None when nobody was."""
    key_id: str | None = None
    """The key's public id, or the workload's name; may name an unknown key."""
    key_version: int | None = None
    proof: Literal["key", "token", "signature"] | None = None
    """How the caller proved itself."""
    source: str | None = None
    """IP address the request came from."""
    change: str | None = None
    """What was changed, such as `key.revoked`."""
    operator: str | None = None
    """Who changed it; the gateway itself where nobody did."""
    operation: str | None = None
    m1: str | None = None
    m1_country: str | None = None
    m1_last2: str | None = None
    m2: str | None = None
    m2_country: str | None = None
    m2_last2: str | None = None
    mask: str | None = None
    mask_country: str | None = None
    mask_last2: str | None = None
    pseudonym_key: str | None = None
    """Id of the key that made the pseudonyms."""
    expiry_time: int | None = None
    expiry_duration: int | None = None
    both_expiry_fields: bool = False
    decision: Literal["allowed", "denied"] | None = None
    """None where nothing is decided yet, and where nothing is to be."""
    intent: str | None = None
    """`writer-seq` of the intent that this closes, or of the change that was not made after all."""
    result: str | None = None
    """`answered`, `refused`, `failed` or `unknown`."""
    problem: str | None = None
    """Slug of the problem table; None on success."""
    origin: str | None = None
    code: int | None = None
    """The vendor's code, sent by it or given for the same fault."""
    status: int | None = None
    """HTTP status the caller got."""
    upstream_status: int | None = None
    slot: str | None = None
    """The slot of the vendor credential used."""
    credential: str | None = None
    """Version of the vendor credential used, never its value."""
    attempt: int = 1
    """2 and more where the vendor had rejected the credential, or was not reached, or did not answer, and it was tried again."""
    policy: str | None = None
    """The policy that refused, or that was changed."""
    limits: str | None = None
    """What each limit had left of its burst: `caller=99/100 number:m1=0/10!2 sweep=0/1000?40`. `!2`: it refused, and would
    not have 2 s later; `?40`: it would have refused, were it not in shadow; `?`: in shadow, and it would not have."""
    shadow_deny: str | None = None
    """The policies in shadow that would have refused, joined by spaces."""
    degraded: bool = False
    """Whether it was decided without Redis."""
    subject: str | None = None
    """Of a changed limit: whom it is for; None: everybody. Of a changed level of the log: the module."""
    before: str | None = None
    """Of a changed limit or level: what it was."""
    after: str | None = None
    """Of a changed limit or level: what it is."""
    until: str | None = None
    """Of a changed limit or level: when the change ends."""
    why: str | None = None
    """Of a changed limit or level: the operator's reason. Of a search: how, where the number was not typed in."""
    version: str | None = None
    """Of a writer that opens: the gateway's version."""
    config: str | None = None
    """Of a writer that opens: digest of its settings, without secrets."""
    repeats: str | None = None
    """`writer-seq` of the intent whose call was made before under the same idempotency key."""
    count: int = 1
    """How many refusals of one kind it stands for, in a flood of them; times and ids are the first one's."""
    retry_after_seconds: int | None = None
    field: str | None = None
    """The body's field at fault, where it is one of the call's own."""
    error: str | None = None
    """Type of an unexpected error."""
    duration_ms: float | None = None
    """From arrival to the end."""

    @property
    def id(self) -> str:
        """`writer-seq`."""
        return f"{self.writer}-{self.seq}"

    def says_the_same(self, other: Record) -> bool:
        """Say whether another record differs from it in nothing but its place in the trail."""
        place = {"writer": self.writer, "seq": self.seq, "prev": self.prev, "degraded": self.degraded}
        return msgspec.structs.replace(other, **place) == self


class Head(msgspec.Struct, kw_only=True):
    """What whoever reads a record back needs of it: which it is, when it was, and the intent it opens or closes."""

    stage: str
    writer: str
    seq: int
    at: str
    prev: str = ""
    key_id: str | None = None
    intent: str | None = None

    @property
    def id(self) -> str:
        """`writer-seq`."""
        return f"{self.writer}-{self.seq}"

    @property
    def at_us(self) -> int:
        """Microseconds since 1970, to the millisecond. Raises: ValueError."""
        return int(unix_seconds(self.at) * 1000) * 1000


def chained(record: bytes) -> bytes:
    """Return the 32 bytes by which the next record of a writer names this one, as it is stored.

    The leaf of RFC 6962, section 2.1, so that a record is hashed once for the chain and for the tree over all of them.
    """
    return sha256(b"\x00" + record).digest()


_TOLD = re.compile(r"([^:=]+)(?::(m1|m2|mask))?=(\d{1,15})/(\d{1,15})([!?]?)(\d{0,9})")
_FIELDS = frozenset(("m1", "m2", "mask", "expiry_time", "expiry_duration", "ssid", "userId", "token"))


REPLAYED: Final = "answer_replayed"
"""Stands where a problem's slug stands, for a call that was made before."""


@dataclass(frozen=True, slots=True)
class Auditor:
    """Writes the records of one vendor account."""

    account: str
    pseudonyms: Pseudonyms

    def intent(self, arrival: Arrival, call: Call, attempt: Attempt) -> Record:
        """Return what is recorded before the vendor is called."""
        record = self._blank("intent", arrival, call.caller, arrival.received_at)
        record.decision = None
        self._describe(record, call)
        record.slot, record.credential, record.attempt = attempt.slot, attempt.version, attempt.number
        return record

    def outcome(self, arrival: Arrival, admission: Admission, outcome: Outcome, ended_at: float, attempt: Attempt) -> Record:
        """Return what is recorded after the vendor was called, or could not be."""
        record = self._blank("outcome", arrival, admission.call.caller, ended_at)
        self._describe(record, admission.call)
        record.intent = admission.record_id
        record.slot, record.credential, record.attempt = attempt.slot, attempt.version, attempt.number
        _weigh(record, admission.verdict)
        self._conclude(record, arrival, outcome, ended_at)
        return record

    def refusal(
        self,
        arrival: Arrival,
        caller: Caller | None,
        call: Call | None,
        outcome: Outcome,
        refusal: Refusal | None,
        verdict: Verdict | None,
        ended_at: float,
        intent: Record | None = None,
    ) -> Record:
        """Return what is recorded of a call that was not made; `intent`: the one it closes, if that was recorded."""
        record = self._blank("refusal", arrival, caller, arrival.received_at)
        record.decision = "denied"
        if call is not None:
            self._describe(record, call)
        if refusal is not None:
            record.policy = refusal.policy
            record.field = refusal.field if refusal.field in _FIELDS else None
            record.operation = record.operation or _text(refusal.facts.get("operation"))
            record.service = record.service or _text(refusal.facts.get("service"))
            record.key_id = record.key_id or _text(refusal.facts.get("key_id"))
        if intent is not None and intent.seq >= 0:
            record.intent = intent.id
        if verdict is not None:
            _weigh(record, verdict)
        self._conclude(record, arrival, outcome, ended_at)
        return record

    def replayed(self, record: Record) -> None:
        """Make a refusal tell that the answer to an earlier call was given again: nobody was denied anything."""
        record.decision, record.problem = "allowed", REPLAYED

    def _blank(
        self, stage: Literal["intent", "outcome", "refusal"], arrival: Arrival, caller: Caller | None, at: float
    ) -> Record:
        return Record(
            stage=stage,
            at=rfc3339(at),
            request_id=arrival.request_id,
            trace_id=arrival.trace_id,
            account=self.account,
            service=caller.principal if caller else None,
            key_id=caller.key_id if caller else None,
            key_version=caller.key_version if caller else None,
            proof=caller.proof if caller else None,
            source=arrival.source or None,
            decision="allowed",
        )

    def _describe(self, record: Record, call: Call) -> None:
        record.operation = call.operation
        record.expiry_time = call.expiry_time
        record.expiry_duration = call.expiry_duration
        record.both_expiry_fields = call.expiry_time is not None and call.expiry_duration is not None
        record.pseudonym_key = self.pseudonyms.key_id
        for name, number in call.numbers.items():
            setattr(record, name, self.pseudonyms.of(number.e164))
            setattr(record, f"{name}_country", number.country)
            setattr(record, f"{name}_last2", number.e164[-2:])

    def _conclude(self, record: Record, arrival: Arrival, outcome: Outcome, ended_at: float) -> None:
        record.result = outcome.result
        record.problem = None if outcome.slug == "success" else outcome.slug
        record.origin = outcome.origin
        record.code = outcome.vendor_code
        record.status = outcome.status
        record.upstream_status = outcome.upstream_status
        record.retry_after_seconds = outcome.retry_after_seconds
        record.error = _text(outcome.facts.get("error"))
        record.repeats = _text(outcome.facts.get("repeats"))
        record.duration_ms = round((ended_at - arrival.received_at) * 1000, 3)


def _weigh(record: Record, verdict: Verdict) -> None:
    record.limits = limits_text(verdict) or None
    record.degraded = verdict.degraded
    if verdict.shadow_refused:
        record.shadow_deny = " ".join(dict.fromkeys(meter.limit.policy for meter in verdict.shadow_refused))


def limits_text(verdict: Verdict) -> str:
    """Return a verdict as records tell it."""
    told = []
    for meter in verdict.meters:
        limit = meter.limit
        text = f"{limit.policy}:{meter.field}" if meter.field else limit.policy
        text = f"{text}={meter.remaining}/{limit.burst}"
        mark = "?" if limit.shadow else "" if meter.admitted else "!"
        told.append(f"{text}{mark}" if meter.admitted else f"{text}{mark}{meter.reset_after_seconds}")
    return " ".join(told)


@dataclass(frozen=True, slots=True)
class Told:
    """What a record tells of one limit."""

    policy: str
    field: str
    """The body's field whose number was counted; empty where none was."""
    left: int
    burst: int
    shadow: bool
    retry_after_seconds: int | None
    """None: it did not refuse, nor would have."""


def read_limits(text: str) -> list[Told]:
    """Return what `limits_text` wrote; what does not look like it is left out."""
    found = []
    for one in text.split():
        if match := _TOLD.fullmatch(one):
            policy, field, left, burst, mark, wait = match.groups()
            found.append(Told(policy, field or "", int(left), int(burst), mark == "?", int(wait) if wait else None))
    return found


def change(
    what: str,
    *,
    at: float,
    request_id: str,
    account: str,
    operator: str,
    service: str | None = None,
    key_id: str | None = None,
    key_version: int | None = None,
    slot: str | None = None,
    credential: str | None = None,
    policy: str | None = None,
    subject: str | None = None,
    before: str | None = None,
    after: str | None = None,
    until: float | None = None,
    why: str | None = None,
    source: str | None = None,
    decision: Literal["allowed", "denied"] = "allowed",
) -> Record:
    """Return the record of a change of a key, slot, limit or log level, or of who uses the console. Instants: Unix seconds."""
    return Record(
        stage="change",
        at=rfc3339(at),
        request_id=request_id,
        account=account,
        change=what,
        operator=operator,
        service=service,
        key_id=key_id,
        key_version=key_version,
        slot=slot,
        credential=credential,
        policy=policy,
        subject=subject,
        before=before,
        after=after,
        until=rfc3339(until) if until is not None else None,
        why=why,
        source=source,
        decision=decision,
    )


def search(
    pseudonym: str,
    *,
    at: float,
    request_id: str,
    account: str,
    operator: str,
    source: str | None = None,
    number: PhoneNumber | None = None,
    pseudonym_key: str | None = None,
    why: str | None = None,
) -> Record:
    """Return the record of a search for a number. `number`: None where only its pseudonym is known. `at`: Unix seconds."""
    return Record(
        stage="search",
        at=rfc3339(at),
        request_id=request_id,
        account=account,
        operator=operator,
        source=source,
        m1=pseudonym,
        m1_country=number.country if number is not None else None,
        m1_last2=number.e164[-2:] if number is not None else None,
        pseudonym_key=pseudonym_key,
        why=why,
    )


def abort(closed: Record, why: str, at: float, result: Literal["refused", "unknown"] | None = None) -> Record:
    """Return the record that closes an intent which was not admitted, or tells that a change was not made.

    `why`: `unknown_outcome` where nobody can tell. `at`: Unix seconds.
    """
    found = result or ("unknown" if why == "unknown_outcome" else "refused")
    return msgspec.structs.replace(
        closed, stage="abort", writer="", seq=-1, prev="", at=rfc3339(at),
        intent=closed.id, decision=None, result=found, problem=why,
    )  # fmt: skip


def rfc3339(unix_seconds: float) -> str:
    """Return an instant as `2030-01-31T12:30:00.123Z`."""
    whole, millis = divmod(int(unix_seconds * 1000), 1000)
    return f"{_whole_second(whole)}.{millis:03d}Z"


def unix_seconds(at: str) -> float:
    """Return what `rfc3339` was given, to the millisecond."""
    return datetime.fromisoformat(at).timestamp()


@lru_cache(maxsize=8)
def _whole_second(unix_seconds: int) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _text(fact: object) -> str | None:
    return fact if isinstance(fact, str) else None
