"""Handlers of the standard library and of its cookbook, as they are, in every mode, by their own clients."""

from __future__ import annotations

import hashlib
import logging
import logging.handlers
import pickle
import random
import socket
import socketserver
import struct
import subprocess
import xmlrpc.client
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any
from xmlrpc.server import SimpleXMLRPCDispatcher, SimpleXMLRPCRequestHandler

import pytest
from authority import Authority
from processes import DEADLINE, ServerProcess, children_of, eventually, peer_program
from transports import MODES, Offer, every_mode, every_transport, offered

MEGABYTE = 1024 * 1024


class KeepAlive(SimpleHTTPRequestHandler):
    """The one change that its documentation asks for."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing where others test."""


def files(folder: Path) -> Any:
    """The handler of files with the argument that it takes besides."""
    return partial(KeepAlive, directory=str(folder))


@every_mode
@every_transport
def test_http_server(mode: str, transport: str, authority: Authority, tmp_path: Path) -> None:
    """Several requests on one connection: a file, its head, what has not changed, a listing, what is not there."""
    (tmp_path / "a file.txt").write_bytes(b"hello\n" * 1000)
    with offered(files(tmp_path), mode, transport, authority) as server:
        client = server.http()

        def ask(method: str, path: str, **headers: str) -> tuple[int, bytes, Any]:
            client.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            reply = client.getresponse()
            return reply.status, reply.read(), reply

        status, body, reply = ask("GET", "/a%20file.txt")
        assert (HTTPStatus.OK, b"hello\n" * 1000) == (status, body)
        modified, connection = reply.headers["Last-Modified"], client.sock
        status, body, reply = ask("HEAD", "/a%20file.txt")
        assert (HTTPStatus.OK, b"", "6000") == (status, body, reply.headers["Content-Length"])
        assert HTTPStatus.NOT_MODIFIED == ask("GET", "/a%20file.txt", If_Modified_Since=modified)[0]
        status, body, _ = ask("GET", "/")
        assert HTTPStatus.OK == status
        assert b'<a href="a%20file.txt">a file.txt</a>' in body
        assert connection is client.sock is not None
        assert HTTPStatus.NOT_FOUND == ask("GET", "/other")[0]
        client.close()


@pytest.fixture(scope="module")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with 50 MB in it that no compression shortens, and their hash."""
    folder = tmp_path_factory.mktemp("big")
    data = random.Random(1).randbytes(MEGABYTE) * 50
    (folder / "big").write_bytes(data)
    return folder, hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("mode", "transport"), [("thread", "tcp"), ("thread", "tls"), ("thread", "unix"), ("fork", "tls")]
)
def test_http_server_sends_50_megabytes_whole(
    mode: str, transport: str, authority: Authority, big_file: tuple[Path, str]
) -> None:
    """Byte for byte."""
    folder, expected = big_file
    with offered(files(folder), mode, transport, authority) as server:
        client = server.http()
        client.request("GET", "/big")
        digest = hashlib.sha256()
        reply = client.getresponse()
        while data := reply.read(MEGABYTE):
            digest.update(data)
        client.close()
    assert expected == digest.hexdigest()


@every_transport
def test_curl_reads_from_http_server_run_by_the_command_line(
    transport: str, authority: Authority, tmp_path: Path
) -> None:
    """The class untouched, two workers, the files of the current folder; two requests, and none after the other's."""
    curl = peer_program("curl")
    (tmp_path / "file").write_text("hello")
    pair = authority.pair()
    words = ["--handler", "http.server:SimpleHTTPRequestHandler", "--workers", "2"]
    where, more = "http://localhost", []
    if transport == "tls":
        words += ["--tls-cert", pair.certfile, "--tls-key", str(pair.keyfile)]
        where, more = "https://localhost", ["--cacert", authority.path]
    if transport == "unix":
        words += ["--bind", "unix:socket"]
        more = ["--unix-socket", "socket"]
    else:
        words += ["--bind", "127.0.0.1"]
    with ServerProcess(*words, cwd=tmp_path) as server:
        server.wait_for_log("^listening")
        port = "" if transport == "unix" else f":{server.port}"
        command = [curl, "-sS", "--fail", *more, f"{where}{port}/file", f"{where}{port}/"]
        told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE)
        assert (0, "") == (told.returncode, told.stderr)
        assert told.stdout.startswith("hello<!DOCTYPE")
        assert 2 == len(children_of(server.pid))
        # What the handler writes on standard error is there, line by line, between our own.
        server.wait_for_log(r'"GET /file HTTP/1\.1" 200 -$')
        server.wait_for_log("^close")


