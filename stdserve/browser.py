"""What a browser is told that opens a server of lines: a small plain page instead of nothing. Pure."""

from __future__ import annotations

import re

__all__ = ["is_request", "page_for"]

_REQUEST = re.compile(rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH) [^ \r\n]+ HTTP/1\.[01]\r?\n").match

# The empty icon keeps the browser from asking for /favicon.ico.
_PAGE = b"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,"><title>stdserve</title></head>
<body style="font: 1.1rem/1.5 sans-serif; max-width: 34em; margin: 3em auto; padding: 0 1em">
<h1>Received</h1>
<p>This is <b>stdserve</b>, a server of plain lines, not a web site. It has printed your browser's request on its
own output, and the blank line after it has ended the session.</p>
<p>To send lines of your own, use <code>telnet</code> or <code>python -m stdserve.client</code> with this address.</p>
</body></html>
"""


def is_request(data: bytes) -> bool:
    """Tell whether ``data``, the first thing a client sent, begins with the request line of HTTP/1 (RFC 9112, 3)."""
    return _REQUEST(data) is not None


def page_for(data: bytes) -> bytes:
    """Return the HTTP response for the request that begins with ``data``; without a body for HEAD."""
    head = (
        "HTTP/1.1 200 OK\r\n"
        "Content-Type: text/html; charset=utf-8\r\n"
        f"Content-Length: {len(_PAGE)}\r\n"
        "Cache-Control: no-store\r\n"
        "Connection: close\r\n\r\n"
    ).encode()
    return head if data.startswith(b"HEAD ") else head + _PAGE
