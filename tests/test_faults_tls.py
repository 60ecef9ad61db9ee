"""The faults of socketserver with TLS by their number, and a server with TLS in every mode, seen from outside."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from processes import (
    DEADLINE,
    ServerProcess,
    connect,
    eventually,
    peer_program,
    read_all,
)
from test_faults import stock

from stdserve.certificates import TLSFiles

MODES = ["single", "thread", "fork", "event"]
modes = pytest.mark.parametrize("mode", MODES)
#: Those in which one session does not keep the others waiting.
concurrent = pytest.mark.parametrize("mode", MODES[1:])

ECHO = ["--handler", "stdserve:EchoHandler"]


def serve_tls(files: TLSFiles, *words: str) -> ServerProcess:
    """The command line, with these files."""
    flags = {
        "--tls-cert": files.certfile,
        "--tls-key": files.keyfile,
        "--tls-password-file": files.password_file,
        "--tls-client-ca": files.client_ca,
    }
    given = [word for flag, path in flags.items() if path for word in (flag, path)]
    return ServerProcess(*given, "--tls-min-version", files.min_version, *words)


def tls(address: Any, context: ssl.SSLContext, strict: bool = True) -> ssl.SSLSocket:
    """A client after its handshake; a strict one takes an end without close_notify for an error."""
    return context.wrap_socket(connect(address), server_hostname="localhost", suppress_ragged_eofs=not strict)


def ask(address: Any, context: ssl.SSLContext, line: bytes = b"ping\n") -> bytes:
    """Send a line and read the reply, then the clean end."""
    with tls(address, context) as client:
        client.sendall(line + b"exit\n")
        return read_all(client)


@contextlib.contextmanager
def stock_tls(handler: Any, files: TLSFiles, **attributes: Any) -> Iterator[Any]:
    """The standard library's threading server with TLS on its listening socket, as 3.14's HTTPSServer has it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certfile, files.keyfile)

    def server_activate(self: Any) -> None:
        socketserver.TCPServer.server_activate(self)
        self.socket = context.wrap_socket(self.socket, server_side=True)

    with stock(socketserver.ThreadingTCPServer, handler, server_activate=server_activate, **attributes) as server:
        yield server


class EchoOnce(socketserver.StreamRequestHandler):
    """Answers one line."""

    def handle(self) -> None:
        self.wfile.write(self.rfile.readline())


# By number.


def test_10_the_standard_library_says_nothing_of_a_failed_handshake(authority: Authority) -> None:
    """It happens in accept, whose errors are swallowed: no hook is called."""
    reported = threading.Event()
    with stock_tls(EchoOnce, authority.pair(), handle_error=lambda *_: reported.set()) as server:
        with connect(server.server_address) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                read_all(plain)
        with tls(server.server_address, authority.client()) as client:
            client.sendall(b"ping\n")
            assert b"ping\n" == client.recv(10)
        assert not reported.is_set()


@modes
def test_10_plain_text_on_a_tls_port_is_one_line_in_the_log(authority: Authority, mode: str) -> None:
    """And disturbs nobody."""
    with serve_tls(authority.pair(), "--mode", mode, *ECHO) as server:
        for data in (b"hello\n", b"GET / HTTP/1.1\r\n\r\n"):
            with connect(server.address) as plain:
                plain.sendall(data)
                answer = read_all(plain)
                assert answer.startswith(b"HTTP/1.1 400 ") if b"HTTP" in data else b"" == answer
        assert b"ping\n" == ask(server.address, authority.client())
        assert 0 == server.stop()
        rejected = [line for line in server.log if line.startswith("reject")]
        words = [re.fullmatch(r"reject 127\.0\.0\.1:\d+ (.*)", line) for line in rejected]
        text = "reason=tls: plain text on a TLS port"
        assert [text, text + ": an HTTP request"] == sorted(match[1] for match in words if match)
        assert [] == [line for line in server.log if "Traceback" in line]
        assert b"ping\n" == server.output


def test_13_one_silent_client_stops_the_standard_librarys_server(authority: Authority) -> None:
    """For the handshake is part of accept."""
    with stock_tls(EchoOnce, authority.pair()) as server:
        silent, second = connect(server.server_address), connect(server.server_address)
        second.settimeout(0.5)
        with pytest.raises(TimeoutError):
            authority.client().wrap_socket(second, server_hostname="localhost")
        silent.close()


