"""How the server is, over HTTP: a request handler like any other, for a server of ours.

=============  ==========================================================================
path           answer
=============  ==========================================================================
``/``          a page for people, which asks for ``/live``
``/healthz``   200 as long as there is anybody to answer
``/readyz``    200 if clients can be sent here, else 503 and why not
``/metrics``   all counters, for Prometheus
``/sessions``  the open sessions, as JSON
``/live``      what the page shows, as JSON: the counters, the sessions open for longest
=============  ==========================================================================
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

from .addresses import format_peer
from .exposition import CONTENT_TYPE, format_metrics
from .logs import Event
from .metrics import Snapshot
from .status_page import PAGE, SCRIPT, STYLE
from .version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["StatusHandler", "status_handler", "why_not_ready"]

_log = logging.getLogger("stdserve")

#: Seconds without a heartbeat after which a worker counts as stuck; there is one every second.
STALE_SECONDS = 10.0

#: Sessions that the page gets; all of them are at /sessions.
MOST_LISTED = 100

#: Seconds that a client may be silent. How long it may take in all is for the server's options to say.
SILENCE_SECONDS = 5.0

_TEXT = "text/plain; charset=utf-8"


def why_not_ready(snapshot: Snapshot) -> str:
    """Say in a few words why no clients should be sent here; "" if they should.

    Workers that start or drain while others serve are how a reload goes; one that is stuck is not.
    """
    if snapshot.draining:
        return "draining"
    serving = [worker for worker in snapshot.workers if worker.state == "serving"]
    if not serving:
        return "no worker serves"
    stuck = [worker.heartbeat for worker in serving if worker.heartbeat > STALE_SECONDS]
    return f"{len(stuck)} of {len(serving)} workers stuck, for {max(stuck):.0f} s" if stuck else ""


def status_handler(snapshot: Callable[[bool], Snapshot]) -> type[StatusHandler]:
    """Return the handler that tells what ``snapshot(with_sessions)`` returns."""

    class Handler(StatusHandler):
        def snapshot(self, sessions: bool = False) -> Snapshot:
            return snapshot(sessions)

    return Handler


class StatusHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD, one request a connection, and nothing else; a subclass says where the numbers are from."""

    #: StreamRequestHandler's name for it.
    timeout = SILENCE_SECONDS

    error_message_format = "%(code)d %(message)s\n"
    error_content_type = _TEXT

    def snapshot(self, sessions: bool = False) -> Snapshot:
        """Return the counters as they are, with a record of each session if asked for; to be overridden."""
        raise NotImplementedError

    def do_GET(self) -> None:  # noqa: N802 - the standard library's name
        """Answer, or say 404."""
        answers: dict[str, Callable[[], None]] = {
            "/": self._page,
            "/healthz": lambda: self._send(_TEXT, "ok\n"),
            "/readyz": self._readiness,
            "/metrics": lambda: self._send(CONTENT_TYPE, format_metrics(self.snapshot())),
            "/sessions": self._sessions,
            "/live": self._live,
        }
        answer = answers.get(self.path.partition("?")[0])
        if answer is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            answer()

    do_HEAD = do_GET  # noqa: N815 - the standard library's name

    def version_string(self) -> str:
        """Name no versions to strangers."""
        return "stdserve"

    def log_message(self, format: str, *args: Any) -> None:
        """Log at debug level: somebody asks every few seconds."""
        _log.debug(Event("status", format % args, peer=format_peer(self.client_address)))

    def _page(self) -> None:
        self._send("text/html; charset=utf-8", PAGE, policy=_page_policy())

    def _readiness(self) -> None:
        reason = why_not_ready(self.snapshot())
        status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
        self._send(_TEXT, f"{reason or 'ready'}\n", status)

    def _sessions(self) -> None:
        snapshot = self.snapshot(sessions=True)
        self._send_json({"open": snapshot.open, "sessions": [asdict(session) for session in snapshot.sessions]})

    def _live(self) -> None:
        snapshot = self.snapshot(sessions=True)
        numbers = {name: value for name, value in vars(snapshot).items() if name not in ("sessions", "durations")}
        numbers["workers"] = [asdict(worker) for worker in snapshot.workers]
        numbers["backlogs"] = [asdict(backlog) for backlog in snapshot.backlogs]
        numbers["sessions"] = [asdict(session) for session in snapshot.sessions[:MOST_LISTED]]
        self._send_json({"version": __version__, "not_ready": why_not_ready(snapshot), **numbers})

    def _send_json(self, value: Any) -> None:
        self._send("application/json", json.dumps(value) + "\n")

    def _send(self, kind: str, text: str, status: HTTPStatus = HTTPStatus.OK, policy: str = "") -> None:
        body = text.encode()
        self.send_response(status)
        if policy:
            self.send_header("Content-Security-Policy", policy)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@cache
def _page_policy() -> str:
    """Allow the page its own script and style and its own server, nothing else (CSP level 2)."""
    from base64 import b64encode
    from hashlib import sha256

    def allow(text: str) -> str:
        return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {allow(SCRIPT)}; style-src {allow(STYLE)}; connect-src 'self'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
