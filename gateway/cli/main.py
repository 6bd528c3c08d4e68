"""`gateway`: finds the command, loads it and no other, runs it, and turns every expected fault into one line and a status.

The line is on standard error and says the reason and the fix.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final

from gateway import __version__
from gateway.config import ConfigError
from gateway.errors import Complaint, Refusal

_COMMANDS: Final = {
    "demo": "start everything on this machine and make one call",
    "openapi": "print the API's description, to be published",
    "serve": "serve callers",
    "check": "report every fault of settings, secrets, Redis, vendor",
    "leak-check": "plant secrets and numbers, drive every path, search every sink",
    "sandbox": "run the vendor's stand-in alone; see `gateway sandbox --help`",
    "keys": "issue, rotate, extend, list and revoke callers' keys",
    "upstream": "see, prove and change the vendor credential in use",
    "limits": "see, change, explain and try limits",
    "log": "see and change which lines of the log are written",
    "drill": "let a running gateway do without Redis, and see",
    "console": "serve the console, and manage keys to it",
    "audit": "read the audit trail",
}
_CONFIGURED: Final = ("serve", "check", "console")
"""Take `--config` themselves; of the others their subcommands do."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 wrong usage or settings."""
    words = sys.argv[1:] if words is None else list(words)
    if words[:1] == ["sandbox"]:
        from gateway.sandbox.__main__ import main as sandbox_main  # noqa: PLC0415 - a serving gateway never loads it

        return sandbox_main(words[1:])
    arguments = make_parser(*words[:1]).parse_args(words)
    try:
        status: int = arguments.run(arguments)
        return status
    except ConfigError as error:
        for fault in error.faults:
            _complain(str(fault))
        return 2
    except Complaint as complaint:
        _complain(str(complaint))
        return 2
    except Refusal as refusal:
        _complain(
            f"{refusal.problem.slug}: Redis does not answer ({refusal.facts.get('error', 'no reason given')}); "
            "see `gateway check`"
        )
        return 1
    except OSError as error:
        _complain(f"{error.strerror or error}: {error.filename or 'no file'}")
        return 1
    except KeyboardInterrupt:
        return 130


def make_parser(asked: str = "") -> argparse.ArgumentParser:
    """Return what reads the words of a command line; of the command that is asked for it knows the options, of others the name.

    What a command needs is most of what the gateway is, and a person waits while it is loaded.
    """
    parser = argparse.ArgumentParser(prog="gateway", description="Swaps an internal credential for the vendor's.")
    parser.add_argument("--version", action="version", version=f"gateway {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    configured = argparse.ArgumentParser(add_help=False)
    configured.add_argument("--config", metavar="FILE", help="settings; GATEWAY_CONFIG or config/gateway.toml if not given")
    for name, told in _COMMANDS.items():
        parents = [configured] if name in _CONFIGURED else []
        command = commands.add_parser(name, parents=parents, help=told, add_help=name != "sandbox")
        if name == asked:
            _add(name, command, configured)
    return parser


def _add(name: str, command: argparse.ArgumentParser, configured: argparse.ArgumentParser) -> None:
    if own := _OWN.get(name):
        own(command, configured)
    elif name != "sandbox":
        add: Callable[..., None] = getattr(import_module(f"gateway.cli.{name}"), f"add_{name}")
        add(command, configured)


def _add_demo(command: argparse.ArgumentParser, _: argparse.ArgumentParser) -> None:
    from gateway import demo  # noqa: PLC0415 - of another command

    command.add_argument("--once", action="store_true", help="end after the call")
    command.add_argument("--port", type=int, default=8080)
    command.set_defaults(run=demo.run)


def _add_openapi(command: argparse.ArgumentParser, _: argparse.ArgumentParser) -> None:
    command.add_argument("--html", action="store_true", help="as a page that needs nothing else")
    command.set_defaults(run=_openapi)


def _openapi(arguments: argparse.Namespace) -> int:
    from gateway import docs, openapi  # noqa: PLC0415 - of another command

    document = openapi.describe_api(__version__)
    print(docs.render(document).html if arguments.html else json.dumps(document, indent=2))
    return 0


def _add_check(command: argparse.ArgumentParser, _: argparse.ArgumentParser) -> None:
    command.add_argument("--offline", action="store_true", help="ask neither Redis nor the vendor")
    command.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    from gateway import check  # noqa: PLC0415 - of another command
    from gateway.cli.opened import config_path  # noqa: PLC0415 - the same

    findings = check.check(config_path(arguments), os.environ, online=not arguments.offline)
    for finding in findings:
        print(finding)
    faults = [finding for finding in findings if finding.level == "fault"]
    print(f"{len(faults)} faults, {len(findings) - len(faults)} other findings" if findings else "all is well")
    return 1 if faults else 0


def _add_leak_check(command: argparse.ArgumentParser, _: argparse.ArgumentParser) -> None:
    from gateway import leak_check  # noqa: PLC0415 - of another command

    command.add_argument("--json", action="store_true")
    command.set_defaults(run=leak_check.run)


_OWN: dict[str, Callable[[argparse.ArgumentParser, argparse.ArgumentParser], None]] = {
    "demo": _add_demo, "openapi": _add_openapi, "check": _add_check, "leak-check": _add_leak_check,
}  # fmt: skip


def _complain(line: str) -> None:
    print(f"gateway: {line}", file=sys.stderr)
