"""The client over TLS: both directions and their ends, certificates, servers that break the rules."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from peers import behind_proxy, echo, ended, over_tls, read_until, run, running, serving
from processes import DEADLINE, ServerProcess, eventually, peer_program, read_all, reset

from stdserve.certificates import client_context
from stdserve.connection import Client
from stdserve.errors import (
    ConfigError,
    ConnectError,
    ConnectTimeout,
    SendError,
    SendTimeout,
)
from stdserve.proxy import ProxyHeader
from stdserve.tls_stream import TLSStream
from stdserve.transfer import Transfer

#: More than the kernel's buffers between two processes hold.
LARGE = 20_000_000

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


class Files:
    """A CA, a server of the names localhost and 127.0.0.1, and a client, as PEM files; contexts made of them."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca, self.server, self.client, self.key, self.bare = (
            str(folder / name) for name in ("ca.pem", "server.pem", "client.pem", "key.pem", "bare.pem")
        )
        authority.cert_pem.write_to_path(self.ca)
        authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(self.server)
        client = authority.issue_cert("client@example.org")
        client.private_key_and_cert_chain_pem.write_to_path(self.client)
        client.private_key_pem.write_to_path(self.key)
        client.cert_chain_pems[0].write_to_path(self.bare)

    def serve(self, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, *, mutual: bool = False) -> ssl.SSLContext:
        """Return a server's context for one version, which wants a certificate of the client if ``mutual``."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server)
        context.minimum_version = context.maximum_version = version
        if mutual:
            context.load_verify_locations(self.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Certificates, the same for all tests here."""
    return Files(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def trust(files: Files) -> ssl.SSLContext:
    """What a client needs to trust the server."""
    return client_context(files.ca)


@pytest.fixture
def null() -> Iterator[int]:
    """An output that nobody reads."""
    with open(os.devnull, "wb") as output:
        yield output.fileno()


# Both directions, and their ends


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: str(version.name))
def test_messages_go_out_and_replies_come_in(files: Files, version: ssl.TLSVersion) -> None:
    """The server sees the end of the messages, and has its say after that."""
    session = over_tls(files.serve(version), lambda peer: peer.sendall(b"got " + read_all(peer)))
    with serving(session) as address:
        assert (0, b"got one\ntwo\n", b"") == run(address, "one", "two", "--tls-ca", files.ca)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: str(version.name))
