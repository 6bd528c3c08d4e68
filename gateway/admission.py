"""Which limits a call draws on, by the settings and their live changes, and what the limiter's verdict means for the caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gateway.config import AT_ONCE, Policy, Terms
from gateway.errors import Problem, Refusal
from gateway.model import Call, Charge, Limit, Verdict
from gateway.numbers import Pseudonyms

_ALL = Terms()


@dataclass(frozen=True, slots=True)
class Live:
    """What was changed of one account's limits while the gateway runs, as a process last read it."""

    version: str = ""
    """Differs after each change."""
    until_us: int = 0
    """Microseconds of Redis' clock at which the first of the changes ends; 0: none ends."""
    policies: Mapping[str, Policy] = field(default_factory=dict)
    """Policies that stand in place of the settings', or beside them."""
    terms: Mapping[str, Terms] = field(default_factory=dict)
    """By policy, or by policy and subject: `caller`, `caller:crm`."""
    drill_until_us: int = 0
    """Until when the process behaves as if Redis were away; 0: it does not."""


@dataclass(frozen=True, slots=True)
class _Numbered:
    """A limit that counts apart by number."""

    limit: Limit | None
    """Of every number without one of its own; None: those are not limited."""
    before: str
    after: str
    """The key is `before`, the pseudonym, `after`."""
    special: Mapping[str, Limit | None]
    """Limits of single numbers, by pseudonym; None: not limited."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the calls of one service with one operation draw on."""

    fixed: tuple[Charge, ...]
    numbered: tuple[_Numbered, ...]
    new_numbers: tuple[Charge, ...]
    again: tuple[Charge, ...]
    """What one more request to the vendor draws on, for a call that paid for everything else."""


