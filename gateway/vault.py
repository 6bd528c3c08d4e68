"""Reads secrets from where the settings point: environment, file or command; re-reads a file when it changes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import stat
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from gateway.config import Credential, SecretReference
from gateway.credentials import forms_of
from gateway.errors import Complaint
from gateway.model import Secret, Slot, VendorCredential

_COMMAND_SECONDS: Final = 10.0
_LOOK_EVERY_SECONDS: Final = 0.4


class SecretUnreadable(Complaint):
    """A reference leads to no secret. The message says why and what to do, without any value."""


def read_secret(reference: SecretReference, environ: Mapping[str, str], *, command_seconds: float = _COMMAND_SECONDS) -> Secret:
    """Return the secret a reference leads to, without the line end that editors and mounts add.

    Raises: SecretUnreadable.
    """
    if reference.source == "env":
        text = environ.get(reference.target[0], "")
        origin = f"environment variable {reference.target[0]}"
    elif reference.source == "file":
        text, origin = _file(reference.target[0]), f"file {reference.target[0]}"
    else:
        text, origin = _command(reference.target, command_seconds), f"command {reference.target[0]}"
    text = text.rstrip("\r\n")
    if not text:
        raise SecretUnreadable(f"{origin} is empty or not set")
    if not text.isprintable():
        raise SecretUnreadable(f"{origin} holds a control character or more than one line")
    return Secret(text)


def open_to_others(path: str) -> bool:
    """Say whether a secret's file can be read by anyone on the machine, or written by anyone but its owner."""
    return bool(Path(path).stat().st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP))


def make_secret_file(path: Path) -> None:
    """Make a file with a random secret of 64 hex digits, unless there is one. Raises: OSError."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    made.touch(mode=0o600)
    made.write_text(secrets.token_hex(32))
    # Workers start together: the link is made by whoever comes first, and all read the same secret.
    try:
        path.hardlink_to(made)
    except FileExistsError:
        pass
    finally:
        made.unlink()


class Vault:
    """Keeps the credentials of one account.

    A changed file is taken up within about a second, and a command's answer when it is run again; what is broken or
    half-written leaves the last good value in use.
    """

    def __init__(
        self,
        slots: Mapping[Slot, Credential],
        environ: Mapping[str, str],
        version_key: Secret,
        command_seconds: float,
        changed: Callable[[Slot, str, str], None],
    ) -> None:
        """`version_key` keys the digest that names a value in records.

        `changed(slot, version, why)` is told of every new value, and of readings that failed: `why` is not empty then.
        Raises: SecretUnreadable when not one credential can be read.
        """
        self._slots = {slot: _references(credential) for slot, credential in slots.items() if credential.given}
        self._environ = environ
        self._version_key = version_key
        self._command_seconds = command_seconds
        self._changed = changed
        self._seen = {slot: self._stamps(slot) for slot in self._slots}
        self._loaded: dict[Slot, VendorCredential] = {}
        self.loaded_at: dict[Slot, float] = {}
        """Unix seconds at which the value of each slot was read first."""
        self._why: dict[Slot, str] = {}
        for slot in self._slots:
            self._read(slot)
        if not self._loaded:
            raise SecretUnreadable("; ".join(self._why.values()))

    @property
    def loaded(self) -> Mapping[Slot, VendorCredential]:
        """The credentials there are, by slot."""
        return self._loaded

    @property
    def slots(self) -> Collection[Slot]:
        """The slots that the settings give a credential."""
        return self._slots.keys()

    @property
    def unreadable(self) -> Collection[Slot]:
        """The slots whose credential could not be read again, or ever."""
        return self._why.keys()

    def ping(self) -> None:
        """Raise SecretUnreadable when a credential in use could not be read again."""
        if self._why:
            raise SecretUnreadable("; ".join(self._why.values()))

    async def watch(self) -> None:
        """Look for new values for ever; to be cancelled."""
        moved: dict[Slot, list[_Stamp]] = {}
        commands_at = time.monotonic() + self._command_seconds
        while True:
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
            due = time.monotonic() >= commands_at
            if due:
                commands_at = time.monotonic() + self._command_seconds
            for slot, references in self._slots.items():
                stamps = self._stamps(slot)
                # A file that is still being written changes again until the next look; half a secret is not taken.
                settled = stamps != self._seen[slot] and moved.get(slot) == stamps
                moved[slot] = stamps
                if settled or (due and any(reference.source == "command" for reference in references.values())):
                    # A thread: a command may take its time, and a mounted file system too.
                    await asyncio.to_thread(self._read, slot)

    def _read(self, slot: Slot) -> None:
        before = self._stamps(slot)
        try:
            values = {name: read_secret(reference, self._environ) for name, reference in self._slots[slot].items()}
        except SecretUnreadable as error:
            if self._why.get(slot) != str(error):
                self._why[slot] = str(error)
                self._changed(slot, "", str(error))
            return
        if self._stamps(slot) != before:
            return  # Exchanged while being read: an id of before and a token of after would be no pair.
        self._seen[slot] = before
        self._why.pop(slot, None)
        mac = hmac.new(self._version_key.reveal().encode(), digestmod=hashlib.sha256)
        for name, value in sorted(values.items()):
            mac.update(f"{name}={value.reveal()};".encode())
        hidden = [value for name, value in values.items() if name != "user_id"]
        fresh = VendorCredential(slot, mac.hexdigest()[:8], **values, forms=forms_of(hidden))
        if slot not in self._loaded or self._loaded[slot].version != fresh.version:
            self._loaded[slot] = fresh
            self.loaded_at[slot] = time.time()
            self._changed(slot, fresh.version, "")

    def _stamps(self, slot: Slot) -> list[_Stamp]:
        # The inode too: Kubernetes and careful people replace the file behind a link, and the time may be the same.
        stamps = []
        for reference in self._slots[slot].values():
            if reference.source != "file":
                continue
            try:
                status = Path(reference.target[0]).stat()
                stamps.append((status.st_mtime_ns, status.st_ino, status.st_size))
            except OSError:
                stamps.append((0, 0, 0))
        return stamps


_Stamp = tuple[int, int, int]


def _references(credential: Credential) -> dict[str, SecretReference]:
    return {name: reference for name in ("ssid", "user_id", "token") if (reference := getattr(credential, name)) is not None}


def _file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SecretUnreadable(f"file {path} cannot be read: {reason}") from None


def _command(words: tuple[str, ...], seconds: float) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise SecretUnreadable(f"command {words[0]} did not finish in {seconds:g} s") from None
    except OSError as error:
        raise SecretUnreadable(f"command {words[0]} cannot be run: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SecretUnreadable(f"command {words[0]} printed what is not UTF-8") from None
    if done.returncode != 0:
        raise SecretUnreadable(f"command {words[0]} ended with status {done.returncode}")
    return done.stdout
