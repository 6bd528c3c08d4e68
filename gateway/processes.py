"""The gateway's own commands, run as processes of their own: what the demo and the leak check are made of."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

_READY_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 55.0
_AGAIN_SECONDS: Final = 5.0
_ADDRESS: Final = re.compile(r"http://127\.0\.0\.1:\d+")


class ProcessError(Exception):
    """A process did not do what it was started for. The message is one line: the reason and the fix."""


class Child:
    """A command that serves, with its output in files; stopped, and waited for, when the stack is left."""

    def __init__(self, stack: ExitStack, name: str, folder: Path, words: Sequence[str], environ: Mapping[str, str]) -> None:
        """`environ` is added to this process' own."""
        self._name = name
        self.out, self.err = folder / f"{name}.log", folder / f"{name}.err"
        with self.out.open("w") as out, self.err.open("w") as err:
            # A session of its own: Ctrl-C is for the parent, which stops its parts in order.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway", *words],
                env={**os.environ, **environ},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        stack.callback(self.stop)

    def alive(self) -> bool:
        """Say whether it runs."""
        return self._process.poll() is None

    def wait_for_address(self) -> str:
        """Return the address it says it listens on. Raises: ProcessError with its own last line."""
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if (found := _ADDRESS.search(self.out.read_text())) and _listens(found[0]):
                return found[0]
            if not self.alive():
                lines = (self.out.read_text() + self.err.read_text()).strip().splitlines()
                raise ProcessError((lines or [f"the {self._name} ended without a word"])[-1].removeprefix("gateway: "))
            time.sleep(0.02)
        raise ProcessError(f"the {self._name} did not start in {_READY_SECONDS:.0f} s; its words are in {self.out}")

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        self._process.terminate()
        try:
            self._process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()


class Beside:
    """A command that runs beside a server, with its output; started again when it ends, until the server is done."""

    def __init__(self, words: Sequence[str]) -> None:
        """Start it."""
        self._words = [*words, "--beside", str(os.getpid())]
        self._done = threading.Event()
        self._changing = threading.Lock()
        self._process = self._started()
        self._watch = threading.Thread(target=self._keep, daemon=True)
        self._watch.start()

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        with self._changing:  # So that no other is started behind this one's back.
            self._done.set()
        self._process.terminate()
        try:
            self._process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._watch.join()

    def _started(self) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C is for the server, which stops its parts in order.
        return subprocess.Popen([sys.executable, "-m", "gateway", *self._words], start_new_session=True)

    def _keep(self) -> None:
        while True:
            self._process.wait()
            self._done.wait(_AGAIN_SECONDS)
            with self._changing:
                if self._done.is_set():
                    return
                self._process = self._started()


def command(words: Sequence[str], environ: Mapping[str, str], *, show: bool = False) -> subprocess.CompletedProcess[str]:
    """Run one of the gateway's commands to its end, as a person would in another terminal."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", *words],
        env={**os.environ, **environ},
        capture_output=not show,
        text=True,
        check=False,
    )


def _listens(address: str) -> bool:
    host, _, port = address.removeprefix("http://").partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True
