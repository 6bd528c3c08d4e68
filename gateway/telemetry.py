"""structlog, set up once per process, and the observer that turns each record into one line of the log.

Each part of the gateway writes under a name of its own, of which the least severe level written may change while it runs.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, MutableMapping
from typing import Any, BinaryIO, Final

import msgspec
import structlog

from gateway.audit import Record, rfc3339
from gateway.tracecontext import running_ids

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
MODULES: Final = ("calls", "identities", "ledger", "log", "process", "trail", "tracing", "upstream", "vault")
"""Under whose names the gateway writes, as `gateway.NAME`."""
LIBRARIES: Final = ("aiohttp", "asyncio", "httpx", "opentelemetry", "redis", "urllib3", "uvicorn")
"""Whose own lines may be written; errors are, unless they are told otherwise."""
ALL: Final = "gateway"
"""Stands for every one of `MODULES`."""
_SILENT: Final = 50
_EVENTS: Final = {"intent": "call.admitted", "outcome": "call.answered", "refusal": "call.refused"}


class _Sink(structlog.BytesLogger):
    """Where the lines of one part of the gateway go, and the least severe level of them that is written."""

    def __init__(self, board: Board, name: str, file: BinaryIO, threshold: int) -> None:
        super().__init__(file, name=f"{ALL}.{name}")
        self.board = board
        self.threshold = threshold


class Logger(structlog.BoundLoggerBase):
    """Writes one JSON object a line, under the name of one part of the gateway."""

    _logger: _Sink

    def of(self, module: str) -> Logger:
        """Return the logger of another part, one of `MODULES`."""
        return self._logger.board.logger(module)

    @property
    def board(self) -> Board:
        """The levels of all parts."""
        return self._logger.board

    @property
    def debugs(self) -> bool:
        """Whether `debug` writes anything: what is dear to make is made only then."""
        return self._logger.threshold <= LEVELS["debug"]

    def debug(self, event: str, **facts: Any) -> None:
        """Write what is of use to whoever looks for a fault."""
        if self.debugs:
            self._proxy_to_logger("debug", event, **facts)

    def info(self, event: str, **facts: Any) -> None:
        """Write what happened."""
        if self._logger.threshold <= LEVELS["info"]:
            self._proxy_to_logger("info", event, **facts)

    def warning(self, event: str, **facts: Any) -> None:
        """Write what somebody should know."""
        if self._logger.threshold <= LEVELS["warning"]:
            self._proxy_to_logger("warning", event, **facts)

    def error(self, event: str, **facts: Any) -> None:
        """Write what somebody should look at."""
        if self._logger.threshold <= LEVELS["error"]:
            self._proxy_to_logger("error", event, **facts)


class Board:
    """The level of each part of the gateway: that of the settings, unless it was changed live."""

    def __init__(self, threshold: int, file: BinaryIO) -> None:
        self._threshold = threshold
        self._file = file
        self._live: Mapping[str, str] = {}
        self._sinks: dict[str, _Sink] = {}

    def logger(self, module: str) -> Logger:
        """Return the logger of one part."""
        if module not in self._sinks:
            self._sinks[module] = _Sink(self, module, self._file, self._of(module))
        return Logger(self._sinks[module], [_rendered], {})

    def adopt(self, live: Mapping[str, str]) -> bool:
        """Let live changes hold, and no others, by part, library, or `ALL`; say whether anything is now another than it was."""
        if live == self._live:
            return False
        libraries = {name for name in (*self._live, *live) if name in LIBRARIES}
        self._live = dict(live)
        for name, sink in self._sinks.items():
            sink.threshold = self._of(name)
        for name in libraries:
            logging.getLogger(name).setLevel(LEVELS.get(live.get(name, ""), logging.NOTSET))
        return True

    def _of(self, module: str) -> int:
        return LEVELS.get(self._live.get(module) or self._live.get(ALL, ""), self._threshold)


def make_logger(level: str) -> Logger:
    """Return the logger of the process itself, which writes to standard output; `silent` writes nothing.

    No processor renders a traceback or an exception's text: both may hold what a caller or the vendor sent.
    """
    # Libraries log addresses, arguments and tracebacks by the standard module: only where and what kind is kept.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Bare())
    logging.basicConfig(level=logging.ERROR, handlers=[handler], force=True)
    return Board(LEVELS.get(level, _SILENT), sys.stdout.buffer).logger("process")


class LogObserver:
    """Writes each record to the log, under the same request id."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    def recorded(self, record: Record) -> None:
        """Write one line."""
        self._logger.info(_EVENTS[record.stage], record=record)

    def ended(self, record: Record) -> None:
        """Write one line: the request's last."""
        self.recorded(record)

    def alarm(self, event: str, **facts: str) -> None:
        """Write one line that somebody should look at."""
        self._logger.error(event, **facts)

    def failed(self, request_id: str, error: Exception) -> None:
        """Write where an unforeseen error was raised: its type and place, never its text."""
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f"{place.tb_frame.f_globals.get('__name__', '?')}:{place.tb_lineno}" if place else "?"
        self._logger.error("call.broke", request_id=request_id, error=type(error).__name__, where=where)


def _rendered(sink: _Sink, level: str, event: MutableMapping[str, Any]) -> bytes:
    """Return the line: what a record tells, or what is told with the time, which a record has of its own."""
    record = event.pop("record", None)
    line = {**event, "level": level, "logger": sink.name, **running_ids()}
    if record is None:
        return msgspec.json.encode({**line, "at": rfc3339(time.time())})
    if record.trace_id is not None:
        line.pop("trace_id", None)
    # Both are objects, and neither is empty.
    return msgspec.json.encode(line)[:-1] + b"," + msgspec.json.encode(record)[1:]


class _Bare(logging.Formatter):
    """Formats a library's log line without its words."""

    def format(self, record: logging.LogRecord) -> str:
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        fields = {
            "event": "library.error" if record.levelno >= logging.ERROR else "library.told",
            "logger": record.name,
            "where": f"{record.module}:{record.lineno}",
            "error": kind,
            "level": record.levelname.lower(),
            **running_ids(),
        }
        return msgspec.json.encode(fields).decode()
