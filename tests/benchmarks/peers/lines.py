"""The print/exit protocol, as plainly as it can be written, for the peers that have no lines of their own."""

from __future__ import annotations

import signal
import sys

#: What a peer does with lines: "print" or "echo" (print and reply).
ECHO = sys.argv[1:2] == ["echo"]


class Lines:
    """Bytes in, whole lines out, until a blank line or "exit"."""

    def __init__(self) -> None:
        self.rest = b""
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """Return the lines that are whole now; none after the end."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        taken = []
        for line in lines:
            if line.strip() in (b"", b"exit"):
                self.ended = True
                break
            taken.append(line + b"\n")
        return b"".join(taken)


def say_where(port: int, stops_by_itself: bool = False) -> None:
    """Say where it listens; at SIGTERM end as asked, with what is in the buffer written."""
    if not stops_by_itself:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"listening on 127.0.0.1:{port}", file=sys.stderr, flush=True)
