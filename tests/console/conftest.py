"""One console before a filled Redis, for all tests that leave it as it is; and ways to start others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.console.running import Console


@pytest.fixture(scope="session")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """A console before a day of life."""
    with Console(tmp_path_factory.mktemp("console")) as running:
        running.fill()
        running.seal()
        yield running
        assert running.process.alive(), running.process.output()


@pytest.fixture(autouse=True)
def _anew(request: pytest.FixtureRequest) -> None:
    """A test's tries to sign in end with it."""
    if "console" in request.fixturenames:
        request.getfixturevalue("console").forget_tries()


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Console]]:
    """Start a console with settings of its own: `begin(console="session_hours = 1")`."""
    running: list[Console] = []

    def start(**sections: Any) -> Console:
        started = Console(tmp_path / f"c{len(running)}", **sections)
        running.append(started)
        return started.__enter__()

    yield start
    for started in reversed(running):
        started.__exit__(None, None, None)
