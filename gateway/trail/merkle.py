"""The tree over all sealed records, and proofs that a record, or an older tree, is in it: RFC 6962, section 2.1.

Hashes are 32 bytes of SHA-256; a leaf's is `audit.chained` of its record. A proof is a list of them, from the leaf upwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

EMPTY = sha256(b"").digest()
"""Root of a tree without leaves."""


def node(left: bytes, right: bytes) -> bytes:
    """Return the hash of two subtrees."""
    return sha256(b"\x01" + left + right).digest()


class Tree:
    """A tree that only grows; holds one hash for each bit of its size."""

    def __init__(self) -> None:
        """Start without leaves."""
        self.size = 0
        self._peaks: list[bytes] = []

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add the hashes of records."""
        peaks, size, hashed = self._peaks, self.size, sha256
        for leaf_hash in leaves:
            size += 1
            grown, carried = leaf_hash, size
            # One of this height stands already: the two become one of the next.
            while not carried & 1:
                grown = hashed(b"\x01" + peaks.pop() + grown).digest()
                carried >>= 1
            peaks.append(grown)
        self.size = size

    @property
    def root(self) -> bytes:
        """The hash over everything."""
        if not self._peaks:
            return EMPTY
        root = self._peaks[-1]
        for left in reversed(self._peaks[:-1]):
            root = node(left, root)
        return root


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Return the root of a tree of these leaves' hashes."""
    tree = Tree()
    tree.extend(leaves)
    return tree.root


def inclusion(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return the proof that leaf `index` is in the tree of these leaves."""
    if len(leaves) <= 1:
        return []
    split = _split(len(leaves))
    if index < split:
        return [*inclusion(leaves[:split], index), root_of(leaves[split:])]
    return [*inclusion(leaves[split:], index - split), root_of(leaves[:split])]


def consistency(leaves: Sequence[bytes], size: int) -> list[bytes]:
    """Return the proof that the tree of the first `size` leaves, at least one, was only added to."""
    return _consistency(leaves, size, whole=True)


def _consistency(leaves: Sequence[bytes], size: int, whole: bool) -> list[bytes]:
    if size == len(leaves):
        return [] if whole else [root_of(leaves)]
    split = _split(len(leaves))
    if size <= split:
        return [*_consistency(leaves[:split], size, whole), root_of(leaves[split:])]
    return [*_consistency(leaves[split:], size - split, whole=False), root_of(leaves[:split])]


def included(leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Say whether a proof shows that a leaf is in the tree of this size and root."""
    if not 0 <= index < size:
        return False
    found, place, last = leaf_hash, index, size - 1
    for step in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            found = node(step, found)
            # A right edge without a brother takes part again further up.
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = node(found, step)
        place, last = place >> 1, last >> 1
    return last == 0 and found == root


def _split(size: int) -> int:
    """Return the largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1
