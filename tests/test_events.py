"""Mode event: what only one thread for all sessions does, or could do wrong; what all modes do is in test_modes."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from processes import (
    DEADLINE,
    ServerProcess,
    connect,
    eventually,
    exchange,
    read_all,
    reset,
)
from transports import offered

from stdserve import (
    EchoHandler,
    EndReason,
    EventServer,
    LineHandler,
    PrintHandler,
    ThreadServer,
    create_server,
    serving,
)
from stdserve.driver import STEPS_PER_TURN
from stdserve.errors import ConfigError, OutputError
from stdserve.events import FEW_ALARMS, EventLoop
from stdserve.protocol import EXIT_PAUSE, Lines
from stdserve.replies import MOST_UNSENT, Outbox
from stdserve.sink import MOST_HELD, open_sink
from stdserve.steps import READS, WRITES
from stdserve.streams import SessionSocket
from stdserve.waiting import Waiter

LOCAL = ("127.0.0.1", 0)
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")


class OwnHandle(LineHandler):
    """It waits in its own way."""

    def handle(self) -> None:
        self.connection.recv(1)


@pytest.mark.parametrize(
    "handler",
    [SimpleHTTPRequestHandler, OwnHandle, partial(SimpleHTTPRequestHandler, directory="/")],
    ids=["of others", "with its own handle", "partial"],
)
def test_a_handler_that_waits_by_itself_is_refused(handler: Any) -> None:
    """With the modes that serve it."""
    name = getattr(handler, "func", handler).__name__
    told = f"--mode event serves .* LineHandler, which {name} does not: take --mode thread, fork or single"
    with pytest.raises(ConfigError, match=told):
        create_server(handler, "event", bind="127.0.0.1:0")
    with pytest.raises(ConfigError, match=told):
        EventServer(LOCAL, handler)


@pytest.mark.parametrize("words", [[], ["--workers", "2"]], ids=" ".join)
def test_the_command_line_refuses_it_before_it_listens(words: list[str]) -> None:
    """One line, wrong usage."""
    command = [sys.executable, "-m", "stdserve", "0", "--mode", "event", *words]
    result = subprocess.run(
        [*command, "--handler", "http.server:SimpleHTTPRequestHandler"], capture_output=True, timeout=DEADLINE
    )
    assert (2, b"") == (result.returncode, result.stdout)
    assert 1 == len(result.stderr.splitlines())
    assert b"which SimpleHTTPRequestHandler does not: take --mode thread" in result.stderr


def test_what_makes_handlers_may_make_line_handlers() -> None:
    """Called as the class would be; what it makes instead is not served."""

    def make(request: Any, client_address: Any, server: Any) -> LineHandler:
        return EchoHandler(request, client_address, server)

    class Nobody(socketserver.BaseRequestHandler):
        """Has nothing to say."""

    with serving(make, "event") as server:
        assert b"one\n" == exchange(server.address, b"one\n")
    with serving(lambda *arguments: Nobody(*arguments), "event") as server:
        assert b"" == exchange(server.address, b"one\n")


class Room(LineHandler):
    """Everybody reads what anybody says."""

    all: set[Any] = set()

    def connection_made(self) -> None:
        self.all.add(self)

    def line_received(self, line: str) -> None:
        for one in list(self.all):
            one.reply(line)

    def connection_lost(self, reason: EndReason) -> None:
        self.all.discard(self)


def test_what_one_session_replies_to_others_goes_out_at_once() -> None:
    """They are silent; and so it does from other threads."""
    with serving(Room, "event") as server:
        clients = [server.client() for _ in range(5)]
        eventually(lambda: len(Room.all) == 5)
        clients[0].send("hello")
        assert ["hello"] * 5 == [client.receive_line() for client in clients]
        told = threading.Thread(target=lambda: [one.reply("from afar") for one in 2 * list(Room.all)])
        told.start()
        told.join(DEADLINE)
        assert ["from afar"] * 10 == [client.receive_line() for client in 2 * clients]


def test_a_reply_to_a_session_that_is_over_is_dropped() -> None:
    """Others may not know yet."""
    Room.all.clear()
    with serving(Room, "event") as server, server.client() as client:
        eventually(lambda: Room.all)
        (gone,) = Room.all
        client.ask("hello")
        client.finish()
        eventually(lambda: gone.wfile.closed)
        gone.reply("too late")
        assert 0 == gone.wfile.unsent


def test_whoever_does_not_read_keeps_no_more_than_a_bound() -> None:
    """What others tell it is dropped, and that is why its session ends; the others read on."""
    line = "x" * 60_000
    with serving(Room, "event") as server:
        deaf, other = server.client(), server.client()
        eventually(lambda: len(Room.all) == 2)
        rooms = list(Room.all)
        for _ in range(200):
            other.send(line)
            assert line == other.receive_line()
        room = max(rooms, key=lambda one: one.wfile.unsent)
        assert 0 < room.wfile.unsent <= MOST_UNSENT + len(line) + 1
        eventually(lambda: len(Room.all) == 1)
        assert EndReason.IDLE_TIMEOUT is room.session.reason
        assert line == deaf.receive_line()


def test_what_others_have_told_a_slow_reader_comes_when_it_reads() -> None:
    """All of it, though it says nothing itself."""
    line = "x" * 60_000
    with serving(Room, "event") as server:
        slow, other = server.client(), server.client()
        eventually(lambda: len(Room.all) == 2)
        count = 0
        while not any(one.wfile.unsent for one in Room.all):
            other.send(line)
            assert line == other.receive_line()
            count += 1
        assert [line] * count == [slow.receive_line() for _ in range(count)]
        slow.send("and goes on")
        assert "and goes on" == slow.receive_line()


class Gathers(EchoHandler):
    """Its replies go out when it reads on, and not before."""

    wbufsize = 1 << 20


class GathersOnly(Gathers):
    """The same without a print that replies would have to come after."""

    def lines_received(self, lines: Any) -> None:
        self.wfile.write(lines.data)


@pytest.mark.parametrize("handler", [EchoHandler, Gathers, GathersOnly])
@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_a_slow_reader_is_paused_and_disturbs_nobody(
    transport: str, authority: Authority, handler: type[LineHandler]
) -> None:
    """What it sends beyond the buffers stays with it, until it reads; nothing is lost."""
    block = b"".join(b"%063d\n" % number for number in range(4096))
    with offered(handler, "event", transport, authority) as offer, offer.connect() as slow:
        slow.settimeout(1.0)
        sent = 0
        with pytest.raises((TimeoutError, ssl.SSLWantWriteError)):
            while sent < 100 << 20:
                sent += slow.send(block[sent % len(block) :])
        assert sent < 50 << 20
        with offer.connect() as other:
            other.sendall(b"one\n")
            assert b"one\n" == other.recv(100)
        slow.settimeout(DEADLINE)
        received = bytearray()
        while len(received) < sent // 64 * 64:
            received += slow.recv(65536)
        assert received == (block * (sent // len(block) + 1))[: len(received)]


def test_who_takes_no_replies_is_given_up(tmp_path: Path) -> None:
    """After the idle timeout, in the middle of a reply."""

    class Much(LineHandler):
        timeout = 0.3
        ended: list[EndReason] = []

        def line_received(self, line: str) -> str:
            return "x" * 10_000_000

        def connection_lost(self, reason: EndReason) -> None:
            self.ended.append(reason)

    with serving(Much, "event") as server:
        server.client().send("much")
        eventually(lambda: [EndReason.IDLE_TIMEOUT] == Much.ended)


@pytest.mark.parametrize("handler", [Gathers, GathersOnly])
def test_who_takes_no_gathered_replies_is_given_up(handler: type[LineHandler]) -> None:
    """After the idle timeout: they wait to go out before it is read on."""
    ended = list[EndReason]()

    class Hurries(handler):  # type: ignore[misc, valid-type]
        timeout = 0.3

        def connection_lost(self, reason: EndReason) -> None:
            ended.append(reason)

    with serving(Hurries, "event", output=os.devnull) as server, connect(server.address) as client:
        client.settimeout(0.1)
        with pytest.raises((TimeoutError, ConnectionError)):
            while True:
                client.send(b"x" * 63 + b"\n" + b"y" * 63 + b"\n")
        eventually(lambda: [EndReason.IDLE_TIMEOUT] == ended)


def test_a_session_that_sends_on_and_on_lets_others_have_their_turn() -> None:
    """From its first byte on; it is not known to the selector before it had to wait."""
    over = threading.Event()
    with serving(PrintHandler, "event", output=os.devnull) as server:

        def flood(client: socket.socket) -> None:
            while not over.is_set():
                client.sendall(b"x" * 63 + b"\n")

        with connect(server.address) as client:
            flooding = threading.Thread(target=flood, args=(client,))
            flooding.start()
            for _ in range(20):
                exchange(server.address, b"one\n")
            over.set()
            flooding.join(DEADLINE)


class Fails(LineHandler):
    """Replies, and then has a fault."""

    def line_received(self, line: str) -> None:
        self.reply("before")
        raise LookupError(line)


def test_what_was_replied_before_a_fault_still_goes_out(caplog: pytest.LogCaptureFixture) -> None:
    """As in every mode; other sessions go on."""
    with serving(Fails, "event", failures="ignore") as server:
        other = server.client()
        assert b"before\n" == exchange(server.address, b"one\n", half_close=False)
        other.send("two")
        assert "before" == other.receive_line()
    assert 2 == caplog.text.count("LookupError: ")


class Kicks(Room):
    """Ends other sessions: in order, or with a last word and a closed socket."""

    def line_received(self, line: str) -> None:
        for one in self.all - {self}:
            if line == "close":
                one.close()
            else:
                one.reply("x" * 60_000)
                one.request.close()


def test_one_session_may_close_another() -> None:
    """At once, though that one's client says nothing; its reason is CLOSED, as in every mode."""
    for mode in ("thread", "event"):
        with serving(Kicks, mode) as server:
            victim, other = server.client(), server.client()
            eventually(lambda: len(Room.all) == 2)
            rooms = set(Room.all)
            other.send("close")
            assert [] == list(victim.lines())
            eventually(lambda: len(Room.all) == 1)
            (room,) = rooms - Room.all
            assert EndReason.CLOSED is room.session.reason
            room.request.close()  # once more is harmless


