"""The generator of the bench: what it sends arrives, what does not come back is told."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from processes import DEADLINE, read_all, reset

from stdserve import EchoHandler, LineHandler, serving
from stdserve.bench_load import JOBS, Load, Task, line_of, main, perform, session_line

#: As short as a test can be, and still have more than one of everything.
SHORT = Task("bulk", 0, clients=3, length=32, seconds=0.05, warmup=0.02, replies="none", deadline=DEADLINE)


class Gatherer(LineHandler):
    """Keeps what it gets, in this process."""

    lines: list[bytes] = []

    def raw_line_received(self, line: bytes) -> None:
        """Keep it."""
        self.lines.append(line + b"\n")


@pytest.fixture
def gatherer() -> type[Gatherer]:
    """Give a handler whose ``lines`` are those of one test."""
    return type("Fresh", (Gatherer,), {"lines": []})


@contextmanager
def peer(behave: Callable[[socket.socket], object]) -> Iterator[int]:
    """Serve each connection by ``behave`` in a thread, then close it; give the port."""

    def serve(connection: socket.socket) -> None:
        with connection:
            behave(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(DEADLINE)
            threads.append(threading.Thread(target=serve, args=(connection,)))
            threads[-1].start()

    threads = [threading.Thread(target=accept)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads[0].start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(DEADLINE)


def ruin(connection: socket.socket) -> None:
    """Reset a connection, but not before its client knows that it has one."""
    connection.recv(1)
    reset(connection)


def nothing() -> None:
    """Be ready."""


def port_of(address: object) -> int:
    """The port of a server's address."""
    assert isinstance(address, tuple)
    return int(address[1])


def closed_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_line_has_the_length_asked_for_and_is_unique() -> None:
    """It ends with LF, and with nothing that ends a session before."""
    lines = {line_of(client, number, length) for client in range(3) for number in range(50) for length in (12, 64, 300)}
    assert 3 * 50 * 3 == len(lines)
    assert {12, 64, 300} == {len(line) for line in lines}
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 and line.strip() != b"exit" for line in lines)


def test_bulk_sends_the_lines_that_it_counts(gatherer: type[Gatherer]) -> None:
    """Warm-up and work, each client's from the first on; whole ones only."""
    with serving(gatherer) as server:
        load = perform(replace(SHORT, port=port_of(server.address)), nothing)
    assert [] == load.problems
    assert [3, 3] == [len(counts) for counts in load.sent]
    assert load.units == sum(load.sent[1]) > 0
    assert sum(map(sum, load.sent)) == len(gatherer.lines)
    assert {line_of(client, 0, 32) for client in range(3)} <= set(gatherer.lines)
    assert all(len(line) == 32 for line in gatherer.lines)


def test_bulk_counts_replies() -> None:
    """One to each line, read while it sends."""
    with serving(EchoHandler) as server:
        load = perform(replace(SHORT, port=port_of(server.address), replies="echo"), nothing)
    assert [] == load.problems
    with peer(read_all) as port:
        load = perform(replace(SHORT, port=port, replies="line", warmup=0.0), nothing)
    assert ["the replies are not as many as the lines"] == load.problems


def test_bulk_tells_of_sessions_that_the_server_ended() -> None:
    """By its end of file, and by a reset."""

    def end(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)
        read_all(connection)

    task = replace(SHORT, warmup=0.0, seconds=DEADLINE)
    with peer(end) as port:
        assert ["the server ended a session that was sending"] == perform(replace(task, port=port), nothing).problems
    with peer(ruin) as port:
        problems = perform(replace(task, port=port), nothing).problems
    assert problems
    assert all(problem.startswith("a session broke off: ") for problem in problems)


def test_what_does_not_end_is_told() -> None:
    """Nobody is waited for longer than the deadline."""
    done = threading.Event()
    with peer(lambda connection: (read_all(connection), done.wait(DEADLINE))) as port:
        load = perform(replace(SHORT, port=port, warmup=0.0, deadline=0.2), nothing)
        done.set()
    assert ["3 sessions did not end in 0.2 s"] == load.problems


def test_sessions_are_counted_from_the_warm_up_on(gatherer: type[Gatherer]) -> None:
    """Each says one line, that no other says."""
    with serving(gatherer) as server:
        load = perform(replace(SHORT, job="sessions", port=port_of(server.address)), nothing)
    assert [] == load.problems
    count = sum(counts[0] for counts in load.sent)
    assert [session_line(number) for number in range(count)] == sorted(
        gatherer.lines, key=lambda line: int(line.split()[1])
    )
    assert load.units == load.sent[1][0] > 0
    assert 0 < load.p50 <= load.p99 < DEADLINE


def test_sessions_check_their_reply() -> None:
    """One line, where there is one to each."""
    task = replace(SHORT, job="sessions", replies="echo")
    with serving(EchoHandler) as server:
        assert [] == perform(replace(task, port=port_of(server.address)), nothing).problems
    with peer(read_all) as port:
        assert ["a session did not get its reply"] == perform(replace(task, port=port), nothing).problems


