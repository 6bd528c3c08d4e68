"""`gateway serve`: serve callers, with a store and a sealer beside it where there are no others."""

from __future__ import annotations

import argparse
import os
import socket

from gateway import check, config, embedded, settings_file
from gateway.cli.opened import CONFIG_VARIABLE, has_redis, read_settings
from gateway.config import WORKERS_MAX, Settings
from gateway.opened import UsageError
from gateway.processes import Beside
from gateway.server import bind, serve
from gateway.telemetry import make_logger


def add_serve(parser: argparse.ArgumentParser, _: argparse.ArgumentParser) -> None:
    """Add the options of `gateway serve`."""
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--ops-port", type=int, metavar="N", help="port of /metrics, /livez and /readyz; 0: none")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that share the port")
    parser.set_defaults(run=_serve)


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
        check.durability(config.parse(settings_file.document(path), os.environ), os.environ, log)
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


def _bind_operators(settings: Settings, asked: int | None, listener: socket.socket) -> socket.socket | None:
    """Return where operators get what is for them; None: nowhere. Raises: BindError, UsageError."""
    port = settings.server.ops_port if asked is None else asked
    if not port:
        return None
    # What comes is told apart by the port alone: with another host it could still be both.
    if port == listener.getsockname()[1]:
        raise UsageError("server.ops_port: must not be the port of callers; pass --ops-port N, or 0 for none")
    return bind(settings.server.ops_host, port, "set server.ops_port, or pass --ops-port N, 0 for none")