def test_a_client_that_does_not_read_may_be_told_and_kicked() -> None:
    """The socket is closed when its last word is still to be sent; everybody else goes on."""
    with serving(Kicks, "event") as server:
        for _ in range(3):
            _, other = server.client(), server.client()
            eventually(lambda: len(Room.all) == 2)
            (deaf,) = (one for one in Room.all if one.session.number == min(one.session.number for one in Room.all))
            while not getattr(deaf.__dict__.get("wfile"), "unsent", 0):
                deaf.reply("x" * 60_000)
            other.send("kick")
            eventually(lambda: len(Room.all) == 1)
            other.send("kick")
            other.finish()
            eventually(lambda: not Room.all)


def test_what_is_replied_before_a_fault_goes_out_whole() -> None:
    """However slowly it is read."""

    class Much(LineHandler):
        def line_received(self, line: str) -> None:
            self.wfile.write(b"x" * 20_000_000)
            raise LookupError(line)

    for mode in ("thread", "event"):
        with serving(Much, mode, failures="ignore") as server:
            assert 20_000_000 == len(exchange(server.address, b"one\n", half_close=False))


def test_replies_to_who_has_left_are_dropped() -> None:
    """Found while the hook still replies, or afterwards."""
    came, left, ended = threading.Event(), threading.Event(), list[EndReason]()

    class Late(LineHandler):
        def line_received(self, line: str) -> None:
            came.set()
            left.wait(DEADLINE)
            for _ in range(int(line)):
                self.reply("x" * 10_000)

        def connection_lost(self, reason: EndReason) -> None:
            ended.append(reason)

    with serving(Late, "event") as server:
        for count in (b"1\n", b"1000\n"):
            client = connect(server.address)
            client.sendall(count)
            assert came.wait(DEADLINE)
            reset(client)
            left.set()
            eventually(lambda: ended)
            assert EndReason.RESET is ended.pop()
            came.clear()
            left.clear()


