"""One TLS connection: its handshake, its reads and replies, its end; the faults of ``ssl`` beside what we do."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import DEADLINE, eventually, peer_program, read_all, reset

from stdserve import tls as room
from stdserve.certificates import TLSFiles, load_context
from stdserve.errors import PeerError
from stdserve.sessions import half_close, linger
from stdserve.steps import run
from stdserve.streams import LineTooLong, SessionReader, SessionSocket
from stdserve.tls import TLSSocket, wrap

VERSIONS = ["1.2", "1.3"]
versions = pytest.mark.parametrize("version", VERSIONS)


def tcp() -> tuple[SessionSocket, socket.socket]:
    """An accepted connection and its client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), DEADLINE)
        return SessionSocket.adopt(listener.accept()[0]), client


def soon(seconds: float = DEADLINE) -> float:
    """A deadline for a handshake."""
    return time.monotonic() + seconds


class Beside:
    """A call in a thread of its own, whose result or exception is fetched later."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        """Wait for the end of the call, return what it returned or raise what it raised."""
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        return self._result


@contextlib.contextmanager
def handshaken(
    server: ssl.SSLContext, client: ssl.SSLContext, connect: Callable[[], tuple[Any, Any]] = tcp
) -> Iterator[tuple[TLSSocket, ssl.SSLSocket]]:
    """Both ends of a connection after its handshake; the client is strict."""
    accepted, raw = connect()
    session = wrap(accepted, server)
    shaking = Beside(lambda: run(session.handshake(soon())))
    peer = client.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False)
    shaking.result()
    session.settimeout(DEADLINE)
    with session, peer:
        yield session, peer


@contextlib.contextmanager
def beneath(sock: socket.socket) -> Iterator[socket.socket]:
    """The same connection without TLS, for what no TLS library would do."""
    with socket.socket(fileno=os.dup(sock.fileno())) as raw:
        raw.settimeout(DEADLINE)
        yield raw


@pytest.fixture(params=VERSIONS)
def pair(request: pytest.FixtureRequest, authority: Authority) -> Iterator[tuple[TLSSocket, ssl.SSLSocket]]:
    """A session's socket and its strict client's, in each version of TLS."""
    with handshaken(load_context(authority.pair()), authority.client(version=request.param)) as both:
        yield both


Pair = tuple[TLSSocket, ssl.SSLSocket]


# The handshake.


@versions
def test_a_handshake_makes_a_session_that_speaks_tls(authority: Authority, version: str) -> None:
    """In the place of the accepted socket, whose timeout and bound of lines it keeps."""
    accepted, raw = tcp()
    accepted.settimeout(7)
    accepted.max_line = 10
    number = accepted.fileno()
    session = wrap(accepted, load_context(authority.pair()))
    shaking = Beside(lambda: run(session.handshake(soon())))
    with session, authority.client(version=version).wrap_socket(raw, server_hostname="localhost") as client:
        shaking.result()
        assert [7, 10, number, -1] == [
            *(session.gettimeout(), session.max_line, session.fileno(), accepted.fileno()),
        ]
        assert f"TLSv{version}" == session.version() == client.version()
        client.sendall(b"ping")
        assert b"ping" == session.recv(10)
        session.sendall(b"pong")
        assert b"pong" == client.recv(10)


@versions
def test_openssl_finishes_the_handshake_and_reads_a_clean_end(authority: Authority, version: str) -> None:
    """`openssl s_client`, which calls an end without close_notify an error."""
    accepted_by = socket.create_server(("127.0.0.1", 0))
    option = f"-tls{version.replace('.', '_')}"
    command = [peer_program("openssl"), "s_client", "-quiet", "-verify_return_error", "-CAfile", authority.path, option]
    with accepted_by as listener:
        client = subprocess.Popen(
            [*command, "-connect", "127.0.0.1:%d" % listener.getsockname()[1], "-servername", "localhost"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        session = wrap(listener.accept()[0], load_context(authority.pair()))
    with session:
        run(session.handshake(soon()))
        assert client.stdin is not None
        client.stdin.write(b"ping\n")
        client.stdin.flush()
        assert b"ping\n" == session.recv(10)
        session.sendall(b"pong\n")
        session.close_notify(soon())
        half_close(session, socket.SHUT_WR)
        output, errors = client.communicate(timeout=DEADLINE)
    assert (0, b"pong\n") == (client.returncode, output)
    assert b"error" not in errors.replace(b"verify error", b"error")


def test_a_silent_peer_is_cut_at_the_deadline(authority: Authority) -> None:
    """Also one that has begun."""
    hello = client_hello(authority)
    for data in (b"", hello[:1], hello[:-1]):
        accepted, client = tcp()
        with client, wrap(accepted, load_context(authority.pair())) as session:
            client.sendall(data)
            started = time.monotonic()
            with pytest.raises(PeerError, match="not done in time") as error:
                run(session.handshake(soon(0.1)))
            assert 0.1 <= time.monotonic() - started
            assert "handshake_timeout" == error.value.reason
            with pytest.raises(PeerError, match="not done in time"):
                run(session.handshake(soon(-1)))


def client_hello(authority: Authority) -> bytes:
    """A client's first message."""
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        authority.client().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def test_the_deadline_is_for_the_whole_handshake(authority: Authority) -> None:
    """A peer that sends a byte now and then does not get more time."""
    accepted, client = tcp()
    hello, ended = client_hello(authority), threading.Event()

    def drip() -> None:
        for number in range(len(hello) - 1):
            if ended.wait(0.02):
                return
            client.sendall(hello[number : number + 1])

    with client, wrap(accepted, load_context(authority.pair())) as session:
        dripping = Beside(drip)
        started = time.monotonic()
        with pytest.raises(PeerError) as error:
            run(session.handshake(soon(0.5)))
        # All of it would take ten times as long.
        assert 0.5 <= time.monotonic() - started < 0.02 * len(hello) / 2
        ended.set()
        dripping.result()
        assert "handshake_timeout" == error.value.reason


