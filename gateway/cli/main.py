"""`gateway`: finds the command, runs it, and turns every expected fault into one line and a status.

The line is on standard error and says the reason and the fix.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence

from gateway import __version__, check, config, demo, docs, embedded, leak_check
from gateway.cli.audit import add_audit
from gateway.cli.drill import add_drill
from gateway.cli.keys import add_keys
from gateway.cli.limits import add_limits
from gateway.cli.log import add_log
from gateway.cli.opened import CONFIG_VARIABLE, config_path, has_redis, read_settings
from gateway.cli.upstream import add_upstream
from gateway.config import WORKERS_MAX, ConfigError, Settings
from gateway.embedded import EmbeddedError
from gateway.errors import Refusal
from gateway.openapi import describe_api
from gateway.opened import UsageError
from gateway.processes import Beside
from gateway.server import BindError, bind, serve
from gateway.telemetry import make_logger
from gateway.trail.archive import ArchiveError
from gateway.trail.index import BrokenIndex
from gateway.vault import SecretUnreadable


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 wrong usage or settings."""
    words = sys.argv[1:] if words is None else list(words)
    if words[:1] == ["sandbox"]:
        from gateway.sandbox.__main__ import main as sandbox_main  # noqa: PLC0415 - a serving gateway never loads it

        return sandbox_main(words[1:])
    arguments = _parser().parse_args(words)
    try:
        status: int = arguments.run(arguments)
        return status
    except ConfigError as error:
        for fault in error.faults:
            _complain(str(fault))
        return 2
    except (UsageError, BindError, EmbeddedError, SecretUnreadable, ArchiveError, BrokenIndex) as error:
        _complain(str(error))
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


def _serve(arguments: argparse.Namespace) -> int:
    settings, path = read_settings(arguments)
    workers = settings.server.workers if arguments.workers is None else arguments.workers
    if not 1 <= workers <= WORKERS_MAX:
        raise UsageError(f"--workers: must be from 1 to {WORKERS_MAX}")
    folder = embedded.state_folder(settings.server.state_dir, os.environ)
    embedded.make_folder(folder)
    log = make_logger(settings.log.level)
    check.start_faults(settings, os.environ, log)
    listener = bind(arguments.host or settings.server.host, settings.server.port if arguments.port is None else arguments.port)
    operators = _bind_operators(settings, arguments.ops_port, listener)
    host, port = listener.getsockname()[:2]
    store = None if has_redis(settings) else embedded.start(folder)
    try:
        if store is not None:
            os.environ["GATEWAY_REDIS_URL"] = store.url
        os.environ[CONFIG_VARIABLE] = str(path)
        check.durability(config.parse(check.document(path), os.environ), os.environ, log)
        ops = {} if operators is None else {"ops": "http://{}:{}".format(*operators.getsockname()[:2])}
        log.info("gateway.listening", address=f"http://{host}:{port}", workers=workers, **ops)
        inside = settings.audit.sealing == "serve" or (settings.audit.sealing == "auto" and store is not None)
        sealer = Beside(["audit", "seal", "--config", str(path)]) if inside else None
        try:
            serve(settings, listener, operators, workers)
        finally:
            # After the workers: their last records are to be sealed too.
            if sealer is not None:
                sealer.stop()
    finally:
        listener.close()
        if operators is not None:
            operators.close()
        if store is not None:
            store.close()
    return 0


def _console(arguments: argparse.Namespace) -> int:
    from gateway.cli import console  # noqa: PLC0415 - a serving gateway never loads it

    run: Callable[[argparse.Namespace], int] = getattr(console, arguments.does)
    return run(arguments)


def _bind_operators(settings: Settings, asked: int | None, listener: socket.socket) -> socket.socket | None:
    """Return where operators get what is for them; None: nowhere. Raises: BindError, UsageError."""
    port = settings.server.ops_port if asked is None else asked
    if not port:
        return None
    # What comes is told apart by the port alone: with another host it could still be both.
    if port == listener.getsockname()[1]:
        raise UsageError("server.ops_port: must not be the port of callers; pass --ops-port N, or 0 for none")
    return bind(settings.server.ops_host, port, "set server.ops_port, or pass --ops-port N, 0 for none")