def test_a_handler_may_keep_its_connection() -> None:
    """In a thread of its own, where it waits as ever."""
    kept: list[Any] = []

    class Keeps(LineHandler):
        def line_received(self, line: str) -> None:
            self.reply("kept")
            server: Any = self.server
            kept.append(server.detach_request(self.request))
            self.close()

    class Silent(Keeps):
        def reply(self, line: str | bytes) -> None:
            """Say it when the connection is kept."""

    class Leaves(Keeps):
        def close(self) -> None:
            """Forget to say that the session is over."""

    for handler in (Keeps, Silent, Leaves):
        with serving(handler, "event") as server, connect(server.address) as client:
            client.sendall(b"one\n")
            if handler is not Silent:
                assert b"kept\n" == client.recv(5)
            eventually(lambda: kept)
            client.sendall(b"two\n")
            with kept.pop() as connection:
                assert connection.gettimeout() is None
                assert b"two\n" == connection.recv(100)
                connection.sendall(b"bye")
            assert b"bye" == read_all(client)


class Closes(Room):
    """Closes sockets, which it should not."""

    others: frozenset[Any] = frozenset()

    def line_received(self, line: str) -> None:
        if line == "mine":
            self.request.close()
        else:
            for one in self.others - {self}:
                one.request.close()
            if line == "others, and wait":
                # Whoever comes now gets the number of one that was closed.
                threading.Event().wait(0.05)


def test_a_socket_that_a_hook_closes_ends_its_session_and_no_other() -> None:
    """Its own, and those of others; in the same turn others come with their numbers."""
    Room.all.clear()
    with serving(Closes, "event") as server:
        client = server.client()
        client.send("mine")
        assert b"" == client.finish()
        eventually(lambda: not Room.all)
        for word in ("others", "others, and wait"):
            clients = [server.client() for _ in range(5)]
            eventually(lambda: len(Room.all) == 5)
            Closes.others = frozenset(Room.all)  # whoever comes late may come before they are closed
            with socket.socket() as late:
                clients[0].send(word)
                late.connect(server.address)
                eventually(lambda: len(Room.all) == 2)
                assert [b""] * 4 == [one.finish() for one in clients[1:]]
                late.sendall(b"mine\n")
                late.settimeout(DEADLINE)
                assert b"" == late.recv(100)
            assert b"" == clients[0].finish()
            eventually(lambda: not Room.all)


def test_only_a_session_of_the_server_can_be_detached() -> None:
    """As in every mode."""
    not_ours = pytest.raises(ValueError, match="only the request of a session")
    with EventServer(LOCAL, EchoHandler) as server, socket.socket() as other, not_ours:
        server.detach_request(other)


def test_a_connection_with_unsent_replies_is_not_given_away() -> None:
    """Whoever keeps it would have to wait for its peer, and the loop with it."""
    refused: list[type[BaseException]] = []

    class Hasty(LineHandler):
        def line_received(self, line: str) -> None:
            self.wfile.write(b"x" * 20_000_000)
            server: Any = self.server
            try:
                server.detach_request(self.request)
            except OSError as error:
                refused.append(type(error))
            self.close()

    with serving(Hasty, "event") as server, connect(server.address) as client:
        client.sendall(b"one\n")
        eventually(lambda: refused)
        assert 20_000_000 == len(read_all(client))
    assert [BlockingIOError] == refused


def test_a_hook_that_closes_connections_may_be_overridden() -> None:
    """The peer reads the last words, though it has sent more than was read."""
    seen: list[Any] = []

    class Watched(EventServer):
        def shutdown_request(self, request: Any) -> None:
            seen.append(request)
            super().shutdown_request(request)

    class LastWords(LineHandler):
        def line_received(self, line: str) -> None:
            self.reply("last words")
            self.close()

    class Served(Watched):
        RequestHandlerClass = LastWords

    class Waits(ThreadServer):
        RequestHandlerClass = LastWords

        def shutdown_request(self, request: Any) -> None:
            super().shutdown_request(request)

    with serving(Waits) as server:
        assert b"" == exchange(server.address, b"")
        assert b"last words\n" == exchange(server.address, b"one\n" + b"x" * 5_000_000, half_close=False)
    with serving(Served) as server:
        for _ in range(5):
            assert b"last words\n" == exchange(server.address, b"one\n" + b"x" * 5_000_000, half_close=False)
        assert b"" == exchange(server.address, b"")
    assert 6 == len(seen)


def test_a_copy_of_a_socket_that_a_hook_has_made_keeps_nobody_awake() -> None:
    """The selector lets go of a connection before it is closed."""
    copies: list[socket.socket] = []

    class Copies(LineHandler):
        def line_received(self, line: str) -> None:
            copies.append(self.request.dup())

    with serving(Copies, "event") as server:
        client = server.client()
        client.send("one")
        eventually(lambda: copies)
        client.send("exit")
        ours: Any = server.server
        eventually(lambda: not ours.active)
        turns: list[float] = []
        ours.service_actions = lambda: turns.append(1)
        client = server.client()
        client.send("exit")
        client.finish()
        threading.Event().wait(0.2)
        assert len(turns) < 10
        (copy,) = copies
        assert 0 == copy.gettimeout()
        copy.close()


def test_a_stop_ends_handle_request_in_the_middle_of_a_session() -> None:
    """As soon as its hook returns; the session goes with the server."""

    class Stops(LineHandler):
        def connection_made(self) -> None:
            server: Any = self.server
            server.request_stop()

    with EventServer(LOCAL, Stops) as server, connect(server.server_address) as client:
        server.handle_request()
        server.server_close()
        assert b"" == read_all(client)