def test_a_client_that_drips_but_comes_to_an_end_is_served(authority: Authority) -> None:
    """Cut wherever TCP may cut."""
    accepted, raw = tcp()
    client = authority.client().wrap_bio(incoming := ssl.MemoryBIO(), outgoing := ssl.MemoryBIO(), False, "localhost")
    with raw, wrap(accepted, load_context(authority.pair())) as session:
        shaking = Beside(lambda: run(session.handshake(soon())))
        for done in (False, True):
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
            for byte in outgoing.read():
                raw.sendall(bytes([byte]))
            if not done:
                incoming.write(raw.recv(65536))
        shaking.result()


@pytest.mark.parametrize("data", [b"hello\n", b"x", b"\r\n", b"\x80.\x01\x03\x01", b"\x00", b"SSH-2.0-x\r\n", b"get /"])
def test_plain_text_is_refused_at_once(authority: Authority, data: bytes) -> None:
    """From its first byte on, and without a word that the peer could not read."""
    accepted, client = tcp()
    with client, wrap(accepted, load_context(authority.pair())) as session:
        client.sendall(data)
        with pytest.raises(PeerError, match="^plain text on a TLS port$") as error:
            run(session.handshake(soon()))
        assert "tls" == error.value.reason
        session.close()
        with contextlib.suppress(ConnectionResetError):
            assert b"" == client.recv(10)