@concurrent
def test_13_fifty_silent_clients_keep_nobody_waiting(authority: Authority, mode: str) -> None:
    """The next is served at once; a stop does not wait for them either."""
    with serve_tls(authority.pair(), "--mode", mode, "--handshake-timeout", "1h", *ECHO) as server:
        silent = [connect(server.address) for _ in range(50)]
        assert b"ping\n" == ask(server.address, authority.client())
        started = time.monotonic()
        assert 0 == server.stop()
        # Less than --graceful-timeout: their handshakes read EOF.
        assert time.monotonic() - started < 30
        server.wait_for_log("^stopped finished=.* cut=0")
        for client in silent:
            client.close()


@concurrent
def test_13_silent_clients_are_cut_at_the_deadline(authority: Authority, mode: str) -> None:
    """With a line in the log for each."""
    with serve_tls(authority.pair(), "--mode", mode, "--handshake-timeout", "200ms") as server:
        silent = [connect(server.address) for _ in range(10)]
        for client in silent:
            assert b"" == read_all(client)
            client.close()
        server.wait_for_log("^reject .* reason=handshake_timeout: the TLS handshake was not done in time", 10)


def test_13_one_session_at_a_time_is_guarded_by_the_deadline(authority: Authority) -> None:
    """Mode single has nothing else."""
    times = ["--handshake-timeout", "200ms", "--linger-timeout", "200ms"]
    with serve_tls(authority.pair(), "--mode", "single", *times, *ECHO) as server, connect(server.address) as silent:
        assert b"ping\n" == ask(server.address, authority.client())
        assert b"" == read_all(silent)


def test_46_the_standard_librarys_end_is_an_error_for_a_strict_client(authority: Authority) -> None:
    """It sends no close_notify."""
    with stock_tls(EchoOnce, authority.pair()) as server, tls(server.server_address, authority.client()) as client:
        client.sendall(b"ping\n")
        assert b"ping\n" == client.recv(10)
        with pytest.raises(ssl.SSLEOFError):
            client.recv(10)


@modes
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_46_a_strict_client_reads_a_clean_end(authority: Authority, mode: str, version: str) -> None:
    """Python's, and OpenSSL's own."""
    with serve_tls(authority.pair(), "--mode", mode, *ECHO) as server:
        assert b"ping\n" == ask(server.address, authority.client(version=version))
        command = [peer_program("openssl"), "s_client", "-quiet", "-verify_return_error", "-CAfile", authority.path]
        command += [f"-tls{version.replace('.', '_')}", "-connect", "%s:%d" % server.address]
        result = subprocess.run(command, input=b"pong\nexit\n", capture_output=True, timeout=DEADLINE)
        assert (0, b"pong\n") == (result.returncode, result.stdout)
        assert b"unexpected eof" not in result.stderr


@modes
def test_46_a_client_that_never_answers_delays_nobody(authority: Authority, mode: str) -> None:
    """The session waits for it no longer than one without TLS."""
    with serve_tls(authority.pair(), "--mode", mode, "--linger-timeout", "200ms", *ECHO) as server:
        lazy = tls(server.address, authority.client())
        lazy.sendall(b"one\nexit\n")
        assert b"ping\n" == ask(server.address, authority.client())
        server.wait_for_log("^close .* reason=exit", 2)
        assert b"one\n" == read_all(lazy)
        lazy.close()


# What the faults do not name.


@concurrent
def test_a_drain_lets_a_session_reply_before_its_clean_end(authority: Authority, mode: str) -> None:
    """OpenSSL 3 takes the end of the input for an attack, and would answer it with an alert."""
    with (
        serve_tls(authority.pair(), "--mode", mode, *ECHO) as server,
        tls(server.address, authority.client()) as client,
    ):
        client.sendall(b"one\n")
        assert b"one\n" == client.recv(10)
        client.sendall(b"without an end")
        server.wait_for_log("^open .* tls=TLS")
        assert 0 == server.stop()
        assert b"without an end" == read_all(client).rstrip()
        assert b"one\nwithout an end\n" == server.output


@modes
def test_a_client_that_sends_and_closes_loses_nothing(authority: Authority, mode: str) -> None:
    """The lecture's, over TLS."""
    line = b"x" * 999 + b"\n"
    with serve_tls(authority.pair(), "--mode", mode) as server:
        with tls(server.address, authority.client(version="1.3")) as client:
            client.sendall(2000 * line)
        server.wait_for_log("^close .* reason=eof lines=2000 ")


