"""What commands share: which settings are meant, who runs them, and how they tell rows."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from gateway import embedded
from gateway.config import Settings
from gateway.opened import Opened, UsageError, opening
from gateway.settings_file import load
from gateway.trail.table import show

CONFIG_VARIABLE: Final = "GATEWAY_CONFIG"


def tell(rows: list[dict[str, Any]], table: Callable[[list[dict[str, Any]]], Table], *, as_json: bool) -> None:
    """Print rows, as a JSON object a line or as a table."""
    if as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        show(table(rows))


def with_store(arguments: argparse.Namespace, work: Callable[[Opened], Awaitable[int]], *, reads_trail: bool = False) -> int:
    """Run work on the keys and ledgers, on the embedded server where no Redis is configured.

    `reads_trail`: say where what is read of the trail is not all there is.
    """
    settings, _ = read_settings(arguments, beside_demo=True)
    folder = embedded.state_folder(settings.server.state_dir, os.environ)

    async def run() -> int:
        with ExitStack() as stack:
            found = settings
            if not has_redis(settings):
                store = embedded.start(folder)
                stack.callback(store.close)
                found = replace(settings, redis=replace(settings.redis, url=store.url))
            async with opening(found, folder) as opened:
                code = await work(opened)
                if reads_trail:
                    await _warn_of_what_is_elsewhere(opened)
                return code

    return asyncio.run(run())


def operator() -> str:
    """Return who runs the command, as records name them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


async def _warn_of_what_is_elsewhere(opened: Opened) -> None:
    if opened.reader is None and await opened.registry.checkpoint() is not None:
        print(
            "gateway: the sealed trail is not here, so this is only what Redis still has (audit.stream_hours); run it where "
            "the sealer is, or set audit.archive",
            file=sys.stderr,
        )


def read_settings(arguments: argparse.Namespace, *, beside_demo: bool = False) -> tuple[Settings, Path]:
    """Return the settings and the file they are in. Raises: ConfigError, UsageError."""
    path = config_path(arguments, beside_demo=beside_demo)
    return load(path, os.environ), path


def config_path(arguments: argparse.Namespace, *, beside_demo: bool = False) -> Path:
    """Return the configuration file: `--config`, `GATEWAY_CONFIG`, a running demo's if allowed, `config/gateway.toml`."""
    given = arguments.config or os.environ.get(CONFIG_VARIABLE)
    if given:
        return Path(given)
    own = Path("config/gateway.toml")
    from gateway import demo  # noqa: PLC0415 - seldom wanted, and it loads an HTTP client

    if beside_demo and demo.running(os.environ):
        print(f"gateway: beside the running demo, with its settings: {demo.config_path(os.environ)}", file=sys.stderr)
        return demo.config_path(os.environ)
    if own.exists():
        return own
    raise UsageError("there is no configuration: pass --config FILE, or start `gateway demo` first")


def has_redis(settings: Settings) -> bool:
    """Say whether a Redis is configured."""
    return bool(settings.redis.url or settings.redis.sentinels)