@dataclass(slots=True)
class Policies:
    """The limits of one vendor account."""

    configured: Mapping[str, Policy]
    account: str
    pseudonyms: Pseudonyms
    place_ms: int
    """How long a call under way keeps its place when it never ends: longer than any call takes."""
    live: Live = field(default_factory=Live)
    _plans: dict[tuple[str, str], _Plan] = field(default_factory=dict)

    def adopt(self, live: Live) -> None:
        """Decide by other changes from now on."""
        self.live, self._plans = live, {}

    def charges(self, call: Call) -> tuple[Charge, ...]:
        """Return one charge for each limit a call falls under, and for each distinct number where it counts those apart."""
        numbers: dict[str, str] = {}
        for name, number in call.numbers.items():
            numbers.setdefault(self.pseudonyms.of(number.e164), name)
        return self.draw(call.caller.principal, call.operation, numbers)

    def draw(self, principal: str, operation: str, numbers: Mapping[str, str]) -> tuple[Charge, ...]:
        """Return the charges of a call. `numbers`: the body's fields, by the pseudonyms of their numbers."""
        plan = self._plan(principal, operation)
        charges = list(plan.fixed)
        for numbered in plan.numbered:
            for pseudonym, name in numbers.items():
                limit = numbered.special.get(pseudonym, numbered.limit) if numbered.special else numbered.limit
                if limit is not None:
                    charges.append(Charge(limit, f"{numbered.before}{pseudonym}{numbered.after}", name))
        charges.extend(
            # Two strokes: no subject of any policy has an empty part.
            Charge(charge.limit, charge.key, "", tuple([f"{charge.key}//{pseudonym}" for pseudonym in numbers]))
            for charge in plan.new_numbers
        )
        return tuple(charges)

    def draw_again(self, principal: str, operation: str) -> tuple[Charge, ...]:
        """Return the charges of one more request to the vendor for a call: those of the account, whoever caused it."""
        return self._plan(principal, operation).again

    def policies(self) -> dict[str, Policy]:
        """Return the policies of this account as they are now, by name."""
        every = {**self.configured, **self.live.policies}
        return {name: policy for name, policy in every.items() if not policy.accounts or self.account in policy.accounts}

    def in_force(self, name: str, subject: str = "") -> Terms:
        """Return all terms of a policy for a subject, or for whoever has none of its own. Raises: KeyError."""
        policy = self.policies()[name]
        merged = policy.terms
        layers = [self.live.terms.get(name, _ALL)]
        if subject:
            layers += [policy.subjects.get(subject, _ALL), self.live.terms.get(f"{name}:{subject}", _ALL)]
        for layer in layers:
            said = {
                what: value for what in ("rate", "burst", "concurrency", "mode") if (value := getattr(layer, what)) is not None
            }
            merged = replace(merged, **said)
        return merged

    def key(self, name: str, subject: str) -> str:
        """Return where a limit is kept for a subject."""
        # Everything of an account shares one hash tag, so that on a cluster one script can reach it all.
        return f"gw:{{{self.account}}}:limit:{name}:{subject}"

    def _plan(self, principal: str, operation: str) -> _Plan:
        plan = self._plans.get((principal, operation))
        if plan is None:
            plan = self._plans[principal, operation] = self._planned(principal, operation)
        return plan

    def _planned(self, principal: str, operation: str) -> _Plan:
        fixed: list[Charge] = []
        numbered: list[_Numbered] = []
        new_numbers: list[Charge] = []
        again: list[Charge] = []
        parts = {"caller": principal, "account": self.account, "operation": operation}
        for name, policy in self.policies().items():
            if (policy.services and principal not in policy.services) or (
                policy.operations and operation not in policy.operations
            ):
                continue
            if "number" in policy.by:
                numbered.extend(self._numbered(name, policy, parts))
                continue
            subject = "/".join(parts[dimension] for dimension in policy.by)
            rate, concurrency = self._limits(name, policy, subject)
            if rate is not None:
                charge = Charge(rate, self.key(name, subject))
                (new_numbers if policy.count == "new_numbers" else fixed).append(charge)
                if policy.count == "calls" and "caller" not in policy.by:
                    again.append(charge)
            if concurrency is not None:
                fixed.append(Charge(concurrency, self.key(concurrency.policy, subject)))
        return _Plan(tuple(fixed), tuple(numbered), tuple(new_numbers), tuple(again))

    def _numbered(self, name: str, policy: Policy, parts: Mapping[str, str]) -> list[_Numbered]:
        at = policy.by.index("number")
        before = "".join(parts[dimension] + "/" for dimension in policy.by[:at])
        after = "".join("/" + parts[dimension] for dimension in policy.by[at + 1 :])
        special = {}
        for target in self.live.terms:
            of, _, subject = target.partition(":")
            if of == name and subject.startswith(before) and subject.endswith(after):
                special[subject.removeprefix(before).removesuffix(after)] = self._limits(name, policy, subject)
        found = []
        for which, (kept, limit) in enumerate(zip((name, name + AT_ONCE), self._limits(name, policy, ""), strict=True)):
            singles = {pseudonym: limits[which] for pseudonym, limits in special.items()}
            if limit is not None or any(singles.values()):
                found.append(_Numbered(limit, self.key(kept, before), after, singles))
        return found

    def _limits(self, name: str, policy: Policy, subject: str) -> tuple[Limit | None, Limit | None]:
        """Return what limits the rate of a subject and its calls under way; None: nothing does."""
        terms = self.in_force(name, subject)
        if terms.mode == "off":
            return None, None
        shadow = terms.mode == "shadow"
        rate = concurrency = None
        if terms.rate is not None and terms.burst is not None:
            window = terms.rate.window_seconds
            rate = Limit(
                name,
                shadow,
                policy.on_store_error,  # type: ignore[arg-type]  # one of the words the settings take
                # Changes that were made apart may come together to more than can be counted.
                min(terms.burst, terms.rate.burst_max),
                terms.rate.interval_us,
                window * 1000 if policy.count == "new_numbers" else 0,
                window,
                terms.rate.count,
            )
        if terms.concurrency:
            concurrency = Limit(name + AT_ONCE, shadow, policy.on_store_error, terms.concurrency, life_ms=self.place_ms)  # type: ignore[arg-type]  # as above
        return rate, concurrency


def refuse_unless_admitted(verdict: Verdict) -> None:
    """Raise `quota_exceeded` for the limit that takes longest to have a unit again, if any refused."""
    if not verdict.refused:
        return
    slowest = max(verdict.refused, key=lambda meter: meter.reset_after_seconds)
    raise Refusal(
        Problem.quota_exceeded,
        policy=slowest.limit.policy,
        violated=tuple(dict.fromkeys(meter.limit.policy for meter in verdict.refused)),
        retry_after_seconds=slowest.reset_after_seconds,
        detail=f"The quota '{slowest.limit.policy}' is used up. Try again in {slowest.reset_after_seconds} s.",
    )