@modes
def test_a_clients_certificate_is_asked_for_and_named(authority: Authority, mode: str) -> None:
    """With one it is served, without it is not."""
    files = dataclasses.replace(authority.pair(), client_ca=authority.path)
    with serve_tls(files, "--mode", mode, *ECHO) as server:
        own = authority.pair("client.test", common_name="Ann")
        assert b"ping\n" == ask(server.address, authority.client(own))
        server.wait_for_log("^open .* tls=TLSv1.3 subject=CN=Ann,")
        with pytest.raises(ssl.SSLError, match="alert certificate required"):
            ask(server.address, authority.client())
        server.wait_for_log("^reject .* reason=tls: the peer sent no certificate")


@concurrent
def test_a_renewed_certificate_is_for_new_sessions(authority: Authority, tmp_path: Path, mode: str) -> None:
    """After SIGHUP; a broken pair keeps the old one, and nobody's session notices."""
    place = TLSFiles(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    put(authority.pair("localhost", common_name="first"), place)
    with serve_tls(place, "--mode", mode, *ECHO) as server, tls(server.address, authority.client()) as old:
        put(authority.pair("localhost", common_name="second"), place)
        assert "first" == served(server, authority)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("^reload certificate=")
        assert "second" == served(server, authority)
        put(authority.expired(), place)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("^error tls: the certificate in .* expired on .*; the certificate from before stays")
        assert "second" == served(server, authority)
        old.sendall(b"still here\n")
        assert b"still here\n" == old.recv(100)
        assert 0 == server.stop()


@concurrent
def test_a_renewed_certificate_is_noticed(authority: Authority, tmp_path: Path, mode: str) -> None:
    """With --tls-reload, without a signal."""
    place = TLSFiles(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    put(authority.pair("localhost", common_name="first"), place)
    with serve_tls(place, "--mode", mode, "--tls-reload") as server:
        assert "first" == served(server, authority)
        put(authority.pair("localhost", common_name="second"), place)
        eventually(lambda: served(server, authority) == "second")
        server.wait_for_log("^reload certificate=")
        assert 0 == server.stop()


def put(pair: TLSFiles, place: TLSFiles) -> None:
    """Put other files in the place of these."""
    for source, target in zip(pair.paths, place.paths, strict=True):
        shutil.copyfile(source, target + ".new")
        os.replace(target + ".new", target)


def served(server: ServerProcess, authority: Authority) -> str:
    """The name in the certificate that a new session shows."""
    with tls(server.address, authority.client()) as client:
        certificate: Any = client.getpeercert()
        return str(dict(part for name in certificate["subject"] for part in name)["commonName"])


def test_http_over_tls(authority: Authority, tmp_path: Path) -> None:
    """http.server's handler as it is, for curl."""
    (tmp_path / "file").write_text("hello")
    handler = ["--handler", "http.server:SimpleHTTPRequestHandler"]
    files = authority.pair()
    words = ["--tls-cert", files.certfile, "--tls-key", str(files.keyfile), *handler]
    with ServerProcess(*words, cwd=tmp_path) as server:
        command = [peer_program("curl"), "-sS", "--cacert", authority.path, "--noproxy", "*"]
        url = "https://localhost:%d/file" % server.port
        result = subprocess.run([*command, url], capture_output=True, timeout=DEADLINE)
        assert (0, b"hello", b"") == (result.returncode, result.stdout, result.stderr)


@pytest.mark.parametrize("fault", ["missing", "expired", "mismatch", "password"])
def test_bad_files_are_one_line_and_exit_code_3(authority: Authority, fault: str) -> None:
    """Malformed options are exit code 2."""
    files = {
        "missing": TLSFiles("/nowhere"),
        "expired": authority.expired(),
        "mismatch": dataclasses.replace(authority.pair(), keyfile=authority.pair().keyfile),
        "password": authority.pair(password=b"secret"),
    }[fault]
    with serve_tls(files) as server:
        assert 3 == server.wait()
        (line,) = [line for line in server.log if line.startswith("stdserve: ")]
        assert re.match("stdserve: (cannot read the|the) (certificate|key) ", line)
        assert [] == [line for line in server.log if "Traceback" in line]


def test_a_key_without_a_certificate_is_exit_code_2() -> None:
    """Nothing is tried."""
    with ServerProcess("--tls-key", "key.pem") as server:
        assert 2 == server.wait()
        assert ["stdserve: --tls-key is of no use without --tls-cert"] == server.log
