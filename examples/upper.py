r"""Upper-case echo: the smallest handler there is. Each line that comes in goes back in capitals.

Run it, in one process or in four::

    cd examples && python -m stdserve --handler upper:Upper
    cd examples && python -m stdserve --handler upper:Upper --workers 4

Try it: the first two end by themselves, the third takes what you type until an empty line or ``exit``::

    python -m stdserve.client 127.0.0.1:10001 "hello, world"
    printf 'one\ntwo\n' | nc -N 127.0.0.1 10001
    telnet 127.0.0.1 10001

Look at the log of the server: ``open`` and ``close`` of each session, with its lines and bytes and why it ended.
"""

from __future__ import annotations

from stdserve import LineHandler


class Upper(LineHandler):
    """Replies what it was sent, in capitals."""

    def line_received(self, line: str) -> str:
        """Return the line in capitals; what is returned is the reply."""
        return line.upper()
