"""The status handler over HTTP, on our own server, with numbers of our own; its page in a real browser."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import logging
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from processes import DEADLINE, connect, eventually, peer_program, read_all

from stdserve import serving
from stdserve.backlog import Backlog
from stdserve.metrics import Metrics, SessionRecord, Snapshot, WorkerRecord
from stdserve.status import MOST_LISTED, StatusHandler, status_handler, why_not_ready
from stdserve.status_page import PAGE

CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

WORKER = WorkerRecord(0, 4711, "serving", 0.25, 2)
SESSIONS = (
    SessionRecord("203.0.113.17:51112", 7384.5, 91_233_112, 2_500_000, 434, 20, 4711),
    SessionRecord("<script>document.title = 'taken'</script>", 3.0, 8, 2, 1, 0, 4711),
)
SNAPSHOT = replace(
    Metrics(1, 1).snapshot(),
    uptime=183_000.0,
    open=2,
    total=1234,
    received=3_812_334_112,
    workers=(WORKER,),
    backlogs=(Backlog("127.0.0.1:10001", 3, 4096, 17),),
    sessions=SESSIONS,
)


@contextmanager
def status_of(*snapshots: Snapshot, **settings: Any) -> Iterator[tuple[str, int]]:
    """Serve these snapshots one after the other, the last one for ever; yield the address."""
    left = list(snapshots)

    def take(sessions: bool) -> Snapshot:
        snapshot = left.pop(0) if len(left) > 1 else left[0]
        return snapshot if sessions else replace(snapshot, sessions=())

    with serving(status_handler(take), **settings) as server:
        assert isinstance(server.address, tuple)
        yield server.address


def ask(address: tuple[str, int], path: str, method: str = "GET") -> tuple[http.client.HTTPResponse, str]:
    """Send one request; return the response and its body."""
    client = http.client.HTTPConnection(*address, timeout=DEADLINE)
    client.request(method, path)
    response = client.getresponse()
    body = response.read().decode()
    client.close()
    return response, body


def raw(address: tuple[str, int], request: bytes) -> bytes:
    """Send bytes and return what comes until EOF."""
    with connect(address) as client:
        client.sendall(request)
        return read_all(client)


def test_paths_have_their_answers() -> None:
    """Each with its type; nothing is kept by caches or guessed by browsers."""
    with status_of(SNAPSHOT) as address:
        for path, kind, part in [
            ("/", "text/html; charset=utf-8", "<!DOCTYPE html>\n"),
            ("/?from=bookmark", "text/html; charset=utf-8", "<!DOCTYPE html>\n"),
            ("/healthz", "text/plain; charset=utf-8", "ok\n"),
            ("/readyz", "text/plain; charset=utf-8", "ready\n"),
            ("/metrics", "text/plain; version=0.0.4; charset=utf-8", "\nstdserve_sessions_total 1234\n"),
            ("/sessions", "application/json", '"peer": "203.0.113.17:51112"'),
            ("/live", "application/json", '"total": 1234'),
        ]:
            response, body = ask(address, path)
            assert (200, kind) == (response.status, response.getheader("Content-Type")), path
            assert part in body, path
            assert "no-store" == response.getheader("Cache-Control")
            assert "nosniff" == response.getheader("X-Content-Type-Options")
            assert "stdserve" == response.getheader("Server")


def test_head_is_answered_without_a_body() -> None:
    """As long as it would be."""
    with status_of(SNAPSHOT) as address:
        response, body = ask(address, "/", "HEAD")
        assert (200, "", str(len(PAGE.encode()))) == (response.status, body, response.getheader("Content-Length"))
        for path, status in [("/", b"200"), ("/nowhere", b"404")]:
            answer = raw(address, b"HEAD %s HTTP/1.1\r\n\r\n" % path.encode())
            assert answer.startswith(b"HTTP/1.0 %s " % status)
            assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("path", ["/nowhere", "/metrics/", "/../etc/passwd", "/%2e%2e/setup.cfg", "/cgi-bin/x", "*"])
def test_other_paths_are_not_found(path: str) -> None:
    """In plain text; there are no folders and no programs."""
    with status_of(SNAPSHOT) as address:
        response, body = ask(address, path)
        assert (404, "404 Not Found\n") == (response.status, body)
        assert "text/plain; charset=utf-8" == response.getheader("Content-Type")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST / HTTP/1.1\r\n\r\n", b"501 Unsupported method ('POST')"),
        (b"<script> / HTTP/1.1\r\n\r\n", b"501 Unsupported method ('&lt;script&gt;')"),
        (b"GET / HTTP/9.9\r\n\r\n", b"505 Invalid HTTP version (9.9)"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414 "),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431 Too many headers"),
        (b"GET / HTTP/1.1\r\na: " + b"b" * 70_000 + b"\r\n\r\n", b"431 Line too long"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a \n", b"400 Bad "),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else None,
)
def test_bad_requests_are_answered_in_plain_text(request_: bytes, status: bytes) -> None:
    """And the next one is served."""
    with status_of(SNAPSHOT) as address:
        answer = raw(address, request_)
        assert status in answer
        if b"\r\n\r\n" in answer:
            assert b"\r\nContent-Type: text/plain; charset=utf-8\r\n" in answer
        assert 200 == ask(address, "/healthz")[0].status


def test_an_empty_request_and_a_silent_client_end_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an answer, within the handler's timeout; one that dribbles, within the server's session timeout."""
    monkeypatch.setattr(StatusHandler, "timeout", 0.1)
    with status_of(SNAPSHOT, session_timeout=0.5) as address:
        assert b"" == raw(address, b"")
        assert b"" == raw(address, b"GET / HT")
        with connect(address) as client:
            gone = threading.Event()

            def dribble() -> None:
                while not gone.wait(0.02):
                    try:
                        client.sendall(b"G")
                    except OSError:
                        return

            writer = threading.Thread(target=dribble)
            writer.start()
            try:
                with pytest.raises(ConnectionResetError):
                    while client.recv(100):
                        pass
                    raise ConnectionResetError  # a FIN is as good as a RST
            finally:
                gone.set()
                writer.join(DEADLINE)
        assert 200 == ask(address, "/healthz")[0].status