def test_an_http_client_without_tls_is_told(authority: Authority) -> None:
    """It can read the answer, curl included; the log names it."""
    accepted, client = tcp()
    with client, wrap(accepted, load_context(authority.pair())) as session:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(PeerError, match="^plain text on a TLS port: an HTTP request$"):
            run(session.handshake(soon()))
        half_close(session, socket.SHUT_WR)
        assert read_all(client).startswith(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\x16" * 300, "not TLS, or a version of it that nobody knows"),
        (b"\x16\x03\x01\x00\x05hello", "unexpected message"),
    ],
)
def test_what_only_looks_like_tls_is_refused(authority: Authority, data: bytes, complaint: str) -> None:
    """In OpenSSL's words, on one line."""
    accepted, client = tcp()
    with client, wrap(accepted, load_context(authority.pair())) as session:
        client.sendall(data)
        with pytest.raises(PeerError, match=f"^{complaint}$"):
            run(session.handshake(soon()))


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_the_peers_fault(data: bytes) -> None:
    """Nothing but the two errors gets out."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepted, client = tcp()
    with client, wrap(accepted, context) as session:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        with pytest.raises((PeerError, ConnectionResetError)) as error:
            run(session.handshake(soon()))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("leave", [reset, lambda client: client.close()])
@pytest.mark.parametrize("data", [b"", b"\x16\x03"])
def test_a_peer_that_leaves_is_no_error_of_ours(
    authority: Authority, data: bytes, leave: Callable[[socket.socket], None]
) -> None:
    """A health check connects and closes."""
    accepted, client = tcp()
    session = wrap(accepted, load_context(authority.pair()))
    client.sendall(data)
    leave(client)
    with session, pytest.raises(ConnectionResetError):
        run(session.handshake(soon()))


def test_a_connection_that_is_gone_gives_no_socket_of_plain_text(authority: Authority) -> None:
    """As `ssl` would, whose socket then reads what came before the reset as it is (CVE-2023-40217)."""
    accepted, client = tcp()
    client.sendall(b"plain text")
    reset(client)
    eventually(lambda: accepted.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    with pytest.raises(ConnectionResetError, match="gone before its TLS handshake"):
        wrap(accepted, load_context(authority.pair()))
    assert -1 == accepted.fileno()
    unconnected = socket.socket()
    with pytest.raises(ConnectionResetError, match="gone before its TLS handshake"):
        wrap(unconnected, load_context(authority.pair()))
    assert -1 == unconnected.fileno()


def test_a_stop_ends_a_handshake(authority: Authority) -> None:
    """The drain shuts the reading side of the raw socket, a cut both."""
    for how in (socket.SHUT_RD, socket.SHUT_RDWR):
        accepted, client = tcp()
        with client, wrap(accepted, load_context(authority.pair())) as session:
            shaking = Beside(lambda session=session: run(session.handshake(soon())))  # type: ignore[misc]
            client.sendall(b"\x16\x03")
            half_close(session, how)
            with pytest.raises(ConnectionResetError):
                shaking.result()


def test_a_session_that_was_closed_meanwhile(authority: Authority) -> None:
    """Its descriptor is gone."""
    accepted, client = tcp()
    with client:
        session = wrap(accepted, load_context(authority.pair()))
        session.close_now()
        with pytest.raises(ConnectionResetError, match="Bad file descriptor"):
            run(session.handshake(soon()))


@versions
def test_a_client_that_refuses_our_certificate_says_so(authority: Authority, version: str) -> None:
    """With an alert, which is the client's, and its words OpenSSL's."""
    stranger = ssl.create_default_context()
    stranger.minimum_version = stranger.maximum_version = authority.client(version=version).minimum_version
    accepted, raw = tcp()
    with wrap(accepted, load_context(authority.pair())) as session:
        shaking = Beside(lambda: run(session.handshake(soon())))
        with pytest.raises(ssl.SSLCertVerificationError):
            stranger.wrap_socket(raw, server_hostname="localhost")
        with pytest.raises(PeerError, match="^the peer sent the alert unknown ca$"):
            shaking.result()


def test_a_client_that_is_too_old_is_refused(authority: Authority) -> None:
    """And told."""
    context = load_context(dataclasses.replace(authority.pair(), min_version="1.3"))
    accepted, raw = tcp()
    with wrap(accepted, context) as session:
        shaking = Beside(lambda: run(session.handshake(soon())))
        with pytest.raises(ssl.SSLError, match="alert protocol version"):
            authority.client(version="1.2").wrap_socket(raw, server_hostname="localhost")
        with pytest.raises(PeerError, match="^the peer speaks no version of TLS that is allowed here$"):
            shaking.result()


# Certificates of clients.


@versions
def test_a_clients_certificate_is_known_to_the_session(authority: Authority, version: str) -> None:
    """As one line, and as the dict that `ssl` makes of it."""
    context = load_context(dataclasses.replace(authority.pair(), client_ca=authority.path))
    own = authority.pair("client.test", common_name='Ann, the "1st"\n', organization_name="Ö = O")
    with handshaken(context, authority.client(own, version)) as (session, client):
        subject = session.subject
        assert subject is not None
        first, *_, last = subject.replace("\\,", "").split(",")
        assert r"CN=Ann the \"1st\"\0A" == first
        assert "O=Ö = O" == last
        assert (("DNS", "client.test"),) == session.getpeercert()["subjectAltName"]  # type: ignore[index]
        client.sendall(b"ping")
        assert b"ping" == session.recv(10)


def test_without_a_certificate_there_is_no_subject(pair: Pair) -> None:
    """None, not an empty one."""
    assert pair[0].subject is None


def test_a_subject_is_written_as_rfc_4514_has_it() -> None:
    """Section 4's examples, and what must not reach a log."""
    cases = {
        'James "Jim" Smith, III': r"James \"Jim\" Smith\, III",
        "Before\rAfter": r"Before\0DAfter",
        "#a": r"\#a",
        " a b ": r"\ a b\ ",
        "Lučić": "Lučić",
        "a+b<c>;\\": r"a\+b\<c\>\;\\",
        "\x9b\0": r"\C2\9B\00",
        " ": r"\ ",
    }
    assert list(cases.values()) == [room._escape(value) for value in cases]


