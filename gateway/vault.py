"""Reads secrets from where the settings point: environment, file or command; re-reads a file when it changes."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import stat
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from gateway.config import Credential, SecretReference
from gateway.credentials import VendorCredential
from gateway.model import Secret

_COMMAND_SECONDS: Final = 10
_LOOK_EVERY_SECONDS: Final = 1.0


class SecretUnreadable(Exception):
    """A reference leads to no secret. The message says why and what to do, without any value."""


def read_secret(reference: SecretReference, environ: Mapping[str, str]) -> Secret:
    """Return the secret a reference leads to, without the line end that editors and mounts add.

    Raises: SecretUnreadable.
    """
    if reference.source == "env":
        text = environ.get(reference.target[0], "")
        origin = f"environment variable {reference.target[0]}"
    elif reference.source == "file":
        text, origin = _file(reference.target[0]), f"file {reference.target[0]}"
    else:
        text, origin = _command(reference.target), f"command {reference.target[0]}"
    text = text.rstrip("\r\n")
    if not text:
        raise SecretUnreadable(f"{origin} is empty or not set")
    if not text.isprintable():
        raise SecretUnreadable(f"{origin} holds a control character or more than one line")
    return Secret(text)


def open_to_others(path: str) -> bool:
    """Say whether a secret's file can be read by anyone on the machine."""
    return bool(Path(path).stat().st_mode & stat.S_IROTH)


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


class FileVault:
    """Keeps the vendor's credential; a changed file is taken up within a second, a broken one leaves the last good."""

    def __init__(
        self,
        settings: Credential,
        environ: Mapping[str, str],
        version_key: Secret,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`version_key` keys the digest that names a value in records. Raises: SecretUnreadable."""
        self._references = {
            name: reference for name in ("ssid", "user_id", "token") if (reference := getattr(settings, name)) is not None
        }
        self._files = [ref.target[0] for ref in self._references.values() if ref.source == "file"]
        self._environ = environ
        self._version_key = version_key
        self._clock = clock
        self._seen = self._stamps()
        self._looked_at = clock()
        self._current = self._read()

    def current(self) -> tuple[VendorCredential, tuple[str, ...]]:
        """Return the credential and the forms it may take in an answer."""
        if self._files and self._clock() - self._looked_at >= _LOOK_EVERY_SECONDS:
            self._looked_at = self._clock()
            stamps = self._stamps()
            if stamps != self._seen:
                self._reread(stamps)
        return self._current

    def ping(self) -> None:
        """Raise SecretUnreadable when the credential could not be read again now."""
        if self._files:
            self._read()

    def _reread(self, stamps: list[tuple[int, int]]) -> None:
        try:
            self._current = self._read()
        except SecretUnreadable:
            return  # Half-written: the last good value stays, and the next look tries again.
        self._seen = stamps

    def _read(self) -> tuple[VendorCredential, tuple[str, ...]]:
        values = {name: read_secret(reference, self._environ) for name, reference in self._references.items()}
        mac = hmac.new(self._version_key.reveal().encode(), digestmod=hashlib.sha256)
        for name, value in sorted(values.items()):
            mac.update(f"{name}={value.reveal()};".encode())
        credential = VendorCredential(f"active-{mac.hexdigest()[:8]}", **values)
        return credential, credential.forms()

    def _stamps(self) -> list[tuple[int, int]]:
        # The inode too: Kubernetes and careful people replace the file behind a link, and the time may be the same.
        stamps = []
        for path in self._files:
            try:
                status = Path(path).stat()
                stamps.append((status.st_mtime_ns, status.st_ino))
            except OSError:
                stamps.append((0, 0))
        return stamps


def _file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SecretUnreadable(f"file {path} cannot be read: {reason}") from None


def _command(words: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise SecretUnreadable(f"command {words[0]} did not finish in {_COMMAND_SECONDS} s") from None
    except OSError as error:
        raise SecretUnreadable(f"command {words[0]} cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        raise SecretUnreadable(f"command {words[0]} ended with status {done.returncode}")
    return done.stdout