def test_handle_request_serves_one_client_to_its_end() -> None:
    """And takes no other one meanwhile."""
    with EventServer(LOCAL, EchoHandler) as server, connect(server.server_address) as first:
        first.sendall(b"one\n")
        serving_one = threading.Thread(target=server.handle_request)
        serving_one.start()
        assert b"one\n" == first.recv(100)
        with connect(server.server_address) as second:
            first.sendall(b"two\n\n")
            assert b"two\n" == read_all(first)
            serving_one.join(DEADLINE)
            second.sendall(b"three\n\n")
            server.handle_request()
            assert b"three\n" == read_all(second)


def test_a_socket_of_anothers_is_no_reason_to_wait(caplog: pytest.LogCaptureFixture) -> None:
    """A server whose get_request returns what cannot be driven logs that, and goes on."""

    class Plain(EventServer):
        def get_request(self) -> Any:
            return self.socket.accept()

    with Plain(LOCAL, EchoHandler) as server, connect(server.server_address) as client:
        server.handle_request()
        assert b"" == read_all(client)
    assert "be_driven" in caplog.text


class Interrupts(LineHandler):
    """Presses Ctrl-C."""

    def line_received(self, line: str) -> None:
        raise KeyboardInterrupt


def test_an_interrupt_in_a_hook_gets_out() -> None:
    """Its own session is closed, the others are ended in order."""
    server = EventServer(LOCAL, Interrupts)
    with server, connect(server.server_address) as idle, connect(server.server_address) as client:
        client.sendall(b"now\n")
        with pytest.raises(KeyboardInterrupt):
            server.serve_forever()
        assert (b"", b"") == (read_all(idle), read_all(client))
    assert {} == server.sessions


@linux
def test_silent_sessions_cost_no_time() -> None:
    """A thousand of them, with an idle timeout that is far away: not one system call in a second."""
    with ServerProcess("--mode", "event", "--idle-timeout", "1h") as server:
        clients = [connect(server.address) for _ in range(1000)]
        clients[-1].sendall(b"all are here\n")
        server.wait_for_output(b"all are here\n")

        def spent() -> int:
            before = cpu_of(server.pid)
            threading.Event().wait(1.0)
            return cpu_of(server.pid) - before

        eventually(lambda: spent() <= 1)  # what came before may not be over yet
        for client in clients:
            client.close()


def cpu_of(pid: int) -> int:
    """The CPU time of a process in ticks of 10 ms (proc(5))."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])


# The loop itself.


class Pairs:
    """A loop whose sessions are steps of ours, over socket pairs."""

    def __init__(self) -> None:
        self.loop = EventLoop(Waiter())
        self.open: list[socket.socket] = []
        self.told: list[Any] = []

    def __enter__(self) -> Pairs:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for sock in self.open:
            sock.close()
        self.loop.waiter.close()

    def begin(self, seconds: float | None, steps: Any) -> socket.socket:
        """Begin a session, return the peer's end."""
        ours, theirs = socket.socketpair()
        request = SessionSocket.adopt(ours)
        request.settimeout(seconds)
        self.open += [request, theirs]
        self.loop.begin(request, steps(request))
        return theirs

    def turn(self, seconds: float = 0.0) -> None:
        self.loop.waiter.turn(self.loop.until_due(seconds))
        self.loop.settle()

    def reads(self, request: SessionSocket) -> Any:
        """Steps: read until the end, and tell what was read."""
        while True:
            try:
                self.told.append((yield request, READS, request.recv, 100))
            except TimeoutError as error:
                self.told.append(type(error))
                return
            if not self.told[-1]:
                return


def test_a_timeout_is_for_one_step_and_rings_once() -> None:
    """A word now and then keeps the session; the first alarm finds that it is too early."""
    with Pairs() as pairs:
        peer = pairs.begin(0.2, pairs.reads)
        for _ in range(4):
            threading.Event().wait(0.1)
            peer.sendall(b"x")
            pairs.turn()
        assert [b"x"] * 4 == pairs.told
        started = time.monotonic()
        while TimeoutError not in pairs.told:
            pairs.turn(DEADLINE)
        assert 0.1 <= time.monotonic() - started < DEADLINE / 2
        assert 7.0 == pairs.loop.until_due(7.0)
        assert pairs.loop.until_due(None) is None


def test_an_alarm_is_let_ring_when_nothing_is_to_be_waited_for_so_long() -> None:
    """It was set for the step before."""
    with Pairs() as pairs:

        def steps(request: SessionSocket) -> Any:
            pairs.told.append((yield request, READS, request.recv, 1))
            request.settimeout(None)
            pairs.told.append((yield request, READS, request.recv, 1))

        peer = pairs.begin(0.1, steps)
        peer.sendall(b"1")
        pairs.turn()
        while pairs.loop.until_due(None) is not None:
            pairs.turn(DEADLINE)
        peer.sendall(b"2")
        pairs.turn()
        assert [b"1", b"2"] == pairs.told


def test_a_shorter_timeout_takes_the_place_of_a_longer_one() -> None:
    """And none at all the place of any."""
    with Pairs() as pairs:

        def steps(request: SessionSocket) -> Any:
            yield request, READS, request.recv, 1
            request.settimeout(None)
            yield request, READS, request.recv, 1
            request.settimeout(0.05)
            with pytest.raises(TimeoutError):
                yield request, READS, request.recv, 1
            pairs.told.append("given up")
            request.settimeout(None)
            yield request, READS, request.recv, 1
            pairs.told.append("not given up")

        peer = pairs.begin(0.3, steps)
        peer.sendall(b"0")
        pairs.turn()
        peer.sendall(b"1")
        while not pairs.told:
            pairs.turn(DEADLINE)
        threading.Event().wait(0.3)
        pairs.turn()
        assert ["given up"] == pairs.told
        peer.sendall(b"2")
        pairs.turn()
        assert ["given up", "not given up"] == pairs.told


