"""A call that is asked for again: what its idempotency key names, and what the second asker gets.

Source: draft-ietf-httpapi-idempotency-key-header. Bare keys are taken too: most clients send them so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import msgspec

from gateway.errors import Problem, Refusal
from gateway.model import NUMBER_FIELDS, Arrival, Call, Once, Outcome, Repeated
from gateway.numbers import Pseudonyms

# Of a list, or of an item with parameters, it could not be said which key is meant.
_BARE: Final = re.compile(r"[!#-+\--:<-\[\]-~]{1,255}")
_QUOTED: Final = re.compile(r'"((?:[!#-\[\]-~]|\\["\\]){1,255})"')
FORM: Final = f"{_BARE.pattern}|{_QUOTED.pattern}"
"""Regular expression of the header's value."""
_ASK_AGAIN_SECONDS: Final = 1


class _Kept(msgspec.Struct, frozen=True):
    """An answer as it is kept, to be given again."""

    status: int
    slug: str
    body: dict[str, Any]
    retry_after_seconds: int | None = None


_read_kept = msgspec.json.Decoder(_Kept).decode


@dataclass(frozen=True, slots=True)
class Idempotency:
    """Tells calls that are asked for again from calls that are asked for."""

    pseudonyms: Pseudonyms

    def once(self, arrival: Arrival, call: Call) -> Once | None:
        """Return what the caller's key makes of a call; None where it sent none.

        Raises: Refusal `idempotency_key_malformed`.
        """
        if arrival.idempotency_key is None:
            return None
        key = _read_key(arrival.idempotency_key)
        # A service's name holds no zero byte, so that no two pairs are written alike.
        name = sha256(f"{call.caller.principal}\0{key}".encode()).hexdigest()[:32]
        return Once(name, self._fingerprint(call))

    def _fingerprint(self, call: Call) -> str:
        """Return what two ways of writing one call have in common, and two calls have not."""
        told = [call.operation, str(call.expiry_time), str(call.expiry_duration)]
        told += [self.pseudonyms.of(call.numbers[name].e164) if name in call.numbers else "" for name in NUMBER_FIELDS]
        return sha256("\n".join(told).encode()).hexdigest()[:32]


def answer_again(repeated: Repeated) -> Outcome:
    """Return the outcome of a request whose call was made before: the same answer.

    Raises: Refusal `idempotency_mismatch`, `idempotency_running`, `idempotency_unknown`.
    """
    if repeated.standing == "mismatch":
        raise Refusal(Problem.idempotency_mismatch, repeats=repeated.intent)
    if repeated.standing == "running":
        raise Refusal(Problem.idempotency_running, retry_after_seconds=_ASK_AGAIN_SECONDS, repeats=repeated.intent)
    try:
        kept = _read_kept(repeated.answer)
    except msgspec.MsgspecError:
        # None is kept; or it is another gateway's, of a version to come.
        raise Refusal(Problem.idempotency_unknown, repeats=repeated.intent) from None
    return Outcome(
        kept.status,
        kept.slug,
        kept.body,
        "refused",
        "gateway",
        retry_after_seconds=kept.retry_after_seconds,
        facts={"repeats": repeated.intent},
    )


def keep(outcome: Outcome) -> bytes | None:
    """Return what is kept of an outcome to be given again; empty: the call may be made anew, None: nobody knows what it did.

    - What the vendor carried out, and what it says of the call itself, is final.
    - Where nothing was done for a reason that passes, a retry is what is wanted. So it is where operators have to act: the
      caller's retry comes after that.
    """
    if outcome.result == "unknown":
        return None
    if outcome.status >= 500:
        return b""
    return msgspec.json.encode(_Kept(outcome.status, outcome.slug, outcome.body, outcome.retry_after_seconds))


def _read_key(written: str) -> str:
    """Return the key without its quotes. Raises: Refusal."""
    written = written.strip(" \t")
    if _BARE.fullmatch(written):
        return written
    quoted = _QUOTED.fullmatch(written)
    if quoted is None:
        raise Refusal(Problem.idempotency_key_malformed)
    return re.sub(r"\\(.)", r"\1", quoted[1])