def test_a_client_that_leaves_before_its_answer_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """Not even when the answer is long."""
    caplog.set_level(logging.DEBUG, "stdserve")
    with status_of(SNAPSHOT) as address:
        for _ in range(20):
            with connect(address) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert 200 == ask(address, "/healthz")[0].status
        eventually(lambda: sum(record.message.startswith("close ") for record in caplog.records) == 21)
    assert [] == [record for record in caplog.records if record.levelno > logging.INFO]


def test_requests_are_logged_at_debug_level_and_escaped(caplog: pytest.LogCaptureFixture) -> None:
    """What a peer sent cannot drive a terminal."""
    caplog.set_level(logging.DEBUG, "stdserve")
    with status_of(SNAPSHOT) as address:
        raw(address, b"GET /\x1b[2J HTTP/1.1\r\n\r\n")
    (told,) = [record for record in caplog.records if "GET" in record.message]
    assert logging.DEBUG == told.levelno
    assert re.fullmatch(r'status 127\.0\.0\.1:\d+ "GET /\\+x1b\[2J HTTP/1\.1" 404 -', told.message)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"draining": True}, "draining"),
        ({"workers": ()}, "no worker serves"),
        ({"workers": (replace(WORKER, state="starting"),)}, "no worker serves"),
        ({"workers": (replace(WORKER, heartbeat=31.0),)}, "1 of 1 workers stuck, for 31 s"),
        ({"workers": (WORKER, replace(WORKER, heartbeat=12.4))}, "1 of 2 workers stuck, for 12 s"),
        # A reload: one begins, one serves, one ends.
        ({"workers": tuple(replace(WORKER, state=state) for state in ("starting", "serving", "draining"))}, ""),
        ({"workers": (WORKER, replace(WORKER, state="draining", heartbeat=99.0))}, ""),
    ],
)
def test_readiness_has_its_reasons(changes: dict[str, Any], reason: str) -> None:
    """200 where clients can be sent, 503 and why where not; /healthz is of another opinion."""
    snapshot = replace(SNAPSHOT, **changes)
    assert reason == why_not_ready(snapshot)
    with status_of(snapshot) as address:
        response, body = ask(address, "/readyz")
        assert (503 if reason else 200, f"{reason or 'ready'}\n") == (response.status, body)
        assert 200 == ask(address, "/healthz")[0].status
        assert reason == json.loads(ask(address, "/live")[1])["not_ready"]


def test_sessions_are_told_as_json() -> None:
    """All of them; the page gets the first, which are the oldest."""
    many = replace(SNAPSHOT, open=1000, sessions=SESSIONS * 500)
    with status_of(many) as address:
        told = json.loads(ask(address, "/sessions")[1])
        assert (1000, 1000) == (told["open"], len(told["sessions"]))
        assert {
            "peer": "203.0.113.17:51112",
            "age": 7384.5,
            "received": 91_233_112,
            "sent": 2_500_000,
            "lines_in": 434,
            "lines_out": 20,
            "worker": 4711,
        } == told["sessions"][0]
        assert MOST_LISTED == len(json.loads(ask(address, "/live")[1])["sessions"])


