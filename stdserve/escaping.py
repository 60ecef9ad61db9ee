r"""Bytes from a peer as text that is safe to show: control characters and undecodable bytes become ``\xNN``.

Pure functions. Tab and LF pass: a tab moves nothing that was printed before, and LF ends the lines that the
caller has already told apart. C1 controls (U+0080 to U+009F) drive terminals as ESC does (ECMA-48, 8.2),
so their UTF-8 bytes are shown too.
"""

from __future__ import annotations

import re

__all__ = ["decode", "escape"]

#: What ASCII text is made of besides LF and tab; deleting these leaves nothing in the common case.
_PLAIN = bytes(range(0x20, 0x7F)) + b"\t\n"
#: The rest of ASCII.
_CONTROLS = [bytes([code]) for code in [*range(9), *range(11, 32), 127]]
#: Bytes from which on to look for each control character is faster than to delete what is plain: memchr(3) reads a
#: hundred bytes in the time in which ``translate`` looks one up.
_MANY = 4096
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def escape(data: bytes) -> bytes:
    r"""Return ``data`` with control characters (tab and LF aside) and undecodable bytes as ``\xNN``, in UTF-8.

    A character of several bytes is shown byte by byte (U+009B: ``\xc2\x9b``). Clean ASCII comes back as it is.
    """
    if _is_plain(data) if len(data) >= _MANY else not data.translate(None, _PLAIN):
        return data
    return _CONTROL.sub(_show, decode(data)).encode()


def _is_plain(data: bytes) -> bool:
    return data.isascii() and not any(control in data for control in _CONTROLS)


def decode(data: bytes) -> str:
    r"""Return the text in ``data`` as UTF-8, undecodable bytes as ``\xNN``; it can always be encoded again."""
    return data.decode("utf-8", "backslashreplace")


def _show(control: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in control[0].encode())
