"""The examples of binary protocols, run as their reader runs them, and sent what they must not accept."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from example_programs import Folder, Terminal, blocks
from processes import DEADLINE, ServerProcess, connect, exchange, peer_program, read_all


@pytest.fixture
def example(tmp_path: Path) -> Folder:
    """The examples, in a folder of this test's own."""
    return Folder(tmp_path)


# redis_store


@pytest.fixture
def redis(example: Folder) -> Iterator[ServerProcess]:
    """The store, where there is a redis-cli."""
    peer_program("redis-cli")
    with example.serve("redis_store") as server:
        yield server


def redis_cli(server: ServerProcess, *words: str, **popen: Any) -> bytes:
    """What redis-cli prints."""
    command = [peer_program("redis-cli"), "-p", str(server.port), *words]
    printed: bytes = subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE, **popen).stdout
    return printed


def test_redis_cli_and_its_benchmark(example: Folder, redis: ServerProcess) -> None:
    """The docstring's three commands; the benchmark has nothing to complain of."""
    peer_program("redis-benchmark")
    put, get, benchmark = blocks("redis_store")[1].splitlines()
    assert b"OK\n" == example.run(put, redis.port).stdout
    assert b"hello\n" == example.run(get, redis.port).stdout
    result = example.run(benchmark, redis.port)
    assert (0, b"") == (result.returncode, result.stderr)
    assert 4 == result.stdout.count(b"requests per second")
    assert not re.search(b"(?i)error|warning", result.stdout)


def test_values_are_bytes(redis: ServerProcess) -> None:
    """All of them, and as many as fit; a deleted one is gone."""
    blob = bytes(range(256)) * 300 + b"\r\n"
    assert b"OK\n" == redis_cli(redis, "-x", "SET", "blob", input=blob)
    assert blob + b"\n" == redis_cli(redis, "GET", "blob")
    assert b"1\n" == redis_cli(redis, "DEL", "blob", "other")
    assert b"\n" == redis_cli(redis, "GET", "blob")
    assert b"Protocol error" in redis_cli(redis, "-x", "SET", "blob", input=bytes(100_000))
    assert b"PONG\n" == redis_cli(redis, "PING")


def test_redis_cli_on_a_terminal(redis: ServerProcess) -> None:
    """Where it asks for a list of commands by itself, and does without."""
    with Terminal(peer_program("redis-cli"), "-p", str(redis.port)) as program:
        program.wait_for(b"> ")
        program.type(b"PING")
        program.wait_for(b"PONG")
        program.type(b"exit")
        program.wait()
        assert not re.search(rb"(?i)err", program.seen)


def test_redis_cli_over_tls(example: Folder, authority: Authority) -> None:
    """Where a socket says in another way that nothing has come."""
    peer_program("redis-cli")
    pair = authority.pair()
    with example.serve("redis_store", "--tls-cert", pair.certfile, "--tls-key", str(pair.keyfile)) as server:
        tls = ("--tls", "--cacert", authority.path, "--sni", "localhost")
        assert b"OK\nhello\n" == redis_cli(server, *tls, input=b"SET greeting hello\nGET greeting\n")


def test_requests_that_come_together_are_all_answered(redis: ServerProcess) -> None:
    """Typed, counted, blank, and cut in the middle."""
    requests = b"PING\r\n\r\nset a 1\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n*0\r\nGET b\r\n"
    with connect(redis.address) as client:
        for piece in (requests[:20], requests[20:37], requests[37:] + b"FLUSHALL x\r\n"):
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)
        ping, put, size, value, nothing, unknown = read_all(client).split(b"\r\n")[:6]
    assert (b"+PONG", b"+OK", b"$1", b"1", b"$-1") == (ping, put, size, value, nothing)
    assert unknown.startswith(b"-ERR unknown command")


@pytest.mark.parametrize(
    "data",
    [
        *(b"*x\r\n", b"*1000\r\n", b"*-1\r\n", b"*1\r\n$-1\r\n", b"*1\r\n$100001\r\n"),
        *(b"*1\r\n:3\r\n", b"*1\r\n$1\r\nabc", b"*1\r\n$4\r\nPI"),
    ],
)
def test_what_is_no_request_is_told_so(redis: ServerProcess, data: bytes) -> None:
    """And ends the session, not the server."""
    before, _, error = exchange(redis.address, b"PING\r\n" + data).partition(b"\r\n")
    assert b"+PONG" == before
    assert re.fullmatch(rb"-ERR Protocol error: [^\r\n]+\r\n", error)
    assert b"+PONG\r\n" == exchange(redis.address, b"PING\r\n")
    assert not [line for line in redis.log if line.startswith("error")]


