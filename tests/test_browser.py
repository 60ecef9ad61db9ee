"""A browser that opens a server of lines: its request is recognised, its page is sound HTTP and HTML."""

from __future__ import annotations

import http.client
import socket
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import DEADLINE

from stdserve.browser import is_request, page_for


def answered(method: str) -> http.client.HTTPResponse:
    """Send a request as http.client does, recognise it, answer it, and return the response as http.client reads it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(DEADLINE)
        theirs.settimeout(DEADLINE)
        client = http.client.HTTPConnection("localhost")
        client.sock = theirs
        client.request(method, "/some/path?query", headers={"User-Agent": "test"})
        request = ours.recv(65536)
        assert is_request(request)
        assert is_request(request.replace(b"\r\n", b"\n"))
        ours.sendall(page_for(request))
        ours.shutdown(socket.SHUT_WR)
        response = client.getresponse()
        response.read1 = response.read()  # type: ignore[method-assign, assignment]
        client.close()
    return response


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_a_request_gets_a_page(method: str) -> None:
    """Status 200, HTML, not to be kept, and exactly as long as it says; for HEAD the same without the page."""
    response = answered(method)
    body = response.read1

    assert 200 == response.status
    assert "text/html; charset=utf-8" == response.getheader("Content-Type")
    assert "no-store" == response.getheader("Cache-Control")
    assert "close" == response.getheader("Connection")
    length = int(response.getheader("Content-Length") or "")
    assert length > 500
    assert (0 if method == "HEAD" else length) == len(body)  # type: ignore[arg-type]


class Outline(HTMLParser):
    """Checks that tags are balanced, and gathers the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str | None] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Expect the end of any element that has one."""
        if tag not in ("meta", "link"):
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        """See the end of the element opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Gather."""
        self.text += data


def test_the_page_is_sound_and_asks_for_nothing_more() -> None:
    """Every element ends, the text says whose page it is, and no icon or script makes the browser come again."""
    outline = Outline()
    page = page_for(b"GET / HTTP/1.1\n").partition(b"\r\n\r\n")[2].decode()
    outline.feed(page)
    outline.close()

    assert [] == outline.open
    assert "stdserve" in outline.text
    assert ["data:,"] == outline.links
    assert page.startswith("<!DOCTYPE html>\n")


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"GET", b"GET / HTTP/1.1", b"GET / HTTP/1.1 \n", b"GET /\n", b"GET / HTTP/2.0\n", b"get / HTTP/1.1\n"),
        *(
            b" GET / HTTP/1.1\n",
            b"a\nGET / HTTP/1.1\n",
            b"GET  / HTTP/1.1\n",
            b"GET / / HTTP/1.1\n",
            b"GET \n HTTP/1.1\n",
        ),
        *(b"BREW / HTTP/1.1\n", b"ping\n", b"GET / HTTP/1.1\r\r\n"),
    ],
)
def test_other_text_is_no_request(data: bytes) -> None:
    """A line that merely looks like HTTP is a line."""
    assert not is_request(data)


@given(st.lists(st.integers(0, 255), max_size=60).map(bytes))
def test_no_bytes_raise(data: bytes) -> None:
    """Whatever a client sends first, the question has an answer."""
    assert is_request(data) in (True, False)
    assert page_for(data).startswith(b"HTTP/1.1 200 OK\r\n")
