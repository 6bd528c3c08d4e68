"""Work in threads of its own, whose errors are the test's."""

from __future__ import annotations

import threading
from collections.abc import Callable


def guarded(broken: list[str], work: Callable[..., None], *arguments: object) -> threading.Thread:
    """Return a thread that does some work; what it raises is noted in `broken`."""

    def run() -> None:
        try:
            work(*arguments)
        except Exception as error:
            broken.append(f"{work.__name__}: {error!r}")

    return threading.Thread(target=run)