def test_no_reply_is_lost_at_the_end(files: Files, trust: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    """What the server is sending while the client says that it has finished arrives, and so does all that follows."""
    early, late = os.urandom(300_000), os.urandom(1_000_000)
    sent = threading.Event()

    def talk(peer: socket.socket) -> None:
        peer.sendall(early)
        sent.set()
        assert b"ping\n" == read_all(peer)
        peer.sendall(late)

    with (
        serving(over_tls(files.serve(version), talk)) as address,
        Client(address, tls=trust, read_timeout=DEADLINE) as client,
    ):
        client.send("ping")
        first = client.sock.recv(1)  # from here on records wait in OpenSSL's hands, whole ones and a part of one
        assert sent.wait(DEADLINE)
        assert early + late == first + client.finish()
        assert b"" == client.finish()


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: str(version.name))
def test_a_large_input_flows_through_an_echo_server(files: Files, version: ssl.TLSVersion, tmp_path: Path) -> None:
    """Megabytes go out and come back at the same time, without a deadlock."""
    source, output = tmp_path / "input", tmp_path / "output"
    source.write_bytes(os.urandom(1_000_000) * (LARGE // 1_000_000))
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(serving(over_tls(files.serve(version), echo)))
        stdin, stdout = stack.enter_context(source.open("rb")), stack.enter_context(output.open("wb"))
        process = stack.enter_context(running(address, "--tls-ca", files.ca, stdin=stdin, stdout=stdout))
        assert (0, None, b"") == ended(process)

    assert hashlib.sha256(source.read_bytes()).digest() == hashlib.sha256(output.read_bytes()).digest()


def test_waiting_takes_no_processor_time(files: Files, trust: ssl.SSLContext, null: int) -> None:
    """A client sleeps while the server reads nothing, and while it says nothing."""
    go, waits = threading.Event(), []

    def pause(peer: socket.socket) -> None:
        waits.append(go.wait(1.0))
        assert LARGE == len(read_all(peer))
        waits.append(go.wait(1.0))

    with serving(over_tls(files.serve(), pause)) as address, Client(address, tls=trust) as client:
        used, start = time.thread_time(), time.monotonic()
        Transfer(client.sock, null, bytes(LARGE), read_timeout=DEADLINE).run()
        used, elapsed = time.thread_time() - used, time.monotonic() - start

    assert [False, False] == waits
    assert elapsed > 2.0
    assert used < 1.0


def test_a_server_that_takes_nothing(files: Files, trust: ssl.SSLContext, null: int) -> None:
    """The read timeout holds over TLS, for a program that sends too much at once and for a transfer."""
    gone = threading.Event()

    def hang(peer: socket.socket) -> None:
        assert gone.wait(DEADLINE)
        reset(peer)

    with serving(over_tls(files.serve(), hang)) as address, Client(address, tls=trust, read_timeout=0.3) as client:
        with pytest.raises(SendTimeout, match="^send data timeout: timed out$"):
            client.send(bytes(LARGE))
        with pytest.raises(SendTimeout, match=r"^send data timeout: the server took nothing for 0.3 s$"):
            Transfer(client.sock, null, bytes(LARGE), read_timeout=0.3).run()
        gone.set()


def test_what_came_with_the_handshake_is_shown(files: Files, trust: ssl.SSLContext, tmp_path: Path) -> None:
    """A greeting in one segment with the end of the handshake is there at once, though the network is silent then."""
    output = tmp_path / "output"

    def greet(peer: socket.socket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = files.serve(ssl.TLSVersion.TLSv1_2).wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                server.do_handshake()
                break
            except ssl.SSLWantReadError:
                peer.sendall(outgoing.read())
                incoming.write(peer.recv(1 << 16))
        server.write(b"hello\n")
        peer.sendall(outgoing.read())
        eventually(lambda: output.read_bytes() == b"hello\n")
        assert read_all(peer)  # a close_notify, and behind it the FIN, while the client waits for us
        with contextlib.suppress(ssl.SSLWantReadError):
            server.unwrap()
        peer.sendall(outgoing.read())

    with output.open("wb") as shown, serving(greet) as address, Client(address, tls=trust) as client:
        Transfer(client.sock, shown.fileno(), read_timeout=DEADLINE).run()


def test_a_proxy_says_whose_it_is_before_the_handshake(files: Files) -> None:
    """Proxies that pass TLS on put their header in front of it."""
    headers: list[ProxyHeader] = []
    words = ["--proxy-protocol", "v2", "--proxy-source", "192.0.2.1:4711", "--tls-ca", files.ca]
    with serving(behind_proxy(headers, over_tls(files.serve(), echo))) as address:
        assert (0, b"ping\n", b"") == run(address, "ping", *words)
    assert [("192.0.2.1", 4711)] == [header.source for header in headers]


def test_closing_tells_the_server(files: Files, trust: ssl.SSLContext) -> None:
    """A strict server takes a client that just closes for one that has finished."""
    arrived = []
    with (
        serving(over_tls(files.serve(), lambda peer: arrived.append(read_all(peer)))) as address,
        Client(address, tls=trust) as client,
    ):
        client.send("ping")

    assert [b"ping\n"] == arrived


def test_a_server_may_end_first(files: Files, trust: ssl.SSLContext) -> None:
    """Its close_notify is an end in order, also for who has not finished."""

    def refuse(peer: socket.socket) -> None:
        assert b"ping\n" == peer.recv(100)
        peer.sendall(b"busy\n")

    with serving(over_tls(files.serve(), refuse)) as address:
        with_end = run(address, "ping", "--tls-ca", files.ca)
    with serving(over_tls(files.serve(), refuse)) as address, Client(address, tls=trust) as client:
        client.send("ping")
        assert ["busy"] == list(client.lines())

    assert (0, b"busy\n", b"") == with_end


def test_nothing_is_sent_after_the_end(files: Files, trust: ssl.SSLContext) -> None:
    """Who has said that no more will come cannot send more."""
    with serving(over_tls(files.serve(), echo)) as address, Client(address, tls=trust) as client:
        assert b"" == client.finish()
        with pytest.raises(SendError, match="^send data error: protocol is shutdown$"):
            client.send("ping")


def test_the_session_can_be_looked_at(files: Files, trust: ssl.SSLContext) -> None:
    """A program may ask for the version and the server's certificate."""
    session = over_tls(files.serve(), echo)
    with serving(session) as address, Client(address, tls=trust, connect_timeout=None) as client:
        assert isinstance(client.sock, TLSStream)
        assert "TLSv1.3" == client.sock.tls.version()
        certificate = client.sock.tls.getpeercert()
        assert certificate and ("DNS", "localhost") in certificate["subjectAltName"]


# Whom to trust


def refused(context: ssl.SSLContext, alert: str, peer: socket.socket) -> None:
    """The server's side of a handshake that the client breaks off, with the alert that says why."""
    with pytest.raises(ssl.SSLError, match=alert), context.wrap_socket(peer, server_side=True):
        pass


def test_the_system_decides_whom_to_trust(files: Files) -> None:
    """``--tls`` takes the CAs of the system, which SSL_CERT_FILE names for OpenSSL; so does ``tls=True``."""
    with serving(over_tls(files.serve(), echo)) as address:
        result = run(address, "ping", "--tls", env={**os.environ, "SSL_CERT_FILE": files.ca})
    assert (0, b"ping\n", b"") == result
    with serving(lambda peer: refused(files.serve(), "unknown ca", peer)) as address:
        words = "^connect error: 127.0.0.1: certificate verify failed: unable to get local issuer certificate$"
        with pytest.raises(ConnectError, match=words):
            Client(address, tls=True)


def test_the_name_is_verified(files: Files) -> None:
    """A certificate of another name is no good; the name may be given where it is not the host."""
    with serving(lambda peer: refused(files.serve(), "bad certificate", peer)) as address:
        result = run(address, "ping", "--tls-ca", files.ca, "--tls-name", "example.org")
    error = b"certificate verify failed: Hostname mismatch, certificate is not valid for 'example.org'\n"
    assert (1, b"", b"connect error: 127.0.0.1: " + error) == result

    asked = []
    context = files.serve()
    context.sni_callback = lambda stream, name, context: asked.append(name)
    with serving(over_tls(context, echo)) as address:
        assert (0, b"ping\n", b"") == run(address, "ping", "--tls-ca", files.ca, "--tls-name", "localhost")
    assert ["localhost"] == asked


def test_a_unix_socket_has_no_name(files: Files, trust: ssl.SSLContext, tmp_path: Path) -> None:
    """There, the name to verify has to be given, unless nothing is verified."""
    address = f"unix:{tmp_path}/socket"
    with serving(over_tls(files.serve(), echo), address):
        assert (0, b"ping\n", b"") == run(address, "ping", "--tls-ca", files.ca, "--tls-name", "localhost")
    os.unlink(tmp_path / "socket")
    with serving(over_tls(files.serve(), echo), address):
        assert (0, b"ping\n", b"") == run(address, "ping", "--tls-insecure")
    os.unlink(tmp_path / "socket")
    unnamed = pytest.raises(ConfigError, match="^tls_name must be the name of the server to verify, not None$")
    with serving(read_all, address), unnamed:
        Client(address, tls=trust)


def test_an_insecure_client_takes_any_certificate(files: Files) -> None:
    """``--tls-insecure`` is what it says, without another word."""
    with serving(over_tls(files.serve(), echo)) as address:
        assert (0, b"ping\n", b"") == run(address, "ping", "--tls-insecure", "--tls-name", "example.org")


@pytest.mark.parametrize("apart", [False, True], ids=["one-file", "two-files"])
def test_the_client_has_a_certificate_of_its_own(files: Files, apart: bool) -> None:
    """A server that wants to know its clients gets it, from one file or from two."""
    names = []

    def who(peer: socket.socket) -> None:
        assert isinstance(peer, ssl.SSLSocket)
        certificate = peer.getpeercert()
        names.append(certificate and certificate["subjectAltName"])
        echo(peer)

    words = ["--tls-cert", files.bare, "--tls-key", files.key] if apart else ["--tls-cert", files.client]
    with serving(over_tls(files.serve(mutual=True), who)) as address:
        assert (0, b"ping\n", b"") == run(address, "ping", "--tls-ca", files.ca, *words)
    assert [(("email", "client@example.org"),)] == names


def test_a_client_without_a_certificate_is_told(files: Files, trust: ssl.SSLContext) -> None:
    """The server's alert is the error: TLS 1.3 sends it when the client's handshake is over, TLS 1.2 before."""

    def refuse(version: ssl.TLSVersion, peer: socket.socket) -> None:
        with contextlib.suppress(ssl.SSLError):
            files.serve(version, mutual=True).wrap_socket(peer, server_side=True)

    with (
        serving(lambda peer: refuse(ssl.TLSVersion.TLSv1_2, peer)) as address,
        pytest.raises(ConnectError, match="^connect error: 127.0.0.1: sslv3 alert handshake failure$"),
    ):
        Client(address, tls=trust)
    with (
        serving(lambda peer: refuse(ssl.TLSVersion.TLSv1_3, peer)) as address,
        Client(address, tls=trust, read_timeout=DEADLINE) as client,
    ):
        for _ in range(2):
            with pytest.raises(SendError, match="^send data error: tlsv13 alert certificate required$"):
                client.receive_line()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--tls-key", "{key}"], "--tls-key needs --tls-cert"),
        (["--tls-ca", "{key}.no"], "cannot read the CA file '{key}.no': No such file or directory"),
        (["--tls-ca", "{key}"], "the CA file '{key}' has no certificate in PEM"),
        (["--tls-cert", "{key}.no"], "cannot read the certificate '{key}.no': No such file or directory"),
        (["--tls-cert", "{bare}"], "'{bare}' has no private key in PEM"),
        (["--tls-ca", "{ca}", "--tls-insecure"], "argument --tls-insecure: not allowed with argument --tls-ca"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(files: Files, words: list[str], error: str) -> None:
    """What cannot be used is one line that names it, before a connection is made."""
    code, output, errors = run("127.0.0.1:1", "ping", *(word.format(**vars(files)) for word in words))

    assert (2, b"") == (code, output)
    assert errors.decode().startswith(error.format(**vars(files)))
    assert 1 == errors.count(b"\n")


@pytest.mark.parametrize("name", ["", ".example.org", "a..b"])
def test_a_name_that_is_none(files: Files, trust: ssl.SSLContext, name: str) -> None:
    """It is a mistake of the caller's."""
    closed = []
    with (
        serving(lambda peer: closed.append(read_all(peer))) as address,
        pytest.raises(ConfigError, match="^tls_name must be the name of the server to verify, not "),
    ):
        Client(address, tls=trust, tls_name=name)
    assert [b""] == closed


# What goes wrong


def test_a_server_that_ends_without_a_word(files: Files) -> None:
    """An end without close_notify may be anybody's: replies are shown, and then it is an error."""

    def cut(peer: socket.socket) -> None:
        assert b"ping\n" == read_all(peer)
        peer.sendall(b"pong\n")
        peer.close()

    with serving(over_tls(files.serve(), cut)) as address:
        result = run(address, "ping", "--tls-ca", files.ca)
    error = b"send data error: the server ended the session without a close_notify of TLS\n"
    assert (1, b"pong\n", error) == result


def test_a_server_that_does_not_speak_tls(files: Files) -> None:
    """Its first words tell."""

    def greet(peer: socket.socket) -> None:
        peer.sendall(b"220 welcome\r\n")
        read_all(peer)

    with serving(greet) as address:
        assert (1, b"", b"connect error: 127.0.0.1: the server does not speak TLS\n") == run(address, "ping", "--tls")


def test_a_server_that_hangs_up_on_the_handshake(files: Files) -> None:
    """That, too, is an error of the connection."""
    with serving(lambda peer: peer.recv(1 << 16)) as address:
        result = run(address, "ping", "--tls")
    assert (1, b"", b"connect error: 127.0.0.1: the server ended the TLS handshake\n") == result


@pytest.mark.parametrize("drip", [False, True], ids=["silent", "dripping"])
def test_a_server_that_does_not_get_on_with_the_handshake(files: Files, trust: ssl.SSLContext, drip: bool) -> None:
    """The connect timeout holds for the handshake as a whole, whatever comes meanwhile."""
    gone = threading.Event()

    def hesitate(peer: socket.socket) -> None:
        record = iter(b"\x16\x03\x03\x40\x00" + bytes(16384))
        while not gone.wait(0.02):
            with contextlib.suppress(ConnectionError):
                peer.send(bytes([next(record)])[:drip])

    with serving(hesitate) as address:
        with pytest.raises(ConnectTimeout, match="^connect timeout$"):
            Client(address, tls=trust, connect_timeout=0.3)
        gone.set()


def test_a_handshake_without_time(files: Files, trust: ssl.SSLContext) -> None:
    """The deadline counts, not the wait for each byte."""
    one, other = socket.socketpair()
    with one, other, pytest.raises(TimeoutError):
        TLSStream(one, trust, "localhost").handshake(0)


def test_a_reset_while_sending(files: Files, trust: ssl.SSLContext, null: int) -> None:
    """A server that dies is ``send data error`` with the system's reason, as without TLS."""
    broken = pytest.raises(SendError, match="^send data error: (Connection reset by peer|Broken pipe)$")
    with serving(over_tls(files.serve(), reset)) as address, Client(address, tls=trust) as client, broken:
        Transfer(client.sock, null, bytes(LARGE)).run()


def test_garbage_in_the_session(files: Files, trust: ssl.SSLContext) -> None:
    """A record that does not decrypt ends the session; what came before it has been read, no more is sent."""

    def garble(peer: socket.socket) -> None:
        stream = files.serve().wrap_socket(peer, server_side=True)
        stream.sendall(b"hello\n")
        with socket.socket(fileno=stream.detach()) as raw:
            raw.settimeout(DEADLINE)
            raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            raw.recv(1 << 16)

    with serving(garble) as address, Client(address, tls=trust, read_timeout=DEADLINE) as client:
        assert "hello" == client.receive_line()
        broken = "^send data error: decryption failed or bad record mac$"
        for _ in range(2):
            with pytest.raises(SendError, match=broken):
                client.receive_line()
        with pytest.raises(SendError, match=broken):
            client.send("ping")
        with pytest.raises(SendError, match=broken):
            client.finish()


# Servers that are nobody's test


@pytest.mark.parametrize("mode", ["thread", "fork"])
def test_our_own_server_echoes_megabytes(files: Files, mode: str, tmp_path: Path) -> None:
    """Both ends of ours, over TLS: nothing is lost, and the session ends in order for both."""
    source, output = tmp_path / "input", tmp_path / "output"
    source.write_bytes((b"x" * 99 + b"\n") * (LARGE // 100))
    words = ["--mode", mode, "--handler", "stdserve:EchoHandler", "--output", os.devnull, "--tls-cert", files.server]
    with ServerProcess(*words) as server, source.open("rb") as stdin, output.open("wb") as stdout:
        result = run(f"localhost:{server.port}", "--tls-ca", files.ca, stdin=stdin, stdout=stdout)
        assert (0, None, b"") == result
        server.wait_for_log("^close .* reason=eof ")

    assert hashlib.sha256(source.read_bytes()).digest() == hashlib.sha256(output.read_bytes()).digest()


@contextlib.contextmanager
def s_server(files: Files, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run ``openssl s_server``; yield it and its address."""
    command = [peer_program("openssl"), "s_server", "-accept", "127.0.0.1:0", "-key", files.server, "-cert"]
    with subprocess.Popen(
        [*command, files.server, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        try:
            assert process.stdout is not None
            found = None
            while not found:
                found = re.match(rb"ACCEPT (\S+)", process.stdout.readline())
            yield process, found[1].decode()
        finally:
            process.kill()


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_reverses_lines(files: Files, version: str) -> None:
    """``s_server -rev`` answers each line, and ends when we do."""
    with s_server(files, version, "-rev") as (_, address):
        assert (0, b"olleh\ndlrow\n", b"") == run(address, "hello", "world", "--tls-ca", files.ca)


def test_renegotiation_while_the_client_sends(files: Files) -> None:
    """A server of TLS 1.2 may want new keys: sending waits for its answer, and the line arrives all the same."""
    with (
        s_server(files, "-tls1_2") as (server, address),
        Client(address, tls=ssl.create_default_context(cafile=files.ca)) as client,
    ):
        type_in(server, b"r\n")
        assert select.select([client.sock], [], [], DEADLINE)[0]
        server.send_signal(signal.SIGSTOP)
        client.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.sock.recv(1 << 16)
        with pytest.raises(BlockingIOError):
            client.sock.send(b"ping\n")
        server.send_signal(signal.SIGCONT)
        client.sock.settimeout(DEADLINE)
        client.send("ping")
        read_until(server.stdout, b"ping\n")


def test_a_key_update(files: Files, trust: ssl.SSLContext) -> None:
    """A server of TLS 1.3 may want new keys at any time; lines in both directions arrive all the same."""
    with s_server(files, "-tls1_3") as (server, address), Client(address, tls=trust, read_timeout=DEADLINE) as client:
        client.send("ping")
        read_until(server.stdout, b"ping\n")
        type_in(server, b"one\n")
        assert "one" == client.receive_line()
        type_in(server, b"K\n")
        assert select.select([client.sock], [], [], DEADLINE)[0]
        type_in(server, b"two\n")
        assert "two" == client.receive_line()
        client.send("three")
        read_until(server.stdout, b"three\n")


def type_in(server: subprocess.Popen[bytes], line: bytes) -> None:
    """Give a line to ``s_server``: a command, if it is one letter, or text for the client."""
    assert server.stdin is not None
    server.stdin.write(line)
