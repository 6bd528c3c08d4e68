"""A raw socket that speaks HTTP as badly as a test wants."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import dataclass
from typing import Any, Self


@dataclass
class RawAnswer:
    """One HTTP answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One TCP connection."""

    def __init__(self, host: str, port: int, timeout: float = 10.0) -> None:
        self.socket = socket.create_connection((host, port), timeout=timeout)
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # Refused already; the answer is what counts.

    def answer(self) -> RawAnswer | None:
        """Return the next answer; None when the connection closed without one."""
        while b"\r\n\r\n" not in self._rest:
            more = self._receive()
            if not more:
                return None
            self._rest += more
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(self._rest) < length and (more := self._receive()):
            self._rest += more
        body, self._rest = self._rest[:length], self._rest[length:]
        return RawAnswer(int(status.split()[1]), headers, body)

    def closed(self) -> bool:
        """Wait for the other side to close; False if it says more instead."""
        return not self._rest and not self._receive()

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(65_536)
        except ConnectionResetError:
            return b""


def post(body: bytes, *headers: str, length: bool = True, path: str = "/api/v2/Masking/unset", version: str = "1.1") -> bytes:
    """Return the bytes of a POST."""
    lines = [f"POST {path} HTTP/{version}", "Host: gateway", *headers]
    if length and not any(re.match(r"(?i)(content-length|transfer-encoding)\s*:", header) for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
