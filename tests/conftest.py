"""What tests share: one real gateway with a real sandbox and a real Redis-compatible server, and ways to start more."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.running import Redis, Stack

# Hundreds of processes load the gateway, and each would compile all of it anew where nothing may be written beside the sources.
_COMPILED = tempfile.mkdtemp(prefix="compiled-")
atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["PYTHONPYCACHEPREFIX"] = _COMPILED

# A machine that is busy is slow, and that is no fault of what is tested.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway whose quotas are out of the way, and that goes on calling a vendor that fails: one test's faults end with it."""
    with Stack(tmp_path_factory.mktemp("stack"), upstream="breaker_calls = 0") as running:
        yield running
        running.assert_alive()


@pytest.fixture(autouse=True)
def _no_faults_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test's switches end with it."""
    yield
    if "stack" in request.fixturenames:
        request.getfixturevalue("stack").no_faults()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """Start a stack with settings of its own: `start(quotas="…", workers=2)`."""
    running: list[Stack] = []

    def begin(**sections: str) -> Stack:
        stack = Stack(tmp_path / f"s{len(running)}", **sections)
        running.append(stack)
        stack.__enter__()
        return stack

    yield begin
    for stack in reversed(running):
        stack.__exit__(None, None, None)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    """A real Redis-compatible server of the test's own."""
    with Redis(tmp_path / "redis") as server:
        yield server