def test_a_handler_without_numbers_says_so() -> None:
    """It is made by status_handler."""
    with pytest.raises(NotImplementedError):
        StatusHandler.snapshot(StatusHandler.__new__(StatusHandler))


class Outline(HTMLParser):
    """Checks that tags are balanced, and gathers ids, links, and what may be run."""

    VOID = ("meta", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: dict[str, list[str | None]] = {"id": [], "href": [], "src": []}
        self.inside: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Expect the end of any element that has one; the policy of the page allows no code in attributes."""
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            assert name != "style"
            self.found.setdefault(name, []).append(value)

    def handle_endtag(self, tag: str) -> None:
        """See the end of the element opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Gather."""
        if self.open:
            self.inside[self.open[-1]] = self.inside.get(self.open[-1], "") + data


def test_the_page_is_sound_and_its_policy_allows_it_and_nothing_else() -> None:
    """Every element ends, every name that the script asks for is there once, the hashes are those of the page."""
    outline = Outline()
    outline.feed(PAGE)
    outline.close()
    assert [] == outline.open
    assert [] == outline.found["src"]
    assert {"data:,", "metrics", "sessions", "readyz"} == set(outline.found["href"])
    ids = outline.found["id"]
    assert len(ids) == len(set(ids))
    asked = re.findall(r'(?:\$|text|unit|fill|reasons|plot)\("([a-z-]+)"', outline.inside["script"])
    assert len(asked) > 15
    assert set(asked) <= set(ids)
    with status_of(SNAPSHOT) as address:
        policy = ask(address, "/")[0].getheader("Content-Security-Policy") or ""
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(outline.inside[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


@contextmanager
def browser(url: str, *flags: str) -> Iterator[str]:
    """Open a page in Chromium with a clock that runs ahead, until nothing waits; yield the DOM."""
    profile = tempfile.mkdtemp(prefix="stdserve-chromium-")
    try:
        command = [peer_program("chromium"), *CHROMIUM, f"--user-data-dir={profile}", *flags, "--dump-dom", url]
        yield subprocess.run(command, capture_output=True, timeout=DEADLINE, check=True).stdout.decode()
    finally:
        shutil.rmtree(profile, ignore_errors=True)


def words_of(dom: str, id: str) -> str:
    """Return the text of an element."""
    found = re.search(rf'id="{id}"[^>]*>(.*?)</(?:span|p|tbody|b)>', dom, re.DOTALL)
    assert found, f"{id} in {dom}"
    return re.sub(r"<[^>]*>|&nbsp;", " ", found[1]).strip()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a chromium in the path")
def test_chromium_shows_live_numbers() -> None:
    """They are asked for again and again; rates come from two answers, the plot from all; text stays text."""
    later = replace(SNAPSHOT, uptime=183_004.0, open=3, total=1284, lines_in=400, received=3_812_834_112)
    with (
        status_of(SNAPSHOT, later) as (host, port),
        browser(f"http://{host}:{port}/", "--virtual-time-budget=2500") as dom,
    ):
        assert "Ready" == words_of(dom, "state")
        assert "3" == words_of(dom, "open")
        assert "1,284 in all" == words_of(dom, "total")
        assert "oldest 2 h 3 min" == words_of(dom, "oldest")
        assert "3.8 GB, 400 lines" == words_of(dom, "received-all")
        assert "17 dropped" == words_of(dom, "drops")
        assert "1 more" in words_of(dom, "more")
        assert re.match(r"203\.0\.113\.17:51112 +2 h 3 min +91 MB +2\.5 MB +434 +4711", words_of(dom, "table"))
        assert "&lt;script&gt;document.title = 'taken'&lt;/script&gt;" in dom
        assert "<title>3 open \u00b7 stdserve</title>" in dom
        # 400 lines in 4 s, at the top of a plot up to 100; before the second answer, no worse is assumed.
        assert re.search(r'<path class="one" d="M98\.67 0\.00L100\.00 0\.00"', dom.partition('id="lines"')[2])


@pytest.mark.skipif(sys.platform == "win32", reason="needs a chromium in the path")
def test_chromium_says_when_there_is_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    """What was known stays, dimmed."""
    caplog.set_level(logging.CRITICAL, "stdserve")
    left = [SNAPSHOT]

    def take(sessions: bool) -> Snapshot:
        return left.pop()  # an IndexError is an answer too: none

    with (
        serving(status_handler(take), failures="ignore") as server,
        browser("http://{}:{}/".format(*server.address), "--virtual-time-budget=2500") as dom,
    ):
        assert "No answer" == words_of(dom, "state")
        assert '<body class="stale">' in dom
        assert "2" == words_of(dom, "open")
