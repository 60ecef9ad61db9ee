r"""A gateway for devices: a protocol of verbs, with state for each session, a table for all, and an idle timeout.

Run it. The table is in the memory of one process: mode thread (the default), without --workers::

    cd examples && python -m stdserve --handler gateway:Gateway --idle-timeout 60s

Try it as a device (``HELLO``, ``DATA``, ``BYE``), and as one who watches them (``WHO``, ``LAST``)::

    printf 'HELLO pump-1\nDATA bar=3.2 rpm=1450\nWHO\nBYE\n' | nc -N 127.0.0.1 10001
    python -m stdserve.client 127.0.0.1:10001 "LAST pump-1"

Look at ``connection_made``, where the state of a session begins; at ``HELLO``, where a device that lost its line and
calls again ends the session that it had; at the log, where one that falls silent has ``reason=idle_timeout``.
"""

from __future__ import annotations

import threading
import time

from stdserve import EndReason, LineHandler

MAX_DEVICES = 10_000

connected: dict[str, Gateway] = {}
last_seen: dict[str, tuple[float, dict[str, str]]] = {}  # when, and what it said
lock = threading.Lock()


class Gateway(LineHandler):
    """The session of one device, or of somebody who asks for them."""

    obey_exit = False

    def connection_made(self) -> None:
        """Begin, without knowing who it is."""
        self.device = ""

    def line_received(self, line: str) -> str:
        """Do what a line says, reply OK or ERR."""
        with lock:
            match line.split() if line.isprintable() else []:
                case ["HELLO", device] if not self.device and (device in last_seen or len(last_seen) < MAX_DEVICES):
                    if device in connected:
                        connected[device].close()
                    self.device = device
                    connected[device] = self
                    return self.seen({})
                case ["DATA", *words] if self.device and words and all("=" in word for word in words):
                    return self.seen(dict(word.split("=", 1) for word in words))
                case ["BYE"]:
                    self.close()
                    return "OK"
                case ["WHO"]:
                    return " ".join(["OK", *sorted(connected)])
                case ["LAST", device] if device in last_seen:
                    when, values = last_seen[device]
                    told = (f"{name}={value}" for name, value in values.items())
                    return " ".join(["OK", f"{time.monotonic() - when:.0f}s", *told])
                case _:
                    return "ERR expected HELLO id, then DATA name=value ..., BYE; or WHO, LAST id"

    def seen(self, values: dict[str, str]) -> str:
        """Write down that the device has been heard of."""
        last_seen[self.device] = time.monotonic(), values or last_seen.get(self.device, (0, {}))[1]
        return "OK"

    def connection_lost(self, reason: EndReason) -> None:
        """Take the device off the list, unless it has called again meanwhile."""
        with lock:
            if connected.get(self.device) is self:
                del connected[self.device]