@given(st.text())
def test_an_escaped_value_is_one_printable_line(value: str) -> None:
    """Whatever a CA signed."""
    escaped = room._escape(value)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in escaped)


@versions
@pytest.mark.parametrize(
    ("own", "complaint"),
    [
        (lambda ours, theirs: None, "^the peer sent no certificate$"),
        (lambda ours, theirs: theirs.pair(), "^the peer's certificate is refused: unable to get local issuer "),
        (lambda ours, theirs: ours.expired(), "^the peer's certificate is refused: certificate has expired$"),
    ],
    ids=["none", "stranger", "expired"],
)
def test_a_client_without_a_good_certificate_is_refused_and_told(
    authority: Authority,
    tmp_path: Path,
    version: str,
    own: Callable[[Authority, Authority], TLSFiles | None],
    complaint: str,
) -> None:
    """By an alert that it can read, though in TLS 1.3 it has sent what it wants to say by then."""
    context = load_context(dataclasses.replace(authority.pair(), client_ca=authority.path))
    accepted, raw = tcp()
    trusting = authority.client(own(authority, Authority(tmp_path)), version)

    def talk() -> bytes:
        with trusting.wrap_socket(raw, server_hostname="localhost") as client:
            client.sendall(b"let me in")
            return client.recv(10)

    talking = Beside(talk)
    with wrap(accepted, context) as session:
        with pytest.raises(PeerError, match=complaint) as error:
            run(session.handshake(soon()))
        assert "tls" == error.value.reason
        session.close_notify(soon())
        half_close(session, socket.SHUT_WR)
        run(linger(session, DEADLINE))
    with pytest.raises(ssl.SSLError, match="(?i)alert (certificate|handshake failure|unknown ca)"):
        talking.result()


# Reading.


def test_only_files_for_reading_bytes_are_ours(pair: Pair) -> None:
    """Those of a SessionSocket."""
    session, client = pair
    with session.makefile("rb") as reader, session.makefile("wb") as writer:
        assert isinstance(reader, SessionReader)
        writer.write(b"one\n")
        writer.flush()
        assert b"one\n" == client.recv(10)
        client.sendall(b"two\n")
        assert b"two\n" == reader.readline()


