"""The accept loop, the hooks and the stop that all modes share, on servers in this process."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from processes import DEADLINE, connect, eventually, exchange, read_all

from stdserve import (
    LineHandler,
    Options,
    ServerMixin,
    SingleServer,
    StartError,
    ThreadServer,
    create_server,
)
from stdserve.listeners import open_listeners


class Upper(LineHandler):
    """Replies with what came, in capitals."""

    def line_received(self, line: str) -> str:
        return line.upper()


LOCAL = ("127.0.0.1", 0)


@contextlib.contextmanager
def running(server: ServerMixin, **serve: Any) -> Iterator[ServerMixin]:
    """Run the accept loop in a thread for the length of the block; it must come to its end."""
    thread = threading.Thread(target=server.serve_forever, kwargs=serve)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join(DEADLINE)
        server.server_close()
    assert not thread.is_alive()


both = pytest.mark.parametrize("server_class", [SingleServer, ThreadServer])


@both
def test_the_standard_librarys_constructor_binds_and_serves(server_class: type[ServerMixin]) -> None:
    """Positional arguments, attributes, context manager: as in socketserver."""
    with server_class(LOCAL, Upper) as server:
        assert isinstance(server, socketserver.TCPServer)
        assert server.RequestHandlerClass is Upper
        assert server.server_address[1] == server.socket.getsockname()[1] != 0
        assert [server.socket] == server.listeners
        with running(server):
            assert b"ONE\n" == exchange(server.server_address, b"one")


@both
def test_binding_can_be_left_for_later(server_class: type[ServerMixin]) -> None:
    """bind_and_activate=False, then the two steps by hand."""
    server = server_class(LOCAL, Upper, False)
    server.server_bind()
    server.server_activate()
    with running(server):
        assert b"ONE\n" == exchange(server.server_address, b"one")


def test_an_address_in_use_leaves_nothing_open() -> None:
    """The constructor raises what bind raises."""
    before = len(os.listdir("/proc/self/fd"))
    with socket.create_server(LOCAL) as taken, pytest.raises(OSError, match="in use"):
        ThreadServer(taken.getsockname(), Upper)
    assert before == len(os.listdir("/proc/self/fd"))


def test_it_adopts_listeners_and_serves_all_of_them() -> None:
    """Open first, then serve; the number of descriptors is that of the listeners and the loop."""
    listeners = open_listeners(Options(bind=("127.0.0.1:0", "127.0.0.2:0")).addresses)
    with running(create_server(Upper, "single", listeners=listeners)) as server:
        assert listeners == server.listeners
        for listener in listeners:
            assert b"ONE\n" == exchange(listener.getsockname(), b"one")
    assert [-1, -1] == [listener.fileno() for listener in listeners]


@both
def test_a_refused_client_is_closed_and_the_next_one_served(server_class: type[ServerMixin]) -> None:
    """verify_request says no."""

    class Picky(server_class):  # type: ignore[misc, valid-type]
        refused = 0

        def verify_request(self, request: Any, client_address: Any) -> bool:
            if not self.refused:
                self.refused += 1
                return False
            return True

    with running(Picky(LOCAL, Upper)) as server:
        assert b"" == exchange(server.server_address, b"", half_close=False)
        assert b"TWO\n" == exchange(server.server_address, b"two")


@both
@pytest.mark.parametrize(
    "hook", ["verify_request", "process_request", "finish_request", "shutdown_request", "handle_error"]
)
def test_no_hook_that_raises_ends_the_loop(
    server_class: type[ServerMixin], hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client is let go, the error is logged, the next one is served (cf. the standard library's loop)."""

    class Fails(LineHandler):
        def line_received(self, line: str) -> str:
            if line == "fail":
                raise ValueError(line)
            return line

    def fail_once(self: Any, *arguments: Any) -> Any:
        delattr(broken, hook)
        raise LookupError("the hook failed")

    broken = type("Broken", (server_class,), {hook: fail_once})
    with running(broken(LOCAL, Fails)) as server:
        with contextlib.suppress(ConnectionError):
            exchange(server.server_address, b"fail")
        assert b"fine\n" == exchange(server.server_address, b"fine")
        eventually(lambda: not server.sessions)
    assert "LookupError" in caplog.text


