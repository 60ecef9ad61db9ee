"""A collector of log records: programs send theirs by ``logging.handlers.SocketHandler``, a file gets them as JSON.

Run it. One process is to write and to rotate the file: mode thread (the default), without --workers::

    cd examples && python -m stdserve 9020 --handler log_collector:LogCollector

Try it from any program, and see its line arrive with ``tail -F collected.jsonl``::

    import logging.handlers
    logging.getLogger().addHandler(logging.handlers.SocketHandler("127.0.0.1", 9020))
    logging.error("pump %d has failed", 7)

Look at ``as_json``: a record comes pickled, and to unpickle what a stranger sends is to run what a stranger wrote.
Here a pickle can name no class and no function, and of what it holds only numbers and text get into the file.
"""

from __future__ import annotations

import io
import json
import logging.handlers
import pickle
import pickletools
import socketserver

from stdserve.errors import PeerError

FIELDS = ("created", "name", "levelname", "msg", "exc_text", "pathname", "lineno", "process", "threadName")
MAX_RECORD = 1_000_000  # bytes

output = logging.handlers.RotatingFileHandler("collected.jsonl", maxBytes=1_000_000, backupCount=5, delay=True)


class PlainUnpickler(pickle.Unpickler):
    """Loads numbers, text and containers of them."""

    def find_class(self, module_name: str, global_name: str) -> object:
        """Refuse whatever would have to be imported."""
        raise pickle.UnpicklingError("not plain data")


class LogCollector(socketserver.StreamRequestHandler):
    """Appends every record that comes to the file, with the address that it comes from."""

    def handle(self) -> None:
        """Read the size of a record in four bytes, then the record, until the client leaves."""
        while len(header := self.rfile.read(4)) == 4:
            size = int.from_bytes(header, "big")
            if size > MAX_RECORD:
                raise PeerError("record", f"a record of {size} bytes")
            line = as_json(self.rfile.read(size), str(self.client_address[0]))
            output.handle(logging.makeLogRecord({"msg": line}))


def as_json(data: bytes, source: str) -> str:
    """Return a pickled record as a line; raise PeerError for what is none, which ends the session of its sender."""
    try:
        # The memo is numbered anew: with a number of its own choice, a pickle of six bytes takes gigabytes.
        record = PlainUnpickler(io.BytesIO(pickletools.optimize(data))).load()
        told = {field: record[field] for field in FIELDS if isinstance(record[field], str | int | float | None)}
        return json.dumps({"source": source, **told}, allow_nan=False)
    except Exception as error:  # whatever a broken pickle comes to
        raise PeerError("record", f"not a log record ({type(error).__name__})") from None
