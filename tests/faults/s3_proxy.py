"""A proxy before an S3 server that misbehaves: errors, slowness, uploads that are cut off, replies that are lost."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAILS, IS_SLOW, CUTS_UPLOADS, LOSES_REPLIES = "answers 503", "is slow", "cuts uploads off", "loses replies"
IS_LATE = "answers after something else has happened"
TROUBLES = (FAILS, IS_SLOW, CUTS_UPLOADS, LOSES_REPLIES)
SLOWNESS_S = 0.5
_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "expect"}


@dataclass
class Trouble:
    """What goes wrong with the next requests that fit."""

    kind: str
    times: int
    """How many requests it still happens to."""
    method: str = "PUT"
    part: str = ""
    """In the path of those that fit."""
    first: Callable[[], None] = lambda: None
    """Is called before such a request is looked at."""
    happened: int = 0


@dataclass
class Proxy:
    """Where the proxy listens, and what it does."""

    address: str
    troubles: list[Trouble] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, kind: str, times: int, **fields: Any) -> Trouble:
        """From now on, let `times` requests that fit go wrong; `fields` are others of Trouble."""
        trouble = Trouble(kind, times, **fields)
        self.troubles = [trouble]
        return trouble

    def next(self, method: str, path: str) -> str:
        """Return what is to happen to a request, empty where nothing is."""
        with self.lock:
            for trouble in self.troubles:
                if trouble.times > 0 and trouble.method == method and trouble.part in path:
                    trouble.times -= 1
                    trouble.happened += 1
                    trouble.first()
                    return trouble.kind
        return ""


@contextlib.contextmanager
def misbehaving(endpoint: str) -> Iterator[Proxy]:
    """Run a proxy before the server at `endpoint` for a `with` block."""
    proxy = Proxy("")

    class Handler(_Handler):
        def setup(self) -> None:
            self.proxy, self.endpoint = proxy, endpoint
            super().setup()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.address = "{}:{}".format(*server.server_address)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy
    endpoint: str

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def _pass_on(self) -> None:
        kind = self.proxy.next(self.command, self.path)
        if kind == CUTS_UPLOADS:
            self.rfile.read(int(self.headers.get("Content-Length", 2)) // 2)
            self._hang_up()
            return
        body = self._body()
        if kind == FAILS:
            self._answer(503, {"Content-Type": "application/xml"}, _SLOW_DOWN)
            return
        if kind == IS_SLOW:
            time.sleep(SLOWNESS_S)
        status, headers, reply = self._forward(body)
        if kind == LOSES_REPLIES:
            self._hang_up()
            return
        self._answer(status, headers, reply)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.endpoint, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        with contextlib.closing(connection), connection.getresponse() as response:
            return response.status, dict(response.getheaders()), response.read()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        for name, value in headers.items():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


_SLOW_DOWN = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"""