class CallOver(xmlrpc.client.Transport):
    """The client's way to the server: the connection that is there."""

    def __init__(self, server: Offer) -> None:
        super().__init__()
        self._server = server

    def make_connection(self, host: Any) -> Any:
        """Connect once, as the base class does."""
        if not self._connection or self._connection[1] is None:
            self._connection = host, self._server.http()
        return self._connection[1]


@every_mode
@every_transport
def test_xmlrpc_server(mode: str, transport: str, authority: Authority) -> None:
    """Its dispatcher in front of our server, its attributes on it; calls, None, a fault, a method that is not there."""

    def divide(one: int, other: int) -> float:
        return one / other

    attributes = {"logRequests": False, "allow_none": True, "funcs": {"divide": divide, "nothing": lambda: None}}
    made = {"attributes": attributes, "bases": [SimpleXMLRPCDispatcher]}
    with (
        offered(SimpleXMLRPCRequestHandler, mode, transport, authority, **made) as server,
        xmlrpc.client.ServerProxy("http://localhost/RPC2", CallOver(server), allow_none=True) as calculator,
    ):
        assert 2.5 == calculator.divide(5, 2)
        assert calculator.nothing() is None
        with pytest.raises(xmlrpc.client.Fault, match="ZeroDivisionError"):
            calculator.divide(1, 0)
        with pytest.raises(xmlrpc.client.Fault, match='method "multiply" is not supported'):
            calculator.multiply(2, 3)


class LogRecordStreamHandler(socketserver.StreamRequestHandler):
    """What the cookbook of ``logging`` describes: a length of four bytes, a pickle of it, and so on until the end."""

    def handle(self) -> None:
        """Handle each record as if it had been logged here."""
        server: Any = self.server
        while len(head := self.connection.recv(4)) == 4:
            (length,) = struct.unpack(">L", head)
            data = self.connection.recv(length)
            while len(data) < length:
                data += self.connection.recv(length - len(data))
            record = logging.makeLogRecord(pickle.loads(data))
            logging.getLogger(server.logname).handle(record)


@every_mode
@every_transport
def test_loggings_receiver(mode: str, transport: str, authority: Authority, tmp_path: Path) -> None:
    """``SocketHandler`` sends, and does not wait; a record longer than a segment arrives whole, traceback included."""
    path = tmp_path / "log"
    received = logging.FileHandler(path)
    received.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
    sunk = logging.getLogger(f"sunk.{mode}.{transport}")
    sunk.propagate = False
    sunk.addHandler(received)
    with offered(LogRecordStreamHandler, mode, transport, authority, attributes={"logname": sunk.name}) as server:

        class Sends(logging.handlers.SocketHandler):
            def makeSocket(self, timeout: float = 1) -> socket.socket:
                return server.connect()

        sender = Sends("localhost", 0)
        logger = logging.Logger("far.away")
        logger.addHandler(sender)
        logger.info("one %s", "and more")
        try:
            _ = 1 // 0
        except ZeroDivisionError:
            logger.exception("x" * 300_000)
        sender.close()
        expected = f"far.away INFO one and more\nfar.away ERROR {'x' * 300_000}\nTraceback (most recent call last):\n"
        eventually(lambda: path.read_text().startswith(expected), "both records in the file")
        eventually(lambda: path.read_text().endswith("ZeroDivisionError: integer division or modulo by zero\n"))
    received.close()


def test_every_mode_is_tried() -> None:
    """Those that there are, but for the one that refuses handlers of others."""
    import stdserve

    assert {*MODES, "event"} == set(stdserve.MODES)
