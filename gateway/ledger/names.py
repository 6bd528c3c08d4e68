"""What the keys of one vendor account are called in Redis."""

from __future__ import annotations

from typing import Final

KEYS_TAG: Final = ":keys"
"""Stands where an account's name stands, for what is no account's own: keys and their trail. No account can have it."""


class Names:
    """The Redis keys of one vendor account; one hash tag, so that a cluster keeps them in one slot."""

    def __init__(self, account: str) -> None:
        base = f"gw:{{{account}}}:"
        self.account = account
        self.epoch = base + "epoch"
        self.slot = base + "slot"
        self.audit = base + "audit"
        self.tips = base + "tips"
        """By writer: the number and hash of its last record in the stream."""
        self.sealed = base + "sealed"
        """By writer: the number of its last sealed record."""
        self.open = base + "open"
        self.nonce = base + "nonce"
        self._once = base + "once:"
        self.limits = base + "limits"
        self.limits_version = base + "limits:version"
        self.processes = base + "processes"
        self.probe = base + "probe"
        self.refused = base + "refused:"
        """Before the number of a span of time: how often each policy refused."""
        self.ends = base + "ends:"
        """Before a span of pages and the number of one of theirs: what became of calls."""
        self.tried = base + "tried"
        """By slot and version of a credential: when it was tried last, in Unix seconds."""
        self.checkpoint = base + "checkpoint"
        """Of `KEYS_TAG` alone: until when the trail is sealed, in Unix seconds, and how many records are."""

    def once(self, name: str) -> str:
        """Return where the claim on an idempotency key is kept."""
        return self._once + name