def test_a_timeout_loses_nothing_and_poisons_nothing(pair: Pair) -> None:
    """Neither between two records nor within one."""
    session, client = pair
    session.settimeout(0.05)
    with session.makefile("rb") as reader, beneath(client) as raw:
        client.sendall(b"begun ")
        for _ in range(2):
            with pytest.raises(TimeoutError):
                reader.readline()
        record = encrypted(client, b"ended\n")
        raw.sendall(record[:10])
        for _ in range(2):
            with pytest.raises(TimeoutError):
                reader.readline()
        raw.sendall(record[10:])
        session.settimeout(DEADLINE)
        assert b"begun ended\n" == reader.readline()


def encrypted(client: ssl.SSLSocket, data: bytes) -> bytes:
    """What ``client`` would send for ``data``: it is sent into a connection of its own."""
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(fileno=os.dup(client.fileno())) as kept:
        os.dup2(ours.fileno(), client.fileno())
        client.sendall(data)
        os.dup2(kept.fileno(), client.fileno())
        return theirs.recv(65536)


def test_a_line_has_a_limit(pair: Pair) -> None:
    """That of the socket."""
    session, client = pair
    session.max_line = 10
    client.sendall(b"x" * 20)
    with session.makefile("rb") as reader, pytest.raises(LineTooLong):
        reader.readline()


def test_what_is_deciphered_is_read_without_waiting(pair: Pair) -> None:
    """`pending()` counts it."""
    session, client = pair
    client.sendall(b"0123456789")
    assert b"0123" == session.recv(4)
    assert 6 == session.pending()
    buffer = bytearray(10)
    assert 6 == session.recv_into(buffer)


def test_a_drain_reads_as_eof_after_what_has_arrived_and_replies_can_still_be_sent(pair: Pair) -> None:
    """OpenSSL 3 would send the client an alert instead, and no reply after it."""
    session, client = pair
    client.sendall(b"last words")
    eventually(lambda: ready(session))
    half_close(session, socket.SHUT_RD)
    with session.makefile("rb") as reader:
        assert b"last words" == reader.read()
        assert b"" == reader.read()
    assert b"" == session.recv(10)
    session.sendall(b"goodbye")
    session.close_notify(soon())
    half_close(session, socket.SHUT_WR)
    assert b"goodbye" == read_all(client)


