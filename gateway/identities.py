"""What one process knows of callers: the registry of keys, the issuers' public keys, and when to look again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from gateway.authentication import KEYS, Known
from gateway.config import Keys
from gateway.errors import Refusal
from gateway.jwks import Jwks
from gateway.keys import KeyEntry, KeyVersion
from gateway.ledger.registry import KeyRegistry
from gateway.model import Caller

_LOOK_EVERY_SECONDS = 60.0
_DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Identities:
    """The copies a process decides by."""

    registry: KeyRegistry
    jwks: Jwks
    settings: Keys
    clock: Callable[[], float]
    """Unix seconds."""
    warn: Callable[[KeyEntry, KeyVersion], None]
    """Told of a key that ends soon, by one process a day."""

    @property
    def known(self) -> Known:
        """The keys of callers and issuers, as last read."""
        return Known(self.registry.current, self.jwks.key_sets())

    async def open(self) -> None:
        """Read what can be read now; what cannot is read when it is asked for."""
        with suppress(Refusal):  # Not ready yet then, which readiness tells.
            await self.registry.refresh()
        await self.jwks.open()

    async def aclose(self) -> None:
        """Write what was counted, and close."""
        await self.jwks.aclose()
        await self.registry.aclose()

    async def refresh(self, stale: str) -> None:
        """Read again what a refusal called stale, if it changed. Raises: Refusal `ledger_unavailable`."""
        await (self.registry.refresh() if stale == KEYS else self.jwks.refresh(stale))

    async def reach(self, epoch: int) -> None:
        """Read the keys unless they are of that epoch already. Raises: Refusal `ledger_unavailable`."""
        if self.registry.current.epoch < epoch:
            await self.registry.refresh(epoch)

    def used(self, caller: Caller, at: float) -> None:
        """Count one request of a caller; a workload has no key to be counted."""
        if caller.key_version is not None:
            self.registry.used(caller.key_id, caller.key_version, at)

    def ending(self) -> Iterator[tuple[KeyEntry, KeyVersion]]:
        """Yield the live versions that end within `keys.expiry_warning_days`."""
        now = self.clock()
        for entry in self.registry.current.entries.values():
            for version in entry.versions:
                soon = (
                    version.expires_at is not None
                    and version.expires_at - now <= self.settings.expiry_warning_days * _DAY_SECONDS
                )
                if soon and version.state(now) == "live":
                    yield entry, version

    async def warn_for_ever(self) -> None:
        """Warn of keys that end soon, each once a day among all processes; to be cancelled."""
        while True:
            for entry, version in list(self.ending()):
                if await self.registry.first_to_warn(f"{entry.key_id}.{version.number}"):
                    self.warn(entry, version)
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