def test_alarms_of_sessions_that_have_ended_are_let_go() -> None:
    """However long they would have waited."""
    with Pairs() as pairs:
        for _ in range(FEW_ALARMS + 10):
            pairs.begin(3600.0, pairs.reads).close()
            pairs.turn()
            pairs.open.pop().close()
            pairs.open.pop().close()
        assert len(pairs.loop._alarms) < 20


def test_what_cannot_be_waited_for_is_an_error_of_the_step(tmp_path: Path) -> None:
    """As where the system watches no more descriptors for this user."""
    with Pairs() as pairs, (tmp_path / "file").open("w") as file:

        def never(_: None) -> None:
            raise BlockingIOError

        def steps(request: SessionSocket) -> Any:
            with pytest.raises(PermissionError):
                yield file, WRITES, never, None
            yield file, WRITES, pairs.told.append, "gone on"

        pairs.begin(None, steps)
        assert ["gone on"] == pairs.told


def test_a_session_that_has_ended_is_woken_for_nothing() -> None:
    """It was queued before."""
    with Pairs() as pairs:

        def steps(request: SessionSocket) -> Any:
            for number in range(20):
                yield request, WRITES, pairs.told.append, number

        pairs.begin(None, steps)
        pairs.open[0].driver.go()  # type: ignore[attr-defined]
        assert 20 == len(pairs.told)
        pairs.turn()
        assert pairs.loop.until_due(None) is None


def test_replies_to_who_has_just_gone_are_no_concern_of_the_loop() -> None:
    """The session finds it out, and ends."""
    with Pairs() as pairs:
        peer = pairs.begin(None, pairs.reads)
        request: Any = pairs.open[0]
        Outbox(request, 8192, request.driver).write(b"hello")
        peer.close()
        pairs.loop.settle()
        pairs.turn()
        assert [b""] == pairs.told


def test_a_session_that_is_broken_off_between_two_steps_ends_at_once() -> None:
    """As by a Ctrl-C while its socket is given to the selector; not when somebody drops the traceback."""
    with Pairs() as pairs:

        class Interrupting:
            holds_bytes = False
            driver = None

            def fileno(self) -> int:
                raise KeyboardInterrupt

        def never(_: None) -> None:
            raise BlockingIOError

        def steps(request: SessionSocket) -> Any:
            try:
                yield Interrupting(), WRITES, never, None
            finally:
                pairs.told.append("ended")

        with pytest.raises(KeyboardInterrupt) as interrupt:
            pairs.begin(None, steps)
        assert (["ended"], True) == (pairs.told, interrupt.tb is not None)


def test_replies_to_a_session_that_flows_go_out_in_the_next_turn() -> None:
    """When it is known what it waits for."""
    with Pairs() as pairs:

        def steps(request: SessionSocket) -> Any:
            for number in range(STEPS_PER_TURN + 1):
                yield request, WRITES, pairs.told.append, number
            yield request, READS, request.recv, 1

        peer = pairs.begin(None, steps)
        request: Any = pairs.open[0]
        Outbox(request, 8192, request.driver).write(b"hello")
        pairs.turn()
        pairs.turn()
        assert b"hello" == peer.recv(100)


def test_a_session_that_flows_has_one_place_in_the_queue_and_no_deadline() -> None:
    """Its socket, once waited for, is ready in every turn; what it waited for then is over."""
    with Pairs() as pairs:
        block = b"x" * 100_000

        def steps(request: SessionSocket) -> Any:
            with pytest.raises(BlockingIOError):
                while True:
                    request.send(block)
            yield request, WRITES, request.send, b"x"
            while True:
                yield request, WRITES, pairs.told.append, 1

        peer = pairs.begin(0.2, steps)
        while not pairs.told:
            peer.recv(1_000_000)
            pairs.turn()
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            before = len(pairs.told)
            pairs.turn()
            assert len(pairs.told) - before <= 2 * STEPS_PER_TURN
            assert len(pairs.loop._stirred) <= 1


def test_steps_that_never_wait_let_others_have_their_turn() -> None:
    """One that is stirred twice, and one that has ended, are woken for nothing."""
    with Pairs() as pairs:

        def steps(request: SessionSocket) -> Any:
            for number in range(40):
                yield request, WRITES, pairs.told.append, number

        pairs.begin(None, steps)
        assert len(pairs.told) < 20
        assert 0.0 == pairs.loop.until_due(None)
        pairs.turn()
        pairs.turn()
        assert list(range(40)) == pairs.told


def test_what_a_turn_prints_is_put_out_in_one_write_before_anybody_replies(tmp_path: Path) -> None:
    """Whoever says something in the midst of it, or is told something by others, included."""
    sink = open_sink(str(tmp_path / "out"))
    with Pairs() as pairs, pairs.loop.gathering(sink):

        def steps(request: SessionSocket) -> Any:
            while data := (yield request, READS, request.recv, 100):
                sink.write(Lines(data), "peer")
                pairs.told.append(len(sink.held))
                yield request, WRITES, lambda _: pairs.told.append((tmp_path / "out").read_bytes()), None

        peers = [pairs.begin(None, steps) for _ in range(3)]
        for name, peer in zip((b"one\n", b"two\n", b"three\n"), peers, strict=True):
            peer.sendall(name)
        pairs.turn()
        assert [1, 2, 3] == pairs.told[:3]
        assert [(tmp_path / "out").read_bytes()] * 3 == pairs.told[3:]
        assert sorted(pairs.told[3].split()) == [b"one", b"three", b"two"]
        assert pairs.loop.until_due(None) is None
    sink.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_nobody_replies_to_what_could_not_be_printed() -> None:
    """They hear why; so does whoever takes the turns."""
    sink = open_sink("/dev/full")
    with Pairs() as pairs:

        def steps(request: SessionSocket) -> Any:
            sink.write(Lines((yield request, READS, request.recv, 100)), "peer")
            with pytest.raises(OutputError) as failure:
                yield request, WRITES, request.send, b"reply"
            pairs.told.append(str(failure.value))

        with pairs.loop.gathering(sink):
            peers = [pairs.begin(None, steps) for _ in range(2)]
            for peer in peers:
                peer.sendall(b"one\n")
            with pytest.raises(OutputError, match="No space left"):
                pairs.turn()
        assert ["cannot write to /dev/full: No space left on device"] * 2 == pairs.told
        for peer in peers:
            peer.setblocking(False)
            with pytest.raises(BlockingIOError):
                peer.recv(100)
    sink.close()


