"""Which quotas a call draws on, and what the limiter's verdict means for the caller."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.config import Quota, Quotas
from gateway.errors import Problem, Refusal
from gateway.model import Call, Charge, Verdict
from gateway.numbers import Pseudonyms


@dataclass(frozen=True, slots=True)
class Policies:
    """The limits of one vendor account."""

    quotas: Quotas
    account: str
    pseudonyms: Pseudonyms

    def charges(self, call: Call) -> tuple[Charge, ...]:
        """Return one charge for the caller, one for each distinct number, one for the account."""
        # Everything of an account shares one hash tag, so that on a cluster one script can reach it all.
        base = f"gw:{{{self.account}}}:quota:"
        numbers = {number.e164 for number in call.numbers.values()}
        return (
            _charge("caller", f"{base}caller:{call.caller.principal}", self.quotas.caller),
            *(_charge("number", f"{base}number:{self.pseudonyms.of(e164)}", self.quotas.number) for e164 in sorted(numbers)),
            *self.account_charge(),
        )

    def account_charge(self) -> tuple[Charge, ...]:
        """Return the charge of one more request to the vendor for a call that paid for everything else."""
        return (_charge("account", f"gw:{{{self.account}}}:quota:account", self.quotas.account),)


def refuse_unless_admitted(verdict: Verdict) -> None:
    """Raise `quota_exceeded` for the quota that takes longest to have a unit again, if any refused."""
    if not verdict.refused:
        return
    slowest = max(verdict.refused, key=lambda meter: meter.reset_after_seconds)
    raise Refusal(
        Problem.quota_exceeded,
        policy=slowest.policy,
        retry_after_seconds=slowest.reset_after_seconds,
        detail=f"The quota '{slowest.policy}' is used up. Try again in {slowest.reset_after_seconds} s.",
    )


def _charge(policy: str, key: str, quota: Quota) -> Charge:
    interval = quota.rate.interval_us
    return Charge(policy, key, interval, interval * (quota.burst - 1))
