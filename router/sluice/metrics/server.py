# SPDX-License-Identifier: Apache-2.0
"""HTTP for monitoring and probes. GET only; nothing that a request holds is used but its path.

/metrics   Prometheus' text format
/nics      each NIC's capacity, what is used of it, and by which tenants (JSON)
/healthz   200 while the router's event loop answers and all its parts run
/readyz    200 when pods can be prepared here
"""

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

from prometheus_client import CONTENT_TYPE_LATEST

ANSWER_SECONDS = 2.0
"""A router whose event loop needs longer is not healthy."""
SILENT_SECONDS = 10
"""A client that says nothing for so long is hung up on."""

Answer = tuple[HTTPStatus, str, bytes]
Page = Callable[[], Answer]


def text_page(trouble: Callable[[], str]) -> Page:
    """200 ok, or 503 with what is wrong."""

    def page() -> Answer:
        wrong = trouble()
        status = HTTPStatus.SERVICE_UNAVAILABLE if wrong else HTTPStatus.OK
        return status, "text/plain; charset=utf-8", f"{wrong or 'ok'}\n".encode()

    return page


def json_page(content: Callable[[], Any]) -> Page:
    return lambda: (HTTPStatus.OK, "application/json", json.dumps(content()).encode())


def metrics_page(text: Callable[[], bytes]) -> Page:
    return lambda: (HTTPStatus.OK, CONTENT_TYPE_LATEST, text())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


class HttpServer:
    """Serves pages, each made in the event loop in which this was made. OSError: the address can't be had."""

    def __init__(self, address: str, port: int, pages: dict[str, Page]) -> None:
        loop = asyncio.get_running_loop()

        class Handler(BaseHTTPRequestHandler):
            timeout: ClassVar[int] = SILENT_SECONDS
            protocol_version = "HTTP/1.1"
            server_version = "sluice"
            sys_version = ""

            def do_GET(self) -> None:
                page = pages.get(self.path.partition("?")[0])
                if page is None:
                    self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there are: " + " ".join(pages).encode() + b"\n")
                    return

                async def make() -> Answer:
                    return page()

                try:
                    answer = asyncio.run_coroutine_threadsafe(make(), loop).result(ANSWER_SECONDS)
                except TimeoutError:
                    answer = (HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"the router does not answer in time\n")
                self._answer(*answer)

            def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Scrapes and probes aren't news."""

        self._server = _Server((address, port), Handler)
        self.port = int(self._server.server_address[1])
        self._thread = Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def parse_address(text: str) -> tuple[str, int]:
    """ "9479", ":9479" or "127.0.0.1:9479". ValueError."""
    address, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 <= int(port) < 65536:
        raise ValueError(f"{text!r} is not an address: write [ADDRESS:]PORT, for instance 127.0.0.1:9479")
    return address.strip("[]") or ("0.0.0.0" if ":" in text else "127.0.0.1"), int(port)