@both
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_nothing_that_a_handler_raises_ends_the_server(
    server_class: type[ServerMixin], error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """sys.exit() in a handler ends its session."""

    class Leaves(LineHandler):
        def line_received(self, line: str) -> str:
            if line == "leave":
                raise error
            return line

    with running(server_class(LOCAL, Leaves)) as server:
        assert b"" == exchange(server.server_address, b"leave")
        assert b"stay\n" == exchange(server.server_address, b"stay")
        eventually(lambda: "Traceback" in caplog.text)  # which may come after the client has read the end
    assert 1 == caplog.text.count("Traceback")


@both
def test_a_client_gone_in_the_users_own_write_is_no_error(
    server_class: type[ServerMixin], caplog: pytest.LogCaptureFixture
) -> None:
    """A plain StreamRequestHandler that writes to a client that left: no traceback."""
    caplog.set_level("DEBUG", "stdserve")
    done = threading.Event()

    class Writes(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            try:
                while True:
                    self.wfile.write(b"x" * 100_000)
            finally:
                done.set()

    with running(server_class(LOCAL, Writes)) as server:
        connect(server.server_address).close()
        assert done.wait(DEADLINE)
        eventually(lambda: not server.sessions)
    assert "reason=reset" in caplog.text
    assert [] == [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_at_most_max_conns_sessions_run_and_the_rest_wait_in_the_backlog() -> None:
    """They are served when a place is free, and none is refused."""
    server = create_server(Upper, max_conns=2, bind="127.0.0.1:0")
    with running(server):
        clients = [connect(server.server_address) for _ in range(5)]
        for client in clients:
            client.sendall(b"one\n")
        eventually(lambda: server.active == 2)
        answered = [client for client in clients if readable(client, 0.2)]
        assert clients[:2] == answered
        for client in clients:
            assert b"ONE\n" == client.recv(100)
            client.close()
        eventually(lambda: server.active == 0)


def readable(client: socket.socket, seconds: float) -> bool:
    """Whether something comes within so many seconds."""
    import select

    return bool(select.select([client], [], [], seconds)[0])


@both
def test_handle_request_serves_one_client(server_class: type[ServerMixin]) -> None:
    """The standard library's way to serve without a loop."""
    with server_class(LOCAL, Upper) as server:
        with connect(server.server_address) as client:
            client.sendall(b"one\nexit\n")
            server.handle_request()
            assert b"ONE\n" == read_all(client)
        eventually(lambda: not server.sessions)


@both
def test_handle_request_calls_handle_timeout_when_nobody_comes(server_class: type[ServerMixin]) -> None:
    """After self.timeout seconds."""
    called: list[int] = []

    class Waits(server_class):  # type: ignore[misc, valid-type]
        timeout = 0.05

        def handle_timeout(self) -> None:
            called.append(1)

    with Waits(LOCAL, Upper) as server:
        server.handle_request()
    assert [1] == called
    Waits.timeout = None  # type: ignore[assignment]
    with Waits(LOCAL, Upper) as server:
        server.socket.settimeout(0.05)  # as with the standard library's
        server.handle_request()
    assert [1, 1] == called
    with Waits(LOCAL, Upper, bind_and_activate=False) as server:
        server.server_bind()
        server.socket.settimeout(0.05)
        server.server_activate()
        server.handle_request()
    assert [1, 1, 1] == called


def test_service_actions_are_called_at_the_poll_interval_where_overridden() -> None:
    """Else an idle server sleeps."""
    called = threading.Event()

    class Acts(ThreadServer):
        calls = 0

        def service_actions(self) -> None:
            self.calls += 1
            if self.calls == 5:
                called.set()

    with running(Acts(LOCAL, Upper), poll_interval=0.01):
        assert called.wait(DEADLINE)


@both
def test_shutdown_may_be_called_twice_before_and_after_serving(server_class: type[ServerMixin]) -> None:
    """In any order, and never hangs; a stopped server can serve again."""
    server = server_class(LOCAL, Upper)
    server.shutdown()
    server.serve_forever()  # returns: the stop was asked for before
    server.shutdown()
    for _ in range(2):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert b"ONE\n" == exchange(server.server_address, b"one")
        server.shutdown()
        server.shutdown()
        thread.join(DEADLINE)
        assert not thread.is_alive()
    server.server_close()
    server.shutdown()


@both
def test_shutdown_from_inside_a_handler_returns(server_class: type[ServerMixin]) -> None:
    """And the client of that handler gets its reply."""

    class Stops(LineHandler):
        def line_received(self, line: str) -> str:
            self.server.shutdown()
            return "stopping"

    server = server_class(LOCAL, Stops)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    assert b"stopping\n" == exchange(server.server_address, b"stop\n", half_close=False)
    thread.join(DEADLINE)
    assert not thread.is_alive()
    server.server_close()


class Stuck(LineHandler):
    """A session that takes no notice of anything."""

    release = threading.Event()
    entered = threading.Event()

    def line_received(self, line: str) -> None:
        self.entered.set()
        self.release.wait(DEADLINE)


@both
def test_a_session_that_does_not_end_is_cut_at_the_deadline(
    server_class: type[ServerMixin], caplog: pytest.LogCaptureFixture
) -> None:
    """The stop returns all the same, and says how many were cut."""
    caplog.set_level("INFO", "stdserve")
    Stuck.release.clear()
    Stuck.entered.clear()
    server = server_class(LOCAL, Stuck, options=Options(graceful_timeout=0.1))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with connect(server.server_address) as client:
        client.sendall(b"one\n")
        assert Stuck.entered.wait(DEADLINE)
        server.shutdown()
        assert b"" == read_all(client)
    Stuck.release.set()
    thread.join(DEADLINE)
    server.server_close()
    assert not thread.is_alive()
    if server_class is ThreadServer:
        assert "stopped finished=0 cut=1" in caplog.text


@both
def test_idle_timeout_is_given_to_unmodified_handlers(server_class: type[ServerMixin]) -> None:
    """Their own timeout attribute wins."""
    seen: list[float | None] = []

    class Looks(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            seen.append(self.connection.gettimeout())

    own = type("Own", (Looks,), {"timeout": 7})
    for handler in (Looks, own):
        with running(server_class(LOCAL, handler, options=Options(idle_timeout=5))) as server:
            exchange(server.server_address, b"")
    assert [5, 7] == seen


def test_a_broken_client_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    """accept() reports an error of the connection, not of the listener."""
    caplog.set_level("DEBUG", "stdserve")
    errors = [ConnectionAbortedError(103, "Software caused connection abort")]

    class Meets(SingleServer):
        def get_request(self) -> tuple[socket.socket, Any]:
            if errors:
                raise errors.pop()
            return super().get_request()

    with running(Meets(LOCAL, Upper)) as server:
        assert b"ONE\n" == exchange(server.server_address, b"one")
    assert "reject reason=broken" in caplog.text
    assert "error accept" not in caplog.text


def test_an_accept_that_fails_rests_and_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """One line when it begins, one when it ends; the client has waited in the backlog."""
    errors: list[Exception] = [LookupError("odd"), OSError(24, "Too many open files"), OSError(24, "again")]

    class Meets(SingleServer):
        def get_request(self) -> tuple[socket.socket, Any]:
            if errors:
                raise errors.pop()
            return super().get_request()

    with running(Meets(LOCAL, Upper)) as server:
        started = time.monotonic()
        assert b"ONE\n" == exchange(server.server_address, b"one")
        assert time.monotonic() - started >= 0.3
        eventually(lambda: "accept works again" in caplog.text)
    warnings = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert 2 == len(warnings), warnings
    assert warnings[0].startswith("error accept: [Errno 24]")
    assert "accept works again" == warnings[1]


def test_with_no_descriptor_left_it_waits_and_then_serves() -> None:
    """RLIMIT_NOFILE for real: clients that connected meanwhile are served when descriptors come back."""
    code = (
        "import resource, sys, logging\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))\n"
        "import stdserve\n"
        "logging.basicConfig(level='INFO')\n"
        "stdserve.serve(stdserve.EchoHandler, port=0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=-1, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "listening on 127.0.0.1:" in line)
        address = ("127.0.0.1", int(line.split("127.0.0.1:")[1].split()[0]))
        clients = [connect(address) for _ in range(40)]
        assert next(line for line in process.stderr if "error accept" in line)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for client in clients:
            client.sendall(b"ping\n")
            assert b"ping\n" == client.recv(100)
            client.close()
        assert next(line for line in process.stderr if "accept works again" in line)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=DEADLINE)
        assert 0 == process.returncode
        assert "Traceback" not in err
        assert before is not None


def test_an_output_that_fails_ends_serve_forever(tmp_path: Any) -> None:
    """With the error, for the caller to act on."""
    from stdserve import OutputError, PrintHandler
    from stdserve.sink import open_sink

    for mode in ("single", "thread", "event"):
        sink = open_sink("/dev/full")
        server = create_server(PrintHandler, mode, sink=sink, bind="127.0.0.1:0")
        with contextlib.suppress(ConnectionError), connect(server.server_address) as client:
            client.sendall(b"one\n")
            with pytest.raises(OutputError, match="No space left"):
                server.serve_forever()
        server.server_close()
        sink.close()


def test_closed_standard_output_is_told_when_it_is_needed() -> None:
    """A server made without a sink finds out at the first print, though its number belongs to another file by then."""
    code = (
        "import sys, stdserve\n"
        "server = stdserve.SingleServer(('127.0.0.1', 0), stdserve.PrintHandler)\n"
        "try:\n"
        "    server.sink\n"
        "except stdserve.StartError as error:\n"
        "    server.server_close()\n"
        "    sys.exit(str(error))\n"
    )
    command = ["sh", "-c", 'exec "$0" "$@" >&-', sys.executable, "-c", code]
    result = subprocess.run(command, stderr=-1, text=True, timeout=DEADLINE)
    assert "cannot write to standard output: Bad file descriptor\n" == result.stderr


def test_ctrl_c_ends_a_plain_serve_forever_in_the_main_thread() -> None:
    """Also while mode single is inside a session; where Python's own SIGINT handler is in place."""
    code = (
        "import signal, stdserve, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where a shell started us with &
        "class Says(stdserve.LineHandler):\n"
        "    def connection_made(self):\n"
        "        print('made', file=sys.stderr, flush=True)\n"
        "with stdserve.SingleServer(('127.0.0.1', 0), Says) as server:\n"
        "    print(server.server_address[1], file=sys.stderr, flush=True)\n"
        "    try:\n"
        "        server.serve_forever()\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(7)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=-1, text=True) as process:
        assert process.stderr is not None
        with connect(("127.0.0.1", int(process.stderr.readline()))):
            assert "made\n" == process.stderr.readline()

            def ended() -> bool:
                # Again, as a user would: what comes between Python's look for signals and its wait is slept through,
                # with serve_forever as with any other code (the runner has a wake-up descriptor against that).
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(DEADLINE / 20)
                return process.returncode is not None

            eventually(ended)
            assert 7 == process.returncode


def test_no_listeners_is_a_start_error() -> None:
    """Nothing of what was asked for exists here."""
    with pytest.raises(StartError):
        create_server(Upper, bind="192.0.2.1:0")


def test_a_silent_client_of_an_unmodified_handler_is_closed_for_idle_timeout(caplog: pytest.LogCaptureFixture) -> None:
    """The reason stands in the log line; there is no traceback."""
    caplog.set_level("DEBUG", "stdserve")

    class Reads(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()

    with running(ThreadServer(LOCAL, Reads, options=Options(idle_timeout=0.1))) as server:
        assert b"" == exchange(server.server_address, b"", half_close=False)
        eventually(lambda: not server.sessions)
    assert "reason=idle_timeout" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_rest_that_is_over_costs_no_cpu_when_there_is_no_room() -> None:
    """The server is full when the listeners may be tried again: it sleeps until a session ends."""
    errors: list[Exception] = []

    class Meets(ThreadServer):
        def get_request(self) -> tuple[socket.socket, Any]:
            if errors:
                raise errors.pop()
            return super().get_request()

    with running(create_server_of(Meets, max_conns=1)) as server:
        errors.append(OSError(24, "Too many open files"))
        with connect(server.server_address) as client:
            client.sendall(b"one\n")
            assert b"ONE\n" == client.recv(100)
            server._loop._fail(OSError())  # as if that had happened while this client was taken
            before = time.process_time()
            assert not readable(client, 0.5)
            assert time.process_time() - before < 0.2


def create_server_of(server_class: type[ServerMixin], **settings: Any) -> ServerMixin:
    """A server of a class that no mode names."""
    return server_class(LOCAL, Upper, options=Options(**settings))


@both
def test_a_shutdown_request_that_never_calls_ours_keeps_no_session(server_class: type[ServerMixin]) -> None:
    """As in servers that were written for the standard library."""

    class Own(server_class):  # type: ignore[misc, valid-type]
        def shutdown_request(self, request: Any) -> None:
            request.close()

    with running(Own(LOCAL, Upper)) as server:
        assert b"ONE\n" == exchange(server.server_address, b"one")
        eventually(lambda: not server.sessions)


def test_ctrl_c_in_a_hook_gets_out_of_the_loop(request: pytest.FixtureRequest) -> None:
    """In the main thread, with Python's own SIGINT handler; a handler's own exception does not."""
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)

    class Interrupted(SingleServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            raise KeyboardInterrupt

    class Fails(LineHandler):
        def line_received(self, line: str) -> None:
            raise ValueError(line)

    with Interrupted(LOCAL, Fails) as server, connect(server.server_address) as client:
        client.sendall(b"one\n")
        with pytest.raises(KeyboardInterrupt):
            server.handle_request()
        assert {} == server.sessions


@both
def test_a_session_that_lasts_too_long_is_cut(
    server_class: type[ServerMixin], caplog: pytest.LogCaptureFixture
) -> None:
    """However busy it is: the total counts, and the reason stands in the log line."""
    caplog.set_level("INFO", "stdserve")
    server = server_class(LOCAL, Upper, options=Options(session_timeout=0.3))
    with running(server), connect(server.server_address) as client:
        with contextlib.suppress(ConnectionError):
            while True:
                client.sendall(b"one\n")
                if not client.recv(100):
                    break
        eventually(lambda: not server.sessions)
        assert b"IN TIME\n" == exchange(server.server_address, b"in time")
    assert 1 == caplog.text.count("reason=session_timeout")


def test_a_childs_session_that_lasts_too_long_is_cut() -> None:
    """By an alarm in the child."""
    from processes import ServerProcess

    with ServerProcess("--mode", "fork", "--session-timeout", "300ms") as server:
        assert b"" == exchange(server.address, b"one\n", half_close=False)
        server.wait_for_log("close .* reason=session_timeout lines=1 ")


@both
@pytest.mark.parametrize("inside", [False, True])
def test_closing_a_server_that_serves_stops_it_first(server_class: type[ServerMixin], inside: bool) -> None:
    """From another thread, which waits, and from a handler, which gets its reply out."""

    class Closes(LineHandler):
        def line_received(self, line: str) -> str:
            if inside:
                self.server.server_close()
            return line

    server = server_class(LOCAL, Closes)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    assert b"one\n" == exchange(server.server_address, b"one")
    if not inside:
        server.server_close()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert -1 == server.socket.fileno()
    server.server_close()


@both
def test_a_connection_that_was_never_admitted_can_be_served(
    server_class: type[ServerMixin], caplog: pytest.LogCaptureFixture
) -> None:
    """By whoever calls run_session with it; what its handler raises is logged, and it is closed."""

    class Picky(Upper):
        def line_received(self, line: str) -> str:
            return {"good": "GOOD"}[line]

    with server_class(LOCAL, Picky) as server:
        for line, answer in ((b"good\n", b"GOOD\n"), (b"bad\n", b"")):
            ours, theirs = socket.socketpair()
            with theirs:
                theirs.sendall(line)
                theirs.shutdown(socket.SHUT_WR)
                server.run_session(ours, ("192.0.2.1", 1))
                assert answer == theirs.recv(100)
    assert 1 == len([record for record in caplog.records if record.exc_info])