def ready(session: TLSSocket) -> bool:
    """Whether something has arrived."""
    with contextlib.suppress(BlockingIOError):
        return bool(socket.socket.recv(session, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    return False


@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_a_drain_ends_a_read_that_waits(pair: Pair, timeout: float | None) -> None:
    """Also in the middle of a record, which then is lost: nobody could check it."""
    session, client = pair
    session.settimeout(timeout)
    reading = Beside(lambda: session.recv(10))
    with beneath(client) as raw:
        raw.sendall(b"\x17\x03\x03\x00\x50begun")
        half_close(session, socket.SHUT_RD)
        assert b"" == reading.result()
    session.sendall(b"goodbye")
    assert b"goodbye" == client.recv(10)


@pytest.mark.parametrize("polite", [True, False])
def test_a_client_that_has_sent_everything_is_eof(pair: Pair, polite: bool) -> None:
    """With close_notify or without; it can still read."""
    session, client = pair
    client.sendall(b"last words")
    if polite:
        client.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            client.unwrap()
        client.settimeout(DEADLINE)
    else:
        socket.socket.shutdown(client, socket.SHUT_WR)
    assert b"last words" == read_all(session)
    session.sendall(b"goodbye")
    assert b"goodbye" == client.recv(10)


def test_a_broken_connection_is_told_from_eof(pair: Pair) -> None:
    """Before 3.13 `ssl` calls both EOF."""
    session, client = pair
    client.sendall(b"last words")
    eventually(lambda: ready(session))
    with beneath(client) as raw:
        client.close()
        reset(raw)
    assert b"last words" == session.recv(10)
    with pytest.raises(ConnectionResetError):
        session.recv(10)


def test_bytes_that_are_no_tls_break_the_connection(pair: Pair) -> None:
    """As a kind of ConnectionError, which servers know for the peer's fault; so does what is sent after it."""
    session, client = pair
    with beneath(client) as raw:
        raw.sendall(b"\x17\x03\x03\x00\x50" + b"x" * 0x50)
    with pytest.raises(ConnectionAbortedError, match="^TLS failed: decryption failed or bad record mac$"):
        session.recv(10)
    with pytest.raises(ConnectionError):
        session.sendall(b"x")


def test_a_non_blocking_socket_stays_one(pair: Pair) -> None:
    """With the exceptions of `ssl`."""
    session, client = pair
    session.setblocking(False)
    with pytest.raises(ssl.SSLWantReadError):
        session.recv(10)
    with pytest.raises(ssl.SSLWantWriteError):
        while True:
            session.send(b"x" * 65536)


def test_a_write_only_client_loses_nothing(authority: Authority) -> None:
    """Session tickets, which nobody asked for, would make its kernel throw away what it had not sent yet."""
    size = 2_000_000
    with handshaken(load_context(authority.pair()), authority.client(version="1.3")) as (session, client):

        def send() -> None:
            client.sendall(b"x" * size)
            client.close()

        sending = Beside(send)
        # Slowly, so that the client has closed while much is still on its way.
        received = len(session.recv(1000))
        sending.result()
        assert size == received + len(read_all(session))


# The end.


def test_close_notify_is_a_clean_end_for_a_strict_client(pair: Pair) -> None:
    """Nobody waits for its answer; without it, the client gets an error."""
    session, client = pair
    session.sendall(b"bye")
    session.close_notify(soon())
    assert DEADLINE == session.gettimeout()
    assert half_close(session, socket.SHUT_WR)
    assert b"bye" == read_all(client)
    with pytest.raises(OSError, match="protocol is shutdown|Broken pipe"):
        session.send(b"never in plain text")
    client.close()
    run(linger(session, DEADLINE))


def test_an_end_without_close_notify_is_none(pair: Pair) -> None:
    """What the test before this one would read if nothing were sent."""
    session, client = pair
    half_close(session, socket.SHUT_WR)
    with pytest.raises(ssl.SSLEOFError):
        read_all(client)


def test_close_notify_arrives_though_the_client_still_sends(pair: Pair) -> None:
    """The linger discards the cipher text."""
    session, client = pair
    client.sendall(b"x" * 100_000)
    session.sendall(b"bye")
    session.close_notify(soon())
    half_close(session, socket.SHUT_WR)
    lingering = Beside(lambda: run(linger(session, DEADLINE)))
    assert b"bye" == read_all(client)
    client.sendall(b"x" * 100_000)
    client.close()
    lingering.result()


def test_close_notify_of_both_ends(pair: Pair) -> None:
    """In either order; afterwards both read EOF, as often as they like."""
    session, client = pair
    client.setblocking(False)
    with pytest.raises(ssl.SSLWantReadError):
        client.unwrap()
    assert b"" == session.recv(10)
    session.close_notify(soon())
    session.close_notify(soon())
    assert b"" == session.recv(10)
    assert 0 == session.recv_into(bytearray(10))


@versions
def test_a_full_send_buffer_delays_close_notify_until_the_deadline(
    authority: Authority, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes out when there is room. Over a UNIX socket, whose buffer has one size."""
    contexts = load_context(authority.pair()), authority.client(version=version)
    with handshaken(*contexts, socket.socketpair) as (session, client):
        filled = fill(session)
        session.be_driven(Undriven())
        with pytest.raises(ssl.SSLWantWriteError):  # who drives it waits in its place
            session.close_notify(soon())
        session.be_alone()
        started = time.monotonic()
        session.close_notify(soon(0.1))
        assert 0.1 <= time.monotonic() - started < DEADLINE / 2
        waits, wait = threading.Event(), session._has_room

        def wait_for_room(deadline: float) -> bool:
            waits.set()
            return wait(deadline)

        monkeypatch.setattr(session, "_has_room", wait_for_room)
        telling = Beside(lambda: session.close_notify(soon()))
        assert waits.wait(DEADLINE)
        with beneath(client) as raw:
            received = 0
            while received < filled:
                received += len(raw.recv(65536))
            telling.result()
            half_close(session, socket.SHUT_WR)
            # An alert: 5 bytes of header, 2 of its own, and a checksum.
            assert filled + 7 < received + len(read_all(raw)) < filled + 50


class Undriven:
    """Has no part in the session."""

    inside = 0
    outbox: Any = None

    def notice(self) -> None:
        """Do nothing."""

    def stir(self, outbox: object) -> None:
        """Do nothing."""


def fill(session: socket.socket) -> int:
    """Fill the send buffer, beneath TLS; return how many bytes that took."""
    filled = 0
    with beneath(session) as raw, contextlib.suppress(BlockingIOError):
        raw.setblocking(False)
        while True:
            filled += raw.send(b"x")
    return filled


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_a_reply_that_was_cut_off_does_not_end_well(pair: Pair, timeout: float) -> None:
    """A strict client must not take it for whole."""
    session, client = pair
    session.settimeout(timeout)
    with pytest.raises((TimeoutError, ssl.SSLWantWriteError)):
        # In pieces that the kernel takes whole or not at all: else OpenSSL itself has no place for a close_notify.
        while True:
            session.send(b"x" * 16000)
    session.close_notify(soon())
    half_close(session, socket.SHUT_WR)
    with pytest.raises(ssl.SSLError):
        read_all(client)


def test_nothing_is_told_on_a_connection_that_is_over(pair: Pair) -> None:
    """Closed, or broken."""
    session, client = pair
    reset_beneath(client)
    session.close_notify(soon())
    session.close()
    session.close_notify(soon())


def reset_beneath(client: ssl.SSLSocket) -> None:
    """Break the connection."""
    with beneath(client) as raw:
        client.close()
        reset(raw)


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
@pytest.mark.parametrize("timeout", [None, 10])
def test_a_handlers_shutdown_never_goes_on_in_plain_text(pair: Pair, how: int, timeout: float | None) -> None:
    """As `SSLSocket.shutdown` does; the client reads a clean end."""
    session, client = pair
    session.settimeout(timeout)
    session.shutdown(how)
    assert b"" == read_all(client)
    with pytest.raises(OSError, match="protocol is shutdown|Broken pipe"):
        session.sendall(b"never in plain text")


def test_a_handler_may_shut_its_reading_side(pair: Pair) -> None:
    """And reply."""
    session, client = pair
    session.shutdown(socket.SHUT_RD)
    assert b"" == session.recv(10)
    session.sendall(b"goodbye")
    assert b"goodbye" == client.recv(10)


def test_the_standard_librarys_shutdown_goes_on_in_plain_text(authority: Authority) -> None:
    """The fault (cpython gh-124618)."""
    files = authority.pair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certfile, files.keyfile)
    accepted, raw = tcp()
    shaking = Beside(lambda: context.wrap_socket(accepted, server_side=True))
    with authority.client().wrap_socket(raw, server_hostname="localhost") as client, shaking.result() as session:
        session.shutdown(socket.SHUT_RD)
        session.sendall(b"in plain text")
        seen = b""
        with beneath(client) as raw:
            while not seen.endswith(b"in plain text"):
                seen += raw.recv(4096)


def test_close_now_closes_though_files_are_open_and_openssl_lets_go(pair: Pair) -> None:
    """It would read from whatever connection gets the number next."""
    session, client = pair
    ours, theirs = socket.socketpair()
    reader, number = session.makefile("rb"), session.fileno()
    session.close_now()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    with ours, theirs:
        os.dup2(ours.fileno(), number)
        theirs.sendall(b"somebody else's")
        with pytest.raises(OSError, match="Bad file descriptor"):
            reader.readline()
        assert b"somebody else's" == ours.recv(100)
        os.close(number)
    reader.close()