def test_the_store_does_not_grow_without_end(redis: ServerProcess) -> None:
    """Beyond its number of keys there is no room for new ones, but for new values."""
    filled = exchange(redis.address, b"".join(b"SET key-%d x\r\n" % number for number in range(10_001)))
    assert 10_000 == filled.count(b"+OK\r\n")
    assert b"no more room" in filled.splitlines()[-1]
    assert b"+OK\r\n" == exchange(redis.address, b"SET key-5 y\r\n")


# log_collector


class Reach:
    """What a stranger would have unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def framed(data: bytes) -> bytes:
    """As SocketHandler sends it."""
    return struct.pack(">L", len(data)) + data


def collected(example: Folder) -> list[dict[str, object]]:
    """The records in all files, the oldest first."""
    paths = sorted(example.path.glob("collected.jsonl*"), reverse=True)
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_a_program_logs_over_the_network(example: Folder) -> None:
    """The docstring's program, in a process of its own; then one with a traceback and a strange message."""
    with example.serve("log_collector") as server:
        program = blocks("log_collector")[1]
        more = "try:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.exception('a\\n\\x1b\\u2028 b')\n"
        source = (program + more).replace("9020", str(server.port))
        subprocess.run([sys.executable, "-c", source], timeout=DEADLINE, check=True)
        server.wait_for_log("^close ")
        first, second = collected(example)
        assert ("127.0.0.1", "ERROR", "pump 7 has failed") == (first["source"], first["levelname"], first["msg"])
        assert "a\n\x1b\u2028 b" == second["msg"]
        assert "ZeroDivisionError" in str(second["exc_text"])
        assert not [line for line in server.log if line.startswith(("error", "reject"))]


def test_the_file_of_records_rotates(example: Folder) -> None:
    """Two programs send more than goes into one; nothing is lost."""
    source = blocks("log_collector")[1] + "for number in range(2000): logging.error('%d ' + 'x' * 200, number)\n"
    with example.serve("log_collector") as server:
        source = source.replace("9020", str(server.port))
        programs = [subprocess.Popen([sys.executable, "-c", source]) for _ in range(2)]
        assert [0, 0] == [program.wait(DEADLINE) for program in programs]
        server.wait_for_log("^close ", 2)
        assert 2 <= len(list(example.path.glob("collected.jsonl*")))
        assert 2 * 2001 == len(collected(example))


def refused_records(folder: Path) -> dict[str, bytes]:
    """What a collector must not accept."""
    record = logging.makeLogRecord({"msg": "hello"}).__dict__
    return {
        "runs something": framed(pickle.dumps(Reach(folder / "reached"))),
        "runs something inside": framed(pickle.dumps({**record, "msg": Reach(folder / "reached")})),
        "names a class": framed(pickle.dumps({**record, "msg": Path})),
        "takes a gigabyte": framed(b"K\x01r\xff\xff\xff\x03."),
        "is no record": framed(pickle.dumps([1, 2])),
        "has no fields": framed(pickle.dumps({"msg": "hello"})),
        "is no number": framed(pickle.dumps({**record, "created": float("nan")})),
        "is no pickle": framed(b"hello"),
        "is empty": framed(b""),
        "is cut": framed(pickle.dumps(record))[:-9],
        "is large": struct.pack(">L", 1_000_001),
    }


@pytest.mark.parametrize("what", refused_records(Path()))
def test_what_is_no_record_is_refused(example: Folder, what: str) -> None:
    """In a line of the log; nothing of it is run, nothing written, the server goes on as before."""
    with example.serve("log_collector") as server:
        assert b"" == exchange(server.address, refused_records(example.path)[what])
        server.wait_for_log("^reject .*record")
        server.wait_for_log("^close ")
        assert not [line for line in server.log if line.startswith("error")]
        if sys.platform == "linux":
            status = Path(f"/proc/{server.pid}/status").read_text()
            assert int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) < 200_000
        assert {".py"} == {path.suffix for path in example.path.iterdir() if path.name != "__pycache__"}


def test_noise_never_reaches_the_collector_s_traceback(example: Folder) -> None:
    """Two hundred broken records: bytes at random, and a record with some changed."""
    chance = random.Random(1)
    record = pickle.dumps(logging.makeLogRecord({"msg": "hello"}).__dict__, 1)
    with example.serve("log_collector") as server:
        for _ in range(100):
            changed = bytearray(record)
            for _ in range(chance.randint(1, 5)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            for data in (bytes(changed), chance.randbytes(chance.randint(1, 100))):
                assert b"" == exchange(server.address, framed(data))
        server.wait_for_log("^close ", 200)
        assert not [line for line in server.log if line.startswith("error")]
