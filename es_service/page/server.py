"""Serves the page of one run to browsers on this machine: three files and a stream of server-sent events.

Whoever may open a connection to 127.0.0.1 here may read the page. It listens on no other address, answers GET and HEAD
alone, and only where the Host header names this machine, so that a web site that points its own name here gets nothing
(DNS rebinding). What it sends is read from the run's directory; nothing is taken from the request but its path.
"""

from __future__ import annotations

import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from es_service.config import RunConfig
from es_service.data import Baselines
from es_service.directory import RunDirectory
from es_service.errors import ConfigError
from es_service.page.board import Board, Seen
from es_service.problem import batch_of, figure_of, is_egg
from es_service.tail import Facts

__all__ = ["DEFAULT_PORT", "Page", "about_of"]

DEFAULT_PORT = 8270
HOST = "127.0.0.1"

_NAMES = {HOST, "localhost", "[::1]"}  # the last two where a port is forwarded to here
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/chart.js": ("chart.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_MOST_STREAMS = 32
_BEAT_SECONDS = 10.0
"""A comment is sent after this long without news, so that a browser that has gone is noticed."""


class Page:
    """The page of one run; a consumer of its facts (`es_service/tail.py`)."""

    name = "dashboard"

    def __init__(self, config: RunConfig, directory: RunDirectory, port: int | None = None) -> None:
        """Listens at once; `port` None takes the default one, or any that is free. Raises `ConfigError`."""
        self._directory = directory
        self._board = Board(about_of(config, directory.name))
        self._held = False
        self._changed = threading.Condition()
        self._version = 0
        self._streams = 0
        self.ended = False
        self._server = _listen(port, self)
        self.url = f"http://{HOST}:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="page", daemon=True)
        self._thread.start()

    def take(self, facts: Facts) -> None:
        """See `Consumer`. The lock is read before the facts that go with it: an end is not taken for a death."""
        with self._changed:
            self._board.take(facts)
            if self._board.set_running(self._held) or facts:
                self._tell()
        self._held = self._directory.holder() is not None

    def set_baselines(self, values: Baselines) -> None:
        """Bits/byte of simple models, once they are known; from any thread."""
        with self._changed:
            self._board.set_baselines({"unigram": values.unigram, "bigram": values.bigram, "gzip": values.gzip})
            self._tell()

    def close(self) -> None:
        """Browsers are told that nothing more will come."""
        with self._changed:
            self._board.set_running(self._directory.holder() is not None)
            self.ended = True
            self._tell()
            self._changed.wait_for(lambda: self._streams == 0, timeout=2.0)
        self._server.shutdown()
        self._server.server_close()

    def _tell(self) -> None:
        self._version += 1
        self._changed.notify_all()

    # Called by the threads of the streams.

    def enter(self) -> bool:
        """One more stream, if it may be."""
        with self._changed:
            allowed = self._streams < _MOST_STREAMS and not self.ended
            self._streams += allowed
            return allowed

    def leave(self) -> None:
        """One stream less."""
        with self._changed:
            self._streams -= 1
            self._changed.notify_all()

    def news(self, seen: Seen, version: int) -> tuple[int, dict[str, Any]]:
        """Waits for something newer than `version`; its version and what of it `seen` lacks."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, timeout=_BEAT_SECONDS)
            news = self._board.news(seen)
            return self._version, (news | {"ended": True} if self.ended else news)


def about_of(config: RunConfig, name: str) -> dict[str, Any]:
    """What the page says of a config: words, what its figures count; no paths and no addresses."""
    model = config.model
    kind = model.kind.upper().replace("_", " ")
    scored = f"{config.segment.bytes} bytes a segment" if is_egg(config) else f"batches of {batch_of(config):,}"
    words = [
        f"{kind}, {model.layers} layer{'' if model.layers == 1 else 's'}, {model.width} wide",
        f"population {config.population:,}",
        scored,
        f"{config.data.kind} corpus",
        f"seed {config.seed}",
    ]
    units = {
        "loss": figure_of(config),
        "speed": f"{figure_of(config).removeprefix('bits/')}s/s",
        "votes": "pairs" if is_egg(config) else "perturbations",
        "training": "mean of perturbed members" if is_egg(config) else "unperturbed model, on the batch",
    }
    return {"name": name, "goal": config.deployment.generations, "words": words, "units": units}


def _listen(port: int | None, page: Page) -> ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"page": page})
    try:
        return _Server((HOST, DEFAULT_PORT if port is None else port), handler)
    except OSError as error:
        if port is None:
            return _Server((HOST, 0), handler)
        raise ConfigError(
            f"port {port}: the page cannot be served there ({error.strerror}); name another, or 0 for any"
        ) from error


def _is_here(host: str) -> bool:
    """Whether a Host header, with any port, names this machine."""
    name, _, port = host.rpartition(":")
    return host in _NAMES or (name in _NAMES and port.isdecimal())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    page: Page
    timeout = 30.0
    server_version = "es-service"
    sys_version = ""

    def do_GET(self) -> None:
        """One of the files, or the stream."""
        if not _is_here(self.headers.get("Host", "")):
            self._refuse(HTTPStatus.FORBIDDEN, "open this page as http://127.0.0.1 or http://localhost")
        elif self.path == "/events":
            self._stream()
        elif self.path in _FILES:
            file, kind = _FILES[self.path]
            self._answer(HTTPStatus.OK, kind, resources.files(__package__).joinpath(file).read_bytes())
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")

    def do_POST(self) -> None:
        """Nothing here can be changed."""
        self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only")

    do_HEAD = do_GET  # `_answer` leaves the body out, and a stream has none
    do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_POST

    def _stream(self) -> None:
        """Everything so far, then what is new, as JSON in server-sent events until one side ends."""
        if not self.page.enter():
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many pages are open, or the command has ended")
            return
        try:
            self._head(HTTPStatus.OK, "text/event-stream")
            seen, version, ended = Seen(), -1, self.command == "HEAD"
            while not ended:
                version, news = self.page.news(seen, version)
                ended = "ended" in news
                text = f"data: {json.dumps(news)}\n\n" if news else ": nothing new\n\n"
                self.wfile.write(text.encode())
        except OSError:
            return  # the browser has gone
        finally:
            self.page.leave()

    def _refuse(self, status: HTTPStatus, words: str) -> None:
        self._answer(status, "text/plain; charset=utf-8", f"{words}\n".encode())

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self._head(status, kind, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, kind: str, size: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if size is not None:
            self.send_header("Content-Length", str(size))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *values: Any) -> None:  # noqa: A002 - named by http.server
        """Requests are not logged."""
