"""`gateway sandbox`, also `python -m gateway.sandbox`: the stand-in alone, for trying and testing."""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final

import uvloop

from gateway.sandbox.faults import ANSWERS, Faults, read_faults
from gateway.sandbox.server import Config
from gateway.sandbox.wire import serve

_PORT_FAULTS: Final = (errno.EADDRINUSE, errno.EACCES)


def main(words: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status."""
    parser = _parser()
    arguments = parser.parse_args(words)
    try:
        faults = _switched(arguments.fault)
    except ValueError as error:
        parser.error(f"--fault {error}")
    try:
        listener = socket.create_server((arguments.host, arguments.port), backlog=1024)
    except (OSError, OverflowError) as error:
        print(f"sandbox: cannot listen on {arguments.host}:{arguments.port} {_why(error)}", file=sys.stderr)
        return 1
    config = Config(
        ssids=tuple(arguments.ssid or [os.environ.get("SANDBOX_SSID", "sandbox-ssid")]),
        user_id=arguments.user_id,
        token=arguments.token,
        read_only_ssids=tuple(arguments.read_only_ssid),
        suspended_ssids=tuple(arguments.suspended_ssid),
        pool=arguments.pool,
        recorded_max=arguments.recorded_max,
        faults=faults,
    )
    uvloop.run(_run(config, listener))
    return 0


async def _run(config: Config, listener: socket.socket) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await serve(config, listener, time.time, stop)


def _why(error: OSError | OverflowError) -> str:
    """Return the reason and the fix."""
    if isinstance(error, OverflowError):
        return "(no such port): pass --port N, at most 65535"
    wrong = "--port N" if error.errno in _PORT_FAULTS else "--host with an address of this machine"
    return f"({error.strerror}): pass {wrong}"


def _switched(words: Sequence[str]) -> Faults:
    """Read `--fault NAME` (an answer) and `--fault SWITCH=VALUE`. Raises: ValueError that names the switch."""
    wanted = {}
    for word in words:
        name, given, value = word.partition("=")
        if given:
            wanted[name] = _value(value)
        else:
            wanted["answer"] = name
    return read_faults(wanted)


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


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
    parser.add_argument("--recorded-max", type=int, default=100_000, metavar="N", help="received calls that are kept; 0: none")
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="NAME|SWITCH=VALUE",
        help="start with an answer (" + "; ".join(f"{name}: {text}" for name, text in ANSWERS.items()) + ") "
        "or with any other switch, such as error_status=422; may be given more than once",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