def test_sessions_that_break_off_are_told() -> None:
    """Where nobody listens, and where the server resets them."""
    load = perform(replace(SHORT, job="sessions", port=closed_port(), warmup=0.0), nothing)
    assert 0 == load.units
    assert all(problem.startswith("a session broke off: ") for problem in load.problems) and load.problems

    with peer(ruin) as port:
        load = perform(replace(SHORT, job="sessions", port=port), nothing)
    assert any(problem.startswith("a session broke off: ") for problem in load.problems)


def test_sessions_wait_for_room_in_a_full_backlog() -> None:
    """A connection that is not there at once says its line when it is."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = []
        for _ in range(4):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(("127.0.0.1", port))
        said: list[bytes] = []

        def serve() -> None:
            listener.settimeout(DEADLINE)
            while len(said) < 1:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(DEADLINE)
                    said.extend(filter(None, [read_all(connection)]))

        server = threading.Thread(target=serve)
        task = replace(SHORT, job="sessions", port=port, clients=1, seconds=0.0, warmup=0.0)

        def leave() -> None:
            for sock in waiting:
                sock.close()
            server.start()

        starter = threading.Timer(0.1, leave)
        starter.start()
        load = perform(task, nothing)
        starter.join()
        server.join(DEADLINE)
    assert ([], 1, [session_line(0)]) == (load.problems, load.units, said)


def test_echo_measures_round_trips() -> None:
    """As many as there are latencies."""
    with serving(EchoHandler) as server:
        load = perform(replace(SHORT, job="echo", replies="echo", port=port_of(server.address)), nothing)
    assert [] == load.problems
    assert load.units == len(load.latencies) > 3
    assert 0 < load.p50 <= load.p99 < load.seconds + DEADLINE
    assert 0 < load.cpu < DEADLINE


def test_a_reply_may_come_in_pieces_but_not_be_another() -> None:
    """One line is enough where replies are only known to be lines."""

    def answer(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while connection.recv(4096):
            connection.sendall(b"not")
            pause.wait(0.005)
            connection.sendall(b" this\n")

    pause = threading.Event()
    task = replace(SHORT, job="echo")
    with peer(answer) as port:
        assert [] == perform(replace(task, port=port, replies="line"), nothing).problems
        problems = perform(replace(task, port=port, replies="echo"), nothing).problems
    assert ["a reply is not the line that was sent"] == problems


def test_a_session_that_ends_while_it_talks_is_told() -> None:
    """The other ones go on."""
    with peer(lambda connection: connection.recv(4096)) as port:
        load = perform(replace(SHORT, job="echo", replies="echo", port=port), nothing)
    assert ["a session broke off: the server ended a session that was talking"] == load.problems


def test_silent_connections_are_open_while_one_talks() -> None:
    """Half of them at the first ``ready()``, all at the second."""
    seen = []
    with serving(EchoHandler) as server:
        task = replace(SHORT, job="idle", clients=5, replies="echo", port=port_of(server.address))

        def ready() -> None:
            assert server.server is not None
            seen.append(len(server.server.sessions))

        load = perform(task, ready)
    assert [] == load.problems
    assert 2 <= seen[0] < seen[1] >= 5
    assert load.units > 0


def test_silent_connections_need_no_reply(gatherer: type[Gatherer]) -> None:
    """Then nobody talks."""
    with serving(gatherer) as server:
        load = perform(replace(SHORT, job="idle", port=port_of(server.address)), nothing)
    assert ([], 0, []) == (load.problems, load.units, gatherer.lines)


def test_silent_connections_that_the_server_ends_are_told() -> None:
    """When they are opened."""
    with peer(lambda connection: connection.recv(4096)) as port:
        load = perform(replace(SHORT, job="idle", replies="line", port=port, warmup=0.0), nothing)
    assert "the server ended a silent session" in load.problems


def test_the_program_tells_its_load_as_json() -> None:
    """When it is told to begin."""
    said, told = io.StringIO("go\n"), io.StringIO()
    with serving(EchoHandler) as server:
        task = {"job": "echo", "port": port_of(server.address), "clients": 1, "seconds": 0.02, "warmup": 0}
        main([json.dumps(task)], said, told)
    ready, text = told.getvalue().splitlines()
    load = Load(**json.loads(text))
    assert ("ready", "") == (ready, said.read())
    assert load.units > 0
    assert [] == load.problems


def test_the_program_tells_that_nobody_listens() -> None:
    """In the same way."""
    told = io.StringIO()
    main([json.dumps({"job": "bulk", "port": closed_port()})], io.StringIO(), told)
    assert ["the server could not be reached: Connection refused"] == json.loads(told.getvalue())["problems"]


def test_every_job_is_known() -> None:
    """Those that the help lists."""
    assert ["bulk", "sessions", "echo", "idle"] == list(JOBS)