def test_a_session_that_broke_off_between_prints_and_replies_delays_no_other(tmp_path: Path) -> None:
    """As by a Ctrl-C; those whose turn it was have theirs when the loop goes on."""
    sink = open_sink(str(tmp_path / "out"))
    with Pairs() as pairs, pairs.loop.gathering(sink):

        def interrupt(_: None) -> None:
            raise KeyboardInterrupt

        def steps(request: SessionSocket, call: Any) -> Any:
            sink.write(Lines((yield request, READS, request.recv, 100)), "peer")
            yield request, WRITES, call, None

        calls = [interrupt, pairs.told.append]
        peers = [pairs.begin(None, lambda request, call=call: steps(request, call)) for call in calls]
        for peer in peers:
            peer.sendall(b"one\n")
        with pytest.raises(KeyboardInterrupt):
            pairs.turn()
        assert 0 == pairs.loop.until_due(None)
        pairs.turn()
        assert [None] == pairs.told
    sink.close()


class Hasty(EchoHandler):
    """Tells its peer at once that a line is printed; and its own session's end."""

    def lines_received(self, lines: Any) -> None:
        self.sink.write(lines, self.peer)
        self.wfile.write(b"printed\n")
        self.wfile.flush()

    def connection_lost(self, reason: EndReason) -> None:
        self.sink.write(Lines(b"over\n"), self.peer)


def test_a_reply_that_goes_out_at_once_comes_after_what_was_printed(tmp_path: Path) -> None:
    """And so does the end of the session."""
    output = tmp_path / "out"
    with serving(Hasty, "event", output=str(output)) as server, server.client() as client:
        client.send("one")
        assert "printed" == client.receive_line()
        assert b"one\n" == output.read_bytes()
        assert b"" == client.finish()
        assert b"one\nover\n" == output.read_bytes()


@linux
@pytest.mark.parametrize("handler", ["PrintHandler", "EchoHandler"])
def test_whoever_reads_the_end_of_a_session_finds_its_lines_printed(handler: str) -> None:
    """Sixteen at a time: those who reply, and those who do not."""

    def talk(number: int) -> bool:
        line = b"%d says so\n" % number
        exchange(server.address, line)
        return line in server.output.splitlines(keepends=True)

    with ServerProcess("--mode", "event", "--handler", f"stdserve:{handler}") as server, ThreadPoolExecutor(16) as pool:
        assert all(pool.map(talk, range(320)))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("handler", [EchoHandler, Hasty])
def test_no_client_is_told_that_a_line_is_printed_which_is_not(handler: type[LineHandler]) -> None:
    """On a full disk: neither by the reply that was to come, nor by one that was to go out at once."""
    with pytest.raises(OutputError, match="No space left"), serving(handler, "event", output="/dev/full") as server:
        assert b"" == exchange(server.address, b"one\n")
        eventually(lambda: server.server is not None and server.server.failure)


@linux
def test_an_output_that_nobody_reads_keeps_nobody_who_asks_twice() -> None:
    """The write that waits is broken off, and named in the log meanwhile."""
    line = b"x" * 60_000 + b"\n"  # one is held, and fits into a pipe (pipe(7)); two do not
    with (
        ServerProcess("--mode", "event", stdout=subprocess.PIPE) as server,
        connect(server.address) as client,
    ):
        client.sendall(line)
        waiting = bytearray(4)
        eventually(
            lambda: (
                fcntl.ioctl(server.pipe, termios.FIONREAD, waiting) == 0
                and int.from_bytes(waiting, sys.byteorder) == len(line)
            )
        )
        client.sendall(line)
        server.wait_for_log("stall.*: the output keeps all sessions waiting: .*_write_all")
        for signum in (signal.SIGTERM, signal.SIGINT):  # two of a kind would be one, if the first were not seen yet
            server.process.send_signal(signum)
        assert 0 == server.wait()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_what_is_printed_last_is_put_out_and_fails_as_any_other() -> None:
    """After the last turn, by ``service_actions`` say; who is told to stop at once does not wait for it."""
    sink = open_sink("/dev/full")
    with create_server(EchoHandler, "event", bind="127.0.0.1:0", sink=sink) as server:
        with server._serving():
            sink.write(Lines(b"one\n"), "peer")
        assert isinstance(server.failure, OutputError)
    sink.close()


def test_a_second_signal_while_the_last_words_are_printed_ends_that(tmp_path: Path) -> None:
    """They are lost, as was asked for."""
    sink = open_sink(str(tmp_path / "out"))

    def interrupt() -> None:
        raise KeyboardInterrupt

    with create_server(EchoHandler, "event", bind="127.0.0.1:0", sink=sink) as server:
        with server._serving():
            sink.write(Lines(b"one\n"), "peer")
            server._events._put_out = interrupt  # type: ignore[attr-defined]
        assert server.failure is None
    sink.close()


def test_a_session_that_goes_on_and_on_lets_others_reply(tmp_path: Path) -> None:
    """It prints again as soon as it has replied; the others have their turn before it has it again."""
    sink = open_sink(str(tmp_path / "out"))
    with Pairs() as pairs, pairs.loop.gathering(sink):

        def steps(request: SessionSocket, count: int) -> Any:
            for _ in range(count):
                sink.write(Lines(b"one\n"), "peer")
                yield request, WRITES, pairs.told.append, count

        for count in (100, 1, 2):
            pairs.begin(None, partial(steps, count=count))
        for _ in range(6):
            pairs.turn()
        assert {100, 1, 2} == set(pairs.told)
        assert 2 == pairs.told.count(2)
    sink.close()