def _check(arguments: argparse.Namespace) -> int:
    findings = check.check(config_path(arguments), os.environ, online=not arguments.offline)
    for finding in findings:
        print(finding)
    faults = [finding for finding in findings if finding.level == "fault"]
    print(f"{len(faults)} faults, {len(findings) - len(faults)} other findings" if findings else "all is well")
    return 1 if faults else 0


def _openapi(arguments: argparse.Namespace) -> int:
    document = describe_api(__version__)
    print(docs.render(document).html if arguments.html else json.dumps(document, indent=2))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gateway", description="Swaps an internal credential for the vendor's.")
    parser.add_argument("--version", action="version", version=f"gateway {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    configured = argparse.ArgumentParser(add_help=False)
    configured.add_argument("--config", metavar="FILE", help="settings; GATEWAY_CONFIG or config/gateway.toml if not given")

    command = commands.add_parser("demo", help="start everything on this machine and make one call")
    command.add_argument("--once", action="store_true", help="end after the call")
    command.add_argument("--port", type=int, default=8080)
    command.set_defaults(run=demo.run)

    command = commands.add_parser("openapi", help="print the API's description, to be published")
    command.add_argument("--html", action="store_true", help="as a page that needs nothing else")
    command.set_defaults(run=_openapi)

    command = commands.add_parser("serve", parents=[configured], help="serve callers")
    command.add_argument("--host")
    command.add_argument("--port", type=int)
    command.add_argument("--ops-port", type=int, metavar="N", help="port of /metrics, /livez and /readyz; 0: none")
    command.add_argument("--workers", type=int, metavar="N", help="processes that share the port")
    command.set_defaults(run=_serve)

    command = commands.add_parser("check", parents=[configured], help="report every fault of settings, secrets, Redis, vendor")
    command.add_argument("--offline", action="store_true", help="ask neither Redis nor the vendor")
    command.set_defaults(run=_check)

    command = commands.add_parser("leak-check", help="plant secrets and numbers, drive every path, search every sink")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=leak_check.run)

    commands.add_parser("sandbox", help="run the vendor's stand-in alone; see `gateway sandbox --help`", add_help=False)
    add_keys(commands.add_parser("keys", help="issue, rotate, extend, list and revoke callers' keys"), configured)
    add_upstream(commands.add_parser("upstream", help="see, prove and change the vendor credential in use"), configured)
    add_limits(commands.add_parser("limits", help="see, change, explain and try limits"), configured)
    add_log(commands.add_parser("log", help="see and change which lines of the log are written"), configured)
    add_drill(commands.add_parser("drill", help="let a running gateway do without Redis, and see"), configured)
    _add_console(commands.add_parser("console", parents=[configured], help="serve the console, and manage keys to it"))
    add_audit(commands.add_parser("audit", help="read the audit trail"), configured)
    return parser


def _add_console(parser: argparse.ArgumentParser) -> None:
    """Add the options and subcommands of `gateway console`; it serves where none is given."""
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.set_defaults(run=_console, does="serve")
    commands = parser.add_subparsers(metavar="COMMAND")
    # Named before the subcommand or behind it: what is not named behind it must not undo what was named before.
    configured = argparse.ArgumentParser(add_help=False)
    configured.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS)
    command = commands.add_parser("issue", parents=[configured], help="make a key to the console; it is shown once")
    command.add_argument("name", metavar="NAME")
    command.add_argument("--role", required=True, choices=("auditor", "operator"))
    command.add_argument("--days", type=int, metavar="N", help="how long it is good; for ever if not given")
    command.add_argument("--json", action="store_true")
    command.set_defaults(does="issue")
    command = commands.add_parser("list", parents=[configured], help="show every key to the console, never a secret")
    command.add_argument("--json", action="store_true")
    command.set_defaults(does="list_")
    command = commands.add_parser("revoke", parents=[configured], help="end a key to the console, and its sessions")
    command.add_argument("key", metavar="NAME|ID")
    command.set_defaults(does="revoke")


def _complain(line: str) -> None:
    print(f"gateway: {line}", file=sys.stderr)
