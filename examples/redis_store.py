"""A key-value store for redis-cli and redis-benchmark: a protocol of counted bytes, on a plain StreamRequestHandler.

Run it. The keys are in the memory of one process: mode thread (the default), without --workers::

    cd examples && python -m stdserve 6379 --handler redis_store:RedisStore

Try it; look at ``read_request``, which reads nothing without a bound, and ``more_has_come``, for which replies wait::

    redis-cli -p 6379 SET greeting hello
    redis-cli -p 6379 GET greeting
    redis-benchmark -p 6379 -t ping,set,get -n 10000 -c 20 -P 4 -q
"""

import io
import socketserver
import threading
from contextlib import suppress

MAX_REQUEST, MAX_WORDS, MAX_KEYS = 100_000, 100, 10_000  # bytes, words; all that is kept is below a gigabyte
keys, lock = dict[bytes, bytes](), threading.Lock()


class RedisStore(socketserver.StreamRequestHandler):
    """PING, SET, GET and DEL in RESP (redis.io), and CONFIG as far as redis-benchmark needs it."""

    rfile: io.BufferedReader
    wbufsize = -1  # replies gather until they are flushed

    def handle(self) -> None:
        try:
            while (words := self.read_request()) is not None:
                self.wfile.write(answer(*words) if words else b"")
                if not self.more_has_come():
                    self.wfile.flush()
        except ValueError as error:
            self.wfile.write(b"-ERR Protocol error: %b\r\n" % str(error).encode())

    def read_request(self) -> list[bytes] | None:
        line = self.rfile.readline(MAX_REQUEST)
        if not line.startswith(b"*"):
            return line.split(maxsplit=MAX_WORDS) if line.endswith(b"\n") else None  # as people type it
        words: list[bytes] = []
        for _ in range(number(line, b"*", MAX_WORDS)):
            left = MAX_REQUEST - sum(map(len, words))
            words.append(self.rfile.read(number(self.rfile.readline(20), b"$", left)))
            if self.rfile.read(2) != b"\r\n":
                raise ValueError("expected CRLF")
        return words

    def more_has_come(self) -> bool:
        idle, more = self.connection.gettimeout(), b""
        self.connection.settimeout(0)
        with suppress(OSError):  # TLS raises it when there is nothing
            more = self.rfile.peek(1)
        self.connection.settimeout(idle)
        return more != b""


def number(line: bytes, mark: bytes, most: int) -> int:
    if line[:1] != mark or not 0 <= int(line[1:]) <= most:
        raise ValueError(f"expected '{mark.decode()}' and a number up to {most}")
    return int(line[1:])


def answer(name: bytes, *arguments: bytes) -> bytes:
    with lock:
        match name.upper(), *arguments:
            case [b"PING"]:
                return b"+PONG\r\n"
            case [b"SET", key, value] if key in keys or len(keys) < MAX_KEYS:
                keys[key] = value
                return b"+OK\r\n"
            case [b"GET", key]:
                return b"$%d\r\n%b\r\n" % (len(keys[key]), keys[key]) if key in keys else b"$-1\r\n"
            case [b"DEL", *named]:
                return b":%d\r\n" % sum(keys.pop(key, None) is not None for key in named)
            case [b"CONFIG", *_]:
                return b"*2\r\n$0\r\n\r\n$0\r\n\r\n"
    return b"-ERR unknown command, wrong number of arguments, or no more room: %a\r\n" % name[:20]
