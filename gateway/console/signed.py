"""What was signed last of a sealed trail, by whose key, and whether the signature holds."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gateway.config import Settings
from gateway.opened import UsageError
from gateway.trail.archive import CHECKPOINT, PUBLIC_KEY
from gateway.trail.note import Checkpoint, NoteError, PublicKey, verified


class Signed(NamedTuple):
    """The newest checkpoint of an archive."""

    note: str = ""
    """As it stands there."""
    checkpoint: Checkpoint | None = None
    """What it says; whoever can write the archive may say it, where `fault` is not empty. None: it cannot be read."""
    key: PublicKey | None = None
    by_own_key: bool = False
    """Whether the key that is believed is the archive's own."""
    fault: str = ""
    """Why it does not hold, in half a line; empty: it does."""

    @property
    def told(self) -> str:
        """What is wrong with it, in half a line; empty: nothing is."""
        return f"the checkpoint does not hold: {self.fault}" if self.fault and self.note else self.fault


def read_signed(settings: Settings, folder: Path) -> Signed:
    """Return what was signed last of the archive in a folder."""
    signed = Signed()
    try:
        signed = signed._replace(note=(folder / CHECKPOINT).read_text(encoding="utf-8"))
        signed = signed._replace(checkpoint=Checkpoint.parse(signed.note.rpartition("\n\n")[0]))
        key, own = believed_key(settings, folder)
        signed = signed._replace(key=key, by_own_key=own)
        verified(signed.note, key)
    except FileNotFoundError:
        return signed._replace(fault="there is no signed checkpoint yet")
    except OSError as error:
        return signed._replace(fault=f"it cannot be read: {error.strerror}")
    except (NoteError, UnicodeDecodeError, UsageError) as error:
        return signed._replace(fault=str(error))
    return signed


def believed_key(settings: Settings, folder: Path) -> tuple[PublicKey, bool]:
    """Return the key that says whether an archive is the sealer's, and whether it is the archive's own. Raises: UsageError."""
    given = settings.console.public_key
    try:
        if given and not Path(given).is_file():
            return PublicKey.parse(given), False
        path = Path(given) if given else folder / PUBLIC_KEY
        return PublicKey.parse(path.read_text(encoding="utf-8")), not given
    except (NoteError, OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{'console.public_key' if given else folder / PUBLIC_KEY}: cannot be read: {reason}") from None
