"""What proofs have in common: the upper hashes of an archive's tree, made beside the pages, so that nobody waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Final

from gateway.trail.archive import ArchiveError, Reader, open_hashes, read_state
from gateway.trail.note import Checkpoint
from gateway.trail.prove import Leaves, ProofError, prove_found

_LEAVES_MAX: Final = 250_000
"""That are hashed while a page waits: some tenths of a second."""


class Tops:
    """Those of one archive, as far as it was read."""

    def __init__(self, folder: Path) -> None:
        """Reads nothing."""
        self._folder = folder
        self._hashes = bytearray()
        self._lock = Lock()
        self._making: Thread | None = None
        self._asked = 0

    def near(self, size: int) -> bool:
        """Say whether a proof in a tree of so many leaves takes little time; where it does not, begin what it takes."""
        if self._making is not None and self._making.is_alive():
            return False
        # What was tried is not tried aside again: what stopped it is for the proof to tell.
        if max(Leaves.held(self._hashes), self._asked) + _LEAVES_MAX >= size:
            return True
        self._asked = size
        self._making = Thread(target=self._make, name="tops", daemon=True)
        self._making.start()
        return False

    def prove(self, reader: Reader, where: Sequence[tuple[int, int]], note: str) -> dict[str, Any]:
        """Return a proof under a signed checkpoint, as `prove_found` does. Raises: ProofError, OSError."""
        with self._lock:
            try:
                return prove_found(reader, where, self._hashes, note)
            except ProofError:
                # One bad record is no reason to hash all again; only hashes of a file that was mended since are.
                if not self._hold(note):
                    self._hashes.clear()
                    self._asked = 0
                raise

    def _hold(self, note: str) -> bool:
        """Say whether the hashes are still those of the signed tree."""
        checkpoint = Checkpoint.parse(note.rpartition("\n\n")[0])
        with Leaves(open_hashes(self._folder), self._hashes) as leaves:
            return leaves.root(checkpoint.size) == checkpoint.root

    def _make(self) -> None:
        with self._lock, suppress(OSError), Leaves(open_hashes(self._folder), self._hashes) as leaves:
            leaves.root(leaves.size)


@lru_cache(maxsize=4)
def tops_of(folder: Path, _: str) -> Tops:
    """Return those of the archive in a folder that has an id, the same each time."""
    return Tops(folder)


def prepare(folder: Path) -> None:
    """Begin what the first proof of an archive would wait for; where there is none, or none to be read, nothing."""
    with suppress(ArchiveError, OSError):
        state = read_state(folder)
        tops_of(folder, state.id).near(state.size)
