"""`gateway log`: see and change, on every running process, which lines of the log are written."""

from __future__ import annotations

import argparse
import secrets
import time
from typing import Any, Final

from gateway import audit
from gateway.cli.opened import operator, tell, with_store
from gateway.ledger.levels import Change
from gateway.ledger.names import KEYS_TAG
from gateway.opened import Opened, UsageError, WrongField, read_why, span
from gateway.telemetry import ALL, LEVELS, LIBRARIES, MODULES
from gateway.trail.table import level_table

_LONGEST_SECONDS: Final = 7 * 86_400
_SPAN: Final = "1h"
_MODULE_HELP: Final = (
    f"one of {', '.join(MODULES)}, or a library: {', '.join(LIBRARIES)}; every one of the gateway's if not given"
)


def add_log(parser: argparse.ArgumentParser, configured: argparse.ArgumentParser) -> None:
    """Add the subcommands to `gateway log`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    changing = argparse.ArgumentParser(add_help=False, parents=[configured])
    changing.add_argument("--module", help=_MODULE_HELP)
    changing.add_argument("--why", help="the reason, for the audit trail")

    command = commands.add_parser("show", parents=[configured], help="the level of each part, and until when")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=_show)

    command = commands.add_parser("set", parents=[changing], help="change a level for a while, on every process within a second")
    command.add_argument("level", choices=tuple(LEVELS))
    command.add_argument(
        "--for", dest="span", metavar="SPAN", default=_SPAN, help=f"such as 10m, at most 7d; {_SPAN} if not given"
    )
    command.set_defaults(run=_set)

    command = commands.add_parser("reset", parents=[changing], help="end a change now")
    command.set_defaults(run=_reset)


def _show(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        live = await opened.registry.log_levels()
        configured = opened.settings.log.level
        names = (ALL, *MODULES, *(name for name in LIBRARIES if name in live))
        tell([_row(name, live, configured) for name in names], level_table, as_json=arguments.json)
        return 0

    return with_store(arguments, work)


def _set(arguments: argparse.Namespace) -> int:
    seconds = span(arguments.span)
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise UsageError("--for: must be from 1s to 7d; what is to hold for longer belongs into the settings, as log.level")
    return _change(arguments, Change(arguments.level, seconds, operator(), _why(arguments)))


def _reset(arguments: argparse.Namespace) -> int:
    return _change(arguments, None)


def _change(arguments: argparse.Namespace, change: Change | None) -> int:
    module, why = _module(arguments.module), _why(arguments)

    async def work(opened: Opened) -> int:
        configured = opened.settings.log.level
        live = await opened.registry.log_levels()
        if change is None and module not in live:
            raise UsageError(f"--module: nothing is changed of {module}; see `gateway log show`")
        before = _row(module, live, configured)["level"]
        others = {name: made for name, made in live.items() if name != module}
        after = _row(module, others if change is None else {**others, module: change}, configured)["level"]
        record = audit.change(
            "log.set" if change else "log.reset", at=time.time(), request_id=secrets.token_hex(16), account=KEYS_TAG,
            operator=operator(), subject=module, before=before, after=after,
            until=time.time() + change.left_seconds if change else None, why=why,
        )  # fmt: skip
        await opened.registry.change_log_level(module, change, record)
        print(f"{module}: {before} -> {after}{f', for {arguments.span}' if change else ''}; on every process within a second")
        return 0

    return with_store(arguments, work)


def _module(given: str | None) -> str:
    name = ALL if given is None else given.removeprefix(f"{ALL}.")
    if name not in (ALL, *MODULES, *LIBRARIES):
        raise UsageError(f"--module: there is no '{given}'; there are {', '.join((*MODULES, *LIBRARIES))}")
    return name


def _why(arguments: argparse.Namespace) -> str | None:
    try:
        return read_why(arguments.why) if arguments.why else None
    except WrongField as wrong:
        raise UsageError(f"--{wrong}") from None


def _row(name: str, live: dict[str, Change], configured: str) -> dict[str, Any]:
    """Return what is listed of one part: its own change, else that of all, else what the settings say."""
    change = live.get(name) or (None if name in LIBRARIES else live.get(ALL))
    return {
        "module": name,
        "level": change.level if change else "error" if name in LIBRARIES else configured,
        "left_seconds": round(change.left_seconds) if change else None,
        "operator": change.operator if change else None,
        "why": change.why if change else None,
    }
