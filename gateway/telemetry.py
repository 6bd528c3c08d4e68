"""structlog, set up once per process, and the observer that turns each record into one line of the log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import MutableMapping
from typing import Any, Final

import msgspec
import structlog

from gateway.audit import Record, rfc3339

_EVENTS: Final = {"intent": "call.admitted", "outcome": "call.answered", "refusal": "call.refused"}
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "silent": 50}

Logger = structlog.typing.FilteringBoundLogger


def make_logger(level: str) -> Logger:
    """Return a logger that writes one JSON object a line to standard output.

    No processor renders a traceback or an exception's text: both may hold what a caller or the vendor sent.
    """
    # Libraries log addresses, arguments and tracebacks by the standard module: only where and what kind is kept.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Bare())
    logging.basicConfig(level=logging.ERROR, handlers=[handler], force=True)
    logger: Logger = structlog.wrap_logger(
        structlog.BytesLogger(sys.stdout.buffer),
        processors=[
            structlog.processors.add_log_level,
            _rendered,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        cache_logger_on_first_use=True,
    )
    return logger


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


def _rendered(_: object, __: str, event: MutableMapping[str, Any]) -> bytes:
    """Return the line: what a record tells, or what is told with the time, which a record has of its own."""
    record = event.pop("record", None)
    if record is None:
        return msgspec.json.encode({**event, "at": rfc3339(time.time())})
    # Both are objects, and neither is empty.
    return msgspec.json.encode(event)[:-1] + b"," + msgspec.json.encode(record)[1:]


class _Bare(logging.Formatter):
    """Formats a library's log line without its words."""

    def format(self, record: logging.LogRecord) -> str:
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        fields = {
            "event": "library.error",
            "logger": record.name,
            "where": f"{record.module}:{record.lineno}",
            "error": kind,
            "level": record.levelname.lower(),
        }
        return msgspec.json.encode(fields).decode()