def test_a_reply_that_is_not_taken_has_no_more_time_because_others_print(tmp_path: Path) -> None:
    """Its step is put off in each turn; what it had to be done by stays."""
    sink = open_sink(str(tmp_path / "out"))
    with Pairs() as pairs, pairs.loop.gathering(sink):

        def never(_: None) -> None:
            raise BlockingIOError

        def waits(request: SessionSocket) -> Any:
            with pytest.raises(TimeoutError):
                yield request, WRITES, never, None
            pairs.told.append("given up")

        pairs.begin(0.3, waits)
        started = time.monotonic()
        while not pairs.told:
            assert time.monotonic() - started < DEADLINE
            sink.write(Lines(b"one\n"), "peer")
            pairs.turn(0.01)
    sink.close()


def test_what_others_have_told_comes_after_what_they_have_printed_and_in_its_order(tmp_path: Path) -> None:
    """Everybody reads the same conversation, and each line of it is printed by then."""
    output = tmp_path / "out"

    class PrintedRoom(Room):
        def lines_received(self, lines: Any) -> None:
            self.server.sink.write(lines, self.peer)  # type: ignore[attr-defined]
            super().lines_received(lines)

    Room.all.clear()
    with serving(PrintedRoom, "event", output=str(output)) as server:
        clients = [server.client() for _ in range(2)]
        eventually(lambda: len(Room.all) == 2)
        for number in range(50):
            for name, client in enumerate(clients):
                client.send(f"{number} {name}")
            heard = [[client.receive_line() for _ in clients] for client in clients]
            assert heard[0] == heard[1]
            assert set(heard[0]) <= set(output.read_text().splitlines())
        for client in clients:
            assert b"" == client.finish()


def test_what_has_not_gone_to_whoever_does_not_read_waits_for_what_is_printed(tmp_path: Path) -> None:
    """Once it reads again, which the selector tells in the same turn in which others print."""
    sink = open_sink(str(tmp_path / "out"))
    with Pairs() as pairs, pairs.loop.gathering(sink):
        peer = pairs.begin(None, pairs.reads)
        request: Any = pairs.open[0]
        outbox = Outbox(request, 8192, request.driver)
        block = b"x" * 1_000_000
        outbox.write(block)
        pairs.turn()
        assert 0 < outbox.unsent < len(block)
        received = 0
        peer.settimeout(DEADLINE)
        while received < len(block):
            sink.write(Lines(b"one\n"), "peer")
            received += len(peer.recv(1_000_000))
            pairs.turn()
        assert (0, len(block)) == (outbox.unsent, received)
        assert [] == pairs.told
    sink.close()


