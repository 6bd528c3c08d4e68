"""A vendor that does what a script says, byte by byte: on a socket of its own, a thread for each connection."""

from __future__ import annotations

import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self

SUCCESS: Final = b'{"status":"success","message":"Your masking unset"}'
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_PATIENCE_SECONDS: Final = 10.0


def answered(body: bytes = SUCCESS, *headers: bytes, status: bytes = b"200 OK", length: bool = True) -> bytes:
    """Return the bytes of an answer."""
    lines = [b"HTTP/1.1 " + status, *([b"Content-Length: %d" % len(body)] if length else []), *headers]
    return b"\r\n".join([*lines, b"", body])


class Line:
    """One connection, at the vendor's end."""

    def __init__(self, connection: socket.socket, vendor: ScriptedVendor) -> None:
        self.socket = connection
        self.number = vendor.connections
        """Counts from 1."""
        self._vendor = vendor
        self._rest = b""

    def request(self) -> bytes:
        """Return the next request, whole; empty when the gateway has closed."""
        while b"\r\n\r\n" not in self._rest or len(self._rest) < self._whole():
            more = self._receive()
            if not more:
                return b""
            self._rest += more
        end = self._whole()
        request, self._rest = self._rest[:end], self._rest[end:]
        self._vendor.requests.append(request)
        return request

    def send(self, data: bytes) -> None:
        """Send; whoever does not listen any more gets nothing."""
        with suppress(OSError):
            self.socket.sendall(data)

    def reset(self) -> None:
        """Close with a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def half_close(self) -> None:
        """Say that nothing more will be said, and go on listening."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def wait_until_closed(self) -> None:
        """Wait until the gateway closes."""
        while self._receive():
            pass

    def _whole(self) -> int:
        head = self._rest.index(b"\r\n\r\n") + 4
        length = _LENGTH.search(self._rest[:head])
        return head + (int(length[1]) if length else 0)

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(65_536)
        except OSError:
            return b""


Script = Callable[[Line], None]


class ScriptedVendor:
    """Serves every connection by the script that is set when it comes."""

    def __init__(self, script: Script, context: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.requests: list[bytes] = []
        self.connections = 0
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(_PATIENCE_SECONDS)
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        self._open.add(connection)
        try:
            if self._context is not None:
                self._open.discard(connection)
                connection = self._context.wrap_socket(connection, server_side=True)
                self._open.add(connection)
            self.script(Line(connection, self))
        except OSError:
            pass  # What the gateway does then is what is looked at.
        finally:
            self._open.discard(connection)
            connection.close()
