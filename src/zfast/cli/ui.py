"""``zfast ui``: a local page of what runs, live. Each open page has a subscription of its own."""

from __future__ import annotations

import contextlib
import importlib.resources
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from zfast.cli.event_options import HERE, Source
from zfast.cli.key_options import Flag
from zfast.cli.numbers import Port
from zfast.errors import ConfigError, RecvTimeoutError
from zfast.events.event import Gap, Kind, StateEvent, WorkerEvent
from zfast.events.subscription import Subscription

logger = logging.getLogger("zfast.events")

#: Not one of the three that a relay at 7410, as in the documentation, takes.
DEFAULT_PORT = 7420
#: Pages that may be open at one time.
MAX_PAGES = 16
#: Events are sent together that came within this time: a screen shows no more.
BATCH_S = 0.05
#: A page that has gone is noticed when it is written to.
BEAT_S = 5.0
_BATCH_EVENTS = 500
_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def ui(
    *,
    port: Port = DEFAULT_PORT,
    json: Flag = False,
    source: Source = HERE,
) -> None:
    """Serve a page of what runs, live, on this host's loopback interface, until Ctrl-C.

    Parameters
    ----------
    port
        Of the page; 0 lets the system choose.
    json
        Print the page's address as JSON.
    """
    source.subscribe().__exit__(None, None, None)  # a wrong argument is told now, not to a page
    server = PageServer(port, lambda: source.subscribe(kinds=[kind.value for kind in Kind]))
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    line = msgspec.json.encode({"url": server.url}).decode() if json else f"page at {server.url}"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    try:
        server.serve_forever(poll_interval=0.2)
    finally:
        server.server_close()


class PageServer(ThreadingHTTPServer):
    """The page at ``/``, events at ``/events``. Loopback only.

    Args:
        port: 0 lets the system choose.
        open_subscription: Makes a page's.

    Raises:
        ConfigError: The port is taken.
    """

    #: ``server_close`` waits for the pages' threads, whose sockets end with the process.
    daemon_threads = False

    def __init__(self, port: int, open_subscription: Callable[[], Subscription]) -> None:
        self.open_subscription = open_subscription
        self.pages = threading.BoundedSemaphore(MAX_PAGES)
        self.ending = threading.Event()
        try:
            super().__init__(("127.0.0.1", port), _PageHandler)
        except OSError as error:
            raise ConfigError(
                f"the page cannot be served at port {port}: {error.strerror}",
                hint="choose another port",
            ) from error
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that goes in the midst of an answer is no error; what is one is logged."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            logger.exception("a request from %s failed", client_address)

    def server_close(self) -> None:
        """Close, once every page has ended; it waits for them."""
        self.ending.set()
        super().server_close()

    def stop(self) -> None:
        """End ``serve_forever``; returns at once, for it may be called within it."""
        self.ending.set()
        threading.Thread(target=self.shutdown, daemon=True).start()


class _PageHandler(BaseHTTPRequestHandler):
    server: PageServer
    #: Seconds that a page may keep us waiting.
    timeout = 5

    def do_GET(self) -> None:
        # A name that leads here from elsewhere is not ours: a page of its could read the events.
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        if host not in _HOSTS:
            self.send_error(403, "this page is for this host only")
        elif self.path == "/":
            self._send_page()
        elif self.path == "/events":
            if not self.server.pages.acquire(blocking=False):
                self.send_error(503, "too many pages are open")
                return
            try:
                with contextlib.suppress(ConnectionError):
                    self._send_events()
            finally:
                self.server.pages.release()
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal is for what the user asked for."""

    def _send_page(self) -> None:
        page = importlib.resources.files("zfast.cli").joinpath("ui.html").read_bytes()
        self._begin("text/html; charset=utf-8", len(page))
        self.wfile.write(page)

    def _send_events(self) -> None:
        self._begin("text/event-stream", None)
        written_s = time.monotonic()
        with self.server.open_subscription() as events:
            while not self.server.ending.is_set():
                batch = _gather(events)
                now = time.monotonic()
                if batch:
                    self.wfile.write(b"data: " + msgspec.json.encode(batch) + b"\n\n")
                elif now - written_s > BEAT_S:
                    self.wfile.write(b": \n\n")
                else:
                    continue
                written_s = now

    def _begin(self, content_type: str, nbytes: int | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        if nbytes is not None:
            self.send_header("Content-Length", str(nbytes))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()


def _gather(events: Subscription) -> list[dict[str, Any]]:
    """What comes within a moment of the first event; nothing, if none comes in a while."""
    batch: list[dict[str, Any]] = []
    end_s = time.monotonic() + 10 * BATCH_S
    while (left_s := end_s - time.monotonic()) > 0 and len(batch) < _BATCH_EVENTS:
        try:
            event = events.recv(left_s)
        except RecvTimeoutError:
            break
        if not batch:
            end_s = time.monotonic() + BATCH_S
        if isinstance(event, StateEvent):
            late_ms = None if event.replayed else (time.time_ns() - event.state_ns) / 1e6
            batch.append({"event": "state", "late_ms": late_ms, **msgspec.structs.asdict(event)})
        elif isinstance(event, WorkerEvent):
            batch.append({"event": "worker", **msgspec.structs.asdict(event)})
        elif isinstance(event, Gap):
            batch.append({"event": "gap", "lost": event.lost})
    return batch
