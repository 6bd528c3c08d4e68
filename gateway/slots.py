"""Which of an account's credentials to use, judged by what the vendor says of them.

The active slot is agreed on in Redis, the same for every process. Here one process keeps what it saw: a credential is
*rejected* after several rejections in a row with no success between, so that one odd answer changes nothing. A mark
belongs to one version of a credential: a new one starts clean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.errors import Problem, Refusal
from gateway.model import SLOTS, Slot, VendorCredential

# The vendor says "invalid parameters" also for a credential that is no longer good.
_AMBIGUOUS: Final = Problem.vendor_parameters_invalid
_REJECTIONS: Final = frozenset((Problem.upstream_credential_rejected, Problem.upstream_token_unknown))
_BEYOND: Final = frozenset(
    (
        Problem.vendor_numbers_equal,
        Problem.vendor_expiry_not_integer,
        Problem.masking_not_expired,
        Problem.masking_not_inserted,
        Problem.masking_number_unavailable,
        Problem.vendor_number_invalid,
        Problem.masking_not_found,
    )
)
_TAKEN_AT_ITS_WORD_SECONDS: Final = 5.0


@dataclass(slots=True)
class _Standing:
    """What one process saw of one version of a credential."""

    version: str = ""
    worked: bool = False
    rejections: int = 0
    """In a row."""


@dataclass(slots=True)
class Slots:
    """The slots of one account, as one process sees them."""

    rejections_to_switch: int
    active: Slot = SLOTS[0]
    """As Redis last said."""
    _standings: dict[Slot, _Standing] = field(default_factory=lambda: {slot: _Standing() for slot in SLOTS})
    _at_its_word: dict[str, float] = field(default_factory=dict)
    """Until when an ambiguous refusal of a service's call is taken for one of its parameters."""

    def choose(self, loaded: Mapping[Slot, VendorCredential]) -> VendorCredential:
        """Return the credential to use: the active slot's, or the other's where that is empty.

        Raises: Refusal `upstream_credentials_rejected` while the vendor rejects all there are.
        """
        if self.exhausted(loaded):
            raise Refusal(Problem.upstream_credentials_rejected)
        return loaded.get(self.active) or next(iter(loaded.values()))

    def exhausted(self, loaded: Mapping[Slot, VendorCredential]) -> bool:
        """Say whether every credential there is counts as rejected."""
        return all(self.is_rejected(credential) for credential in loaded.values())

    def is_rejected(self, credential: VendorCredential) -> bool:
        """Say whether a credential counts as rejected."""
        standing = self._standings[credential.slot]
        return standing.version == credential.version and standing.rejections >= self.rejections_to_switch

    def is_active_rejected(self, loaded: Mapping[Slot, VendorCredential]) -> bool:
        """Say whether the credential in use counts as rejected."""
        return self.active in loaded and self.is_rejected(loaded[self.active])

    def accepted(self, credential: VendorCredential) -> bool:
        """Note that the vendor took a credential; say whether it counted as rejected until now."""
        was = self.is_rejected(credential)
        standing = self._standing(credential)
        standing.worked, standing.rejections = True, 0
        return was

    def doubts(self, credential: VendorCredential, problem: Problem, service: str, now: float) -> bool:
        """Say whether an answer may mean the credential, so that the call is worth a try with the other one."""
        if problem in _REJECTIONS:
            return True
        # Only where it worked before; and a caller whose parameters are wrong must not double its calls to the vendor.
        return (
            problem is _AMBIGUOUS and self._standing(credential).worked and now >= self._at_its_word.get(service, float("-inf"))
        )

    def rejected(self, credential: VendorCredential) -> bool:
        """Note that the vendor rejected a credential; say whether it counts as rejected from now on."""
        standing = self._standing(credential)
        standing.rejections += 1
        return standing.rejections == self.rejections_to_switch

    def parameters_were_wrong(self, service: str, now: float) -> None:
        """Note that both credentials got the ambiguous refusal: it is the service's parameters."""
        self._at_its_word = {name: until for name, until in self._at_its_word.items() if until > now}
        self._at_its_word[service] = now + _TAKEN_AT_ITS_WORD_SECONDS

    def other(self, credential: VendorCredential, loaded: Mapping[Slot, VendorCredential]) -> VendorCredential | None:
        """Return the credential that stands by, or None."""
        return next((other for other in loaded.values() if other.slot != credential.slot), None)

    def _standing(self, credential: VendorCredential) -> _Standing:
        standing = self._standings[credential.slot]
        if standing.version != credential.version:
            standing = self._standings[credential.slot] = _Standing(credential.version)
        return standing


def shows_acceptance(problem: Problem) -> bool:
    """Say whether the vendor's refusal shows that it looked beyond the credential."""
    return problem in _BEYOND


def is_rejection(problem: Problem | None) -> bool:
    """Say whether the vendor's answer means its credential and nothing else."""
    return problem in _REJECTIONS
