"""The log: one line an event, a fixed word each, as text for people or JSON for programs, on stderr or in a file.

Library code speaks through the logger "stdserve", with an :class:`Event` as its message; where it goes is the
program's affair. ``python -m stdserve`` sends it where :func:`log_to` says.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .errors import StartError
from .escaping import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

__all__ = ["Event", "JsonFormatter", "TextFormatter", "log_to", "reopen_file", "reopen_logs"]

_LOGGER = logging.getLogger("stdserve")


class Event:
    """What a record of the log says: a word (``open``, ``close``, ``reject``, ``error``...), its fields, and a text.

    ``peer`` is the client's address as text, ``session`` the number of its session in this process, None where it is
    about none. ``data`` are fields that the text says already. As text it is one line: peers cannot forge another.
    """

    __slots__ = ("data", "fields", "peer", "session", "text", "word")

    def __init__(
        self,
        word: str,
        text: str = "",
        *,
        peer: str | None = None,
        session: int | None = None,
        data: Mapping[str, object] | None = None,
        **fields: object,
    ) -> None:
        self.word = word
        self.text = text
        self.peer = peer
        self.session = session
        self.data = data or {}
        self.fields = fields

    def __str__(self) -> str:
        words = [self.word, *([self.peer] if self.peer else []), *(f"{key}={it}" for key, it in self.fields.items())]
        line = " ".join(words) + (self.text if self.text.startswith(":") or not self.text else f" {self.text}")
        return escape(line.encode("utf-8", "backslashreplace")).decode().replace("\n", "\\x0a")


class TextFormatter(logging.Formatter):
    """The event's text, for people; with ``stamped``, behind time, level and process, for a file."""

    def __init__(self, stamped: bool = False) -> None:
        super().__init__("%(asctime)s %(levelname)s %(process)d %(message)s" if stamped else "%(message)s")
        self.converter = time.gmtime
        self.default_time_format = "%Y-%m-%dT%H:%M:%S"
        self.default_msec_format = "%s.%03dZ"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: message (the text), time (UTC), level, event, worker (pid), peer, session, and fields.

    An error of a handler has its traceback. Records of others, whose message is no Event, are events "log".
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line without its end."""
        import json  # here, for a log in text needs none

        event = record.msg if isinstance(record.msg, Event) else Event("log")
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        row: dict[str, object] = {
            "message": record.getMessage(),
            "time": f"{seconds}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": event.word,
            "worker": record.process,
            "peer": event.peer,
            "session": event.session,
            **event.data,
            **event.fields,
        }
        if record.exc_info:
            row["traceback"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str)


@contextmanager
def log_to(path: str | None, form: str | None, level: str) -> Iterator[bool]:
    """Send the log to the file ``path``, or to standard error (None), for the length of the block.

    ``form`` is "text" or "json"; None means text on a terminal, JSON elsewhere. Yields whether it is text on standard
    error. Raises StartError if the file cannot be opened. The logger is put back as it was.
    """
    handler = _handler_for(path)
    text = form == "text" or (form is None and path is None and _on_terminal())
    handler.setFormatter(TextFormatter(stamped=path is not None) if text else JsonFormatter())
    before = _LOGGER.level, _LOGGER.propagate
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(level.upper())
    _LOGGER.propagate = False
    try:
        yield text and path is None
    finally:
        _LOGGER.removeHandler(handler)
        handler.close()
        level_before, _LOGGER.propagate = before
        _LOGGER.setLevel(level_before)


class _DescriptorHandler(logging.Handler):
    """Writes each record to a descriptor, a line at a time and nothing kept back.

    A signal handler may log while the main thread does: the buffer of a stream would refuse it ("reentrant call").
    What cannot be written is dropped: there is nobody to be told. ``path`` is the file that the handler opened.
    """

    def __init__(self, fd: int, path: str | None) -> None:
        super().__init__()
        self.fd = fd
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
        try:
            while line:
                line = line[os.write(self.fd, line) :]
        except OSError:
            pass  # full, closed, its reader gone

    def close(self) -> None:
        super().close()
        if self.path is not None:
            os.close(self.fd)


def _handler_for(path: str | None) -> logging.Handler:
    if path is None:
        fd = _descriptor_of_stderr()
        return logging.NullHandler() if fd is None else _DescriptorHandler(fd, None)
    try:
        return _DescriptorHandler(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), path)
    except OSError as error:
        raise StartError(f"cannot write the log to {path}: {error.strerror}") from None


def _descriptor_of_stderr() -> int | None:
    try:
        sys.stderr.flush()  # what was said before comes first
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return None  # None, broken, closed


def _on_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False  # None, closed


def reopen_logs() -> None:
    """Go on in the file that has the log's name now, where the log goes to a file; each process for itself."""
    for handler in _LOGGER.handlers:
        if isinstance(handler, _DescriptorHandler) and handler.path is not None:
            reopen_file(handler.fd, handler.path)


def reopen_file(fd: int, path: str) -> bool:
    """Let ``fd`` be the file that ``path`` names now, after a rotation renamed what it was; False if it cannot be.

    Nothing is lost: whoever writes meanwhile writes to the one or to the other.
    """
    try:
        fresh = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        _LOGGER.error(Event("error", f"cannot open {path} again: {error.strerror}; the file from before stays"))
        return False
    os.dup2(fresh, fd, inheritable=False)
    os.close(fresh)
    return True