def test_a_print_that_is_broken_off_takes_its_replies_along(tmp_path: Path) -> None:
    """A second signal, say: nobody is told that the lines are printed; the sessions go on to their end."""
    sink = open_sink(str(tmp_path / "out"))
    with Pairs() as pairs, pairs.loop.gathering(sink):

        def steps(request: SessionSocket, replies: bool) -> Any:
            yield request, READS, request.recv, 100
            outbox = Outbox(request, 8192, request.driver)  # type: ignore[arg-type]
            request.driver.outbox = outbox if replies else None  # type: ignore[union-attr]
            sink.write(Lines(b"one\n"), "peer")
            if replies:
                outbox.write(b"printed\n")
            yield request, WRITES, lambda _: outbox.put_out(), None
            pairs.told.append(replies)

        peers = [pairs.begin(None, partial(steps, replies=replies)) for replies in (True, False)]
        for peer in peers:
            peer.sendall(b"one\n")

        def interrupt() -> None:
            raise KeyboardInterrupt

        put_out, pairs.loop._put_out = pairs.loop._put_out, interrupt
        with pytest.raises(KeyboardInterrupt):
            pairs.turn()
        pairs.loop._put_out = put_out
        pairs.turn()
        assert [True, False] == pairs.told
        peers[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            peers[0].recv(100)
    sink.close()


class Teller:
    """A sink of somebody's own, with no more than a sink must have."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def write(self, event: Any, peer: object) -> None:
        self.told += event


def test_a_sink_of_the_users_own_needs_no_more_than_to_write() -> None:
    """In the place of ours, in the modes in which sessions share memory."""
    for mode in ("thread", "event", "single"):
        sink: Any = Teller()
        with create_server(EchoHandler, mode, bind="127.0.0.1:0", sink=sink) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            assert b"one\n" == exchange(server.server_address, b"one\n")
            server.shutdown()
            thread.join(DEADLINE)
        assert ["one"] == sink.told


class Breaks(EchoHandler):
    """Its connection fails in an unheard-of way, whenever it is to carry this word."""

    def setup(self) -> None:
        super().setup()
        send: Callable[[bytes], int] = self.connection.send

        def fail(data: bytes) -> int:
            if b"break" in bytes(data):
                raise MemoryError("no room")
            return send(data)

        self.connection.send = fail


class BreaksOnly(Breaks):
    """The same without a print."""

    def lines_received(self, lines: Any) -> None:
        self.wfile.write(lines.data)


@pytest.mark.parametrize("handler", [Breaks, BreaksOnly])
def test_a_reply_that_fails_in_an_unheard_of_way_ends_its_session_alone(handler: type[LineHandler]) -> None:
    """And not the loop that puts it out."""
    with serving(handler, "event", output=os.devnull, failures="ignore") as server, server.client() as other:
        assert "one" == other.ask("one")
        with connect(server.address) as client:
            client.sendall(b"break\n")
            assert b"" == read_all(client)
        assert "two" == other.ask("two")


def test_what_others_tell_may_fail_in_an_unheard_of_way() -> None:
    """Whoever tells it goes on; so does who was told, until it has something to say itself."""

    class Tells(Breaks):
        all: list[LineHandler] = []

        def connection_made(self) -> None:
            self.all.append(self)

        def lines_received(self, lines: Any) -> None:
            self.all[0].reply(lines.data.rstrip())
            self.reply("told")

    with serving(Tells, "event", failures="ignore") as server, server.client() as first:
        eventually(lambda: Tells.all)
        with server.client() as other:
            assert "told" == other.ask("break")
            assert "told" == other.ask("one")
        first.send("two")
        assert b"" == first.finish()


def test_a_reply_that_a_signal_interrupts_is_not_sent_again(tmp_path: Path) -> None:
    """The signal is told of when the call returns: nobody knows whether it went, so its session ends."""
    sink = open_sink(str(tmp_path / "out"))
    with Pairs() as pairs, pairs.loop.gathering(sink):

        def steps(request: Any) -> Any:
            box = Outbox(request, 8192, request.driver)
            sink.write(Lines((yield request, READS, request.recv, 100)), "peer")
            box.write(b"reply")
            yield request, READS, request.recv, 100

        peer = pairs.begin(None, steps)
        request: Any = pairs.open[0]
        send = request.send

        def interrupt(data: bytes) -> None:
            send(data)
            raise KeyboardInterrupt

        request.send = interrupt
        peer.sendall(b"one\n")
        with pytest.raises(KeyboardInterrupt):
            pairs.turn()
        request.send = send
        pairs.turn()
        assert b"reply" == peer.recv(100)
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(100)
    sink.close()


def test_the_replies_of_a_session_have_one_place_whoever_asks_for_it() -> None:
    """Two threads may do so at once, and the loop is to put out what both of them say."""

    class Asks(LineHandler):
        def line_received(self, line: str) -> str:
            make = LineHandler.__dict__["wfile"]._make
            return str(make(self) is make(self) is self.wfile is self.connection.driver.outbox)

    with serving(Asks, "event") as server:
        assert "True" == server.client().ask("one?")


def test_what_is_said_after_the_end_disturbs_no_farewell() -> None:
    """A ``finish`` that writes, and is not followed by ours: the client still reads the end, not a reset."""

    class Late(LineHandler):
        def line_received(self, line: str) -> str:
            return line

        def finish(self) -> None:
            self.wfile.write(b"too late\n")

    with serving(Late, "event") as server, connect(server.address) as client:
        client.sendall(b"one\nexit\n")
        assert b"one\n" == read_all(client)
        for _ in range(200):
            client.sendall(b"more\n")


class Around:
    """A file around another one."""

    closed = False

    def __init__(self, file: Any) -> None:
        self.write, self.flush, self.close = file.write, file.flush, file.close


@pytest.mark.parametrize("mode", ["thread", "event"])
def test_a_file_that_a_handler_has_put_over_ours_loses_nothing(mode: str) -> None:
    """Be the client as slow as it likes."""

    class Wraps(LineHandler):
        def setup(self) -> None:
            super().setup()
            self.wfile = Around(self.wfile)  # type: ignore[assignment]

        def line_received(self, line: str) -> str:
            return "x" * 20_000_000

    with serving(Wraps, mode) as server, server.client() as client:
        assert 20_000_000 == len(client.ask("much"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_nobody_replies_to_what_was_lost_when_another_printed_too_much() -> None:
    """What is held for one is put out for the sake of another, who hears of the failure in the midst of its own."""
    sink = open_sink("/dev/full")
    with Pairs() as pairs:

        def steps(request: Any) -> Any:
            box = Outbox(request, 8192, request.driver)
            try:
                data = yield request, READS, request.recv, 100
                box.write(b"reply")
                sink.write(Lines(data if data == b"little\n" else data * MOST_HELD), "peer")
                yield request, READS, request.recv, 100
            except OutputError:
                pairs.told.append(request)
            yield request, WRITES, lambda _: box.put_out(), None

        with pairs.loop.gathering(sink):
            peers = [pairs.begin(None, steps) for _ in range(2)]
            for peer, text in zip(peers, (b"little\n", b"much\n"), strict=True):
                peer.sendall(text)
            with pytest.raises(OutputError, match="No space left"):
                pairs.turn()
            pairs.turn()
        assert 2 == len(pairs.told)
        for peer in peers:
            peer.setblocking(False)
            with pytest.raises(BlockingIOError):
                peer.recv(100)
    sink.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_session_that_prints_in_its_last_step_of_a_turn_says_so_only_if_that_works() -> None:
    """Its next turn would not know any more."""
    sink = open_sink("/dev/full")
    with Pairs() as pairs:

        def steps(request: Any) -> Any:
            yield request, READS, request.recv, 100
            for _ in range(STEPS_PER_TURN - 1):
                yield request, WRITES, lambda _: None, None
            sink.write(Lines(b"one\n"), "peer")
            with pytest.raises(OutputError) as failure:
                yield request, WRITES, request.send, b"reply"
            pairs.told.append(str(failure.value))

        with pairs.loop.gathering(sink):
            pairs.begin(None, steps).sendall(b"go\n")
            with pytest.raises(OutputError, match="No space left"):
                pairs.turn()
        assert ["cannot write to /dev/full: No space left on device"] == pairs.told
    sink.close()


def test_an_unfinished_exit_has_its_pause_when_the_replies_before_it_have_gone() -> None:
    """Until they have, the client has all the time there is."""
    ended = list[EndReason]()

    class Much(LineHandler):
        wbufsize = 1 << 30

        def line_received(self, line: str) -> str:
            return "x" * 20_000_000

        def connection_lost(self, reason: EndReason) -> None:
            ended.append(reason)

    with serving(Much, "event") as server, connect(server.address) as client:
        client.sendall(b"much\nexit")
        threading.Event().wait(2 * EXIT_PAUSE)
        assert 20_000_001 == len(read_all(client))
        eventually(lambda: [EndReason.EXIT] == ended)
