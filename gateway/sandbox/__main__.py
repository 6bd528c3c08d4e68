"""`gateway sandbox`, also `python -m gateway.sandbox`: the stand-in alone, for trying and testing."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

import uvloop

from gateway.sandbox.faults import ANSWERS, Faults, read_faults
from gateway.sandbox.server import Config, serve


def main(words: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status."""
    arguments = _parser().parse_args(words)
    try:
        faults = read_faults({"answer": arguments.fault}) if arguments.fault else Faults()
        listener = socket.create_server((arguments.host, arguments.port), backlog=1024)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such port"
        print(f"sandbox: cannot listen on {arguments.host}:{arguments.port} ({reason}): pass --port N", file=sys.stderr)
        return 1
    config = Config(
        ssids=tuple(arguments.ssid or [os.environ.get("SANDBOX_SSID", "sandbox-ssid")]),
        user_id=arguments.user_id,
        token=arguments.token,
        read_only_ssids=tuple(arguments.read_only_ssid),
        suspended_ssids=tuple(arguments.suspended_ssid),
        pool=arguments.pool,
        record=not arguments.no_record,
        faults=faults,
    )
    uvloop.run(_run(config, listener))
    return 0


async def _run(config: Config, listener: socket.socket) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await serve(config, listener, time.time, stop)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gateway sandbox",
        description="The vendor's stand-in: set and unset with real state. While it runs, POST /_sandbox/faults changes "
        "the switches, GET /_sandbox/calls shows what it received.",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9090, help="0 takes a free one")
    parser.add_argument("--ssid", action="append", help="a valid session id; may be given more than once; SANDBOX_SSID")
    parser.add_argument("--user-id", default=os.environ.get("SANDBOX_USER_ID", "sandbox-user"))
    parser.add_argument("--token", default=os.environ.get("SANDBOX_TOKEN", "sandbox-token"))
    parser.add_argument("--read-only-ssid", action="append", default=[], help="valid, but answered with 1015")
    parser.add_argument("--suspended-ssid", action="append", default=[], help="answered with 1039")
    parser.add_argument("--pool", type=int, default=1000, help="virtual numbers; 1505 when all are in use")
    parser.add_argument("--no-record", action="store_true", help="do not keep what is received")
    parser.add_argument("--fault", choices=sorted(ANSWERS), help="; ".join(f"{name}: {text}" for name, text in ANSWERS.items()))
    return parser


if __name__ == "__main__":
    sys.exit(main())
