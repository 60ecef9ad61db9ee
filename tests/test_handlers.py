"""Handlers: what a subclass is called with, in which order, and what reaches the client."""

from __future__ import annotations

import os
import socket
import socketserver
import subprocess
import sys
import threading
from typing import Any

import pytest
from processes import DEADLINE, connect, eventually, exchange, read_all, reset

from stdserve import (
    ChunkHandler,
    EchoHandler,
    EndReason,
    LineHandler,
    Lines,
    Options,
    PrintHandler,
    serving,
)


class Upper(LineHandler):
    """The README's handler."""

    def line_received(self, line: str) -> str:
        return line.upper()


class Recorder(LineHandler):
    """Notes every call; each test makes a subclass with a list of its own."""

    calls: list[object]

    def connection_made(self) -> None:
        self.calls.append("made")

    def line_received(self, line: str) -> None:
        self.calls.append(line)

    def connection_lost(self, reason: EndReason) -> None:
        self.calls.append(reason)


def read_exactly(client: socket.socket, size: int) -> bytes:
    """What comes, until it is that many bytes."""
    data = b""
    while len(data) < size:
        data += client.recv(size - len(data))
    return data


def recorder() -> type[Recorder]:
    """A Recorder with an empty list."""
    return type("Fresh", (Recorder,), {"calls": []})


def test_a_reply_is_what_line_received_returns() -> None:
    """With a LF, in order, lines that came together answered together."""
    with serving(Upper) as server:
        assert b"ONE\nTWO\n\xd0\x96\n" == exchange(server.address, "one\r\ntwo\nж".encode())


def test_a_reply_may_be_bytes_or_nothing() -> None:
    """Bytes go as they are; None sends nothing."""

    class Mixed(LineHandler):
        def line_received(self, line: str) -> str | bytes | None:
            replies: dict[str, str | bytes] = {"bytes": b"\xff\xfe", "text": "ж"}
            return replies.get(line)

    with serving(Mixed) as server:
        assert b"\xff\xfe\n\xd0\xb6\n" == exchange(server.address, b"bytes\nnothing\ntext\n")


def test_a_reply_comes_before_the_next_line_is_awaited() -> None:
    """A client may wait for each answer."""
    with serving(Upper) as server, connect(server.address) as client:
        for word in (b"one", b"two"):
            client.sendall(word + b"\n")
            assert word.upper() + b"\n" == client.recv(100)


def test_a_greeting_comes_before_the_first_line_is_awaited() -> None:
    """What connection_made replies."""

    class Greets(LineHandler):
        def connection_made(self) -> None:
            self.reply("welcome")

    with serving(Greets) as server, connect(server.address) as client:
        assert b"welcome\n" == client.recv(100)


def test_lines_may_be_taken_as_bytes() -> None:
    """By a hook of their own; what is returned is a reply all the same."""

    class Raw(LineHandler):
        def raw_line_received(self, line: bytes) -> bytes:
            return line[::-1]

    with serving(Raw) as server:
        assert b"\xff\xfe\n" == exchange(server.address, b"\xfe\xff\n")


def test_text_has_the_encoding_of_the_class_both_ways() -> None:
    """And its way with what cannot be decoded or encoded."""

    class Western(LineHandler):
        encoding, errors = "latin-1", "replace"

        def line_received(self, line: str) -> str:
            return line.upper() + "ж"

    with serving(Western) as server:
        assert b"\xc9?\n" == exchange(server.address, b"\xe9\n")


@pytest.mark.parametrize("framing", ["line", "chunk"])
def test_a_handler_may_take_exit_and_blank_lines_for_lines(framing: str) -> None:
    """They are data in its protocol; its client finishes sending, or it closes itself."""
    handler = recorder()
    handler.obey_exit = False
    handler.framing = framing
    data = b"exit\n\n \nexit"
    with serving(handler, idle_timeout=DEADLINE) as server:
        assert b"" == exchange(server.address, data)
    lines = ["exit", "", " ", "exit"] if framing == "line" else [data.decode()]
    assert ["made", *lines, EndReason.EOF] == handler.calls


def test_close_ends_the_session_after_what_was_replied() -> None:
    """Whatever came after the line that was the last; also where there never was a line."""
    handler = recorder()

    class Closes(handler):  # type: ignore[valid-type, misc] # a class made for this test
        def line_received(self, line: str) -> None:
            super().line_received(line)
            if line == "quit":
                self.reply("bye")
                self.close()

    class Refuses(LineHandler):
        def connection_made(self) -> None:
            self.reply("not today")
            self.close()

    with serving(Closes) as server:
        assert b"bye\n" == exchange(server.address, b"one\nquit\ntwo\n", half_close=False)
    assert ["made", "one", "quit", EndReason.CLOSED] == handler.calls
    with serving(Refuses) as server:
        assert b"not today\n" == exchange(server.address, b"", half_close=False)


def test_close_in_lines_received_ends_the_session_before_the_event_after_it() -> None:
    """Be that a line or an end of another kind."""
    lost: list[EndReason] = []

    class Closes(LineHandler):
        def lines_received(self, lines: object) -> None:
            self.close()

        def connection_lost(self, reason: EndReason) -> None:
            lost.append(reason)

    with serving(Closes) as server:
        assert b"" == exchange(server.address, b"one\nexit\n", half_close=False)
    assert [EndReason.CLOSED] == lost


def test_what_comes_after_close_in_the_same_read_is_not_looked_at() -> None:
    """Though it was told apart already."""
    handler = recorder()
    handler.max_line = 3

    class Closes(handler):  # type: ignore[valid-type, misc] # a class made for this test
        def lines_received(self, lines: Lines) -> None:
            super().lines_received(lines)
            self.close()

    with serving(Closes) as server:
        assert b"" == exchange(server.address, b"one\ntoo long", half_close=False)
    assert ["made", "one", EndReason.CLOSED] == handler.calls


def test_nagles_algorithm_is_off_where_the_class_says_so() -> None:
    """As for any StreamRequestHandler, on any server."""
    seen: list[int] = []

    class Hasty(LineHandler):
        disable_nagle_algorithm = True

        def connection_made(self) -> None:
            seen.append(self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with socketserver.TCPServer(("127.0.0.1", 0), Hasty) as server, connect(server.server_address) as client:
        client.shutdown(socket.SHUT_WR)
        server.handle_request()
    assert [1] == [bool(value) for value in seen]


def test_another_session_may_reply_and_close() -> None:
    """At once, though the session waits for its own client; one that is over takes replies and sends none."""
    waiting: list[LineHandler] = []
    over = threading.Event()

    class Waits(LineHandler):
        def connection_made(self) -> None:
            waiting.append(self)

        def connection_lost(self, reason: EndReason) -> None:
            assert EndReason.CLOSED is reason
            over.set()

    with serving(Waits) as server, connect(server.address) as client:
        eventually(lambda: waiting)
        waiting[0].reply("news")
        assert b"news\n" == client.recv(100)
        waiting[0].close()
        assert b"" == client.recv(100)
        assert over.wait(DEADLINE)
        ours = server.server
        assert ours is not None
        eventually(lambda: not ours.active)
        waiting[0].reply("more news")


def test_replies_may_go_out_one_by_one() -> None:
    """wbufsize is the class's to say."""
    answered = threading.Event()

    class Slow(LineHandler):
        wbufsize = 0

        def line_received(self, line: str) -> None:
            self.reply(line)
            assert answered.wait(DEADLINE)

    with serving(Slow) as server, connect(server.address) as client:
        client.sendall(b"one\n")
        assert b"one\n" == read_exactly(client, 4)
        answered.set()


def test_the_files_of_a_stream_handler_are_there_when_they_are_asked_for() -> None:
    """rfile, before the first line is read; wfile; and nothing else that is not."""

    class Own(LineHandler):
        def connection_made(self) -> None:
            self.first = self.rfile.readline()
            with pytest.raises(AttributeError, match="'Own' object has no attribute 'file'"):
                self.file  # type: ignore[attr-defined] # noqa: B018

        def line_received(self, line: str) -> None:
            self.wfile.write(self.first + line.encode())

    with serving(Own) as server:
        assert b"one\ntwo" == exchange(server.address, b"one\ntwo\n")


def test_the_peer_tells_all_that_is_known_of_it() -> None:
    """As text in logs; its address as it is; TLS and the PROXY header where there are any."""
    seen: list[tuple[object, ...]] = []

    class Looks(LineHandler):
        def connection_made(self) -> None:
            peer = self.peer
            seen.append((str(peer), peer.address, peer.tls, peer.subject, peer.proxy))

    with serving(Looks) as server, connect(server.address) as client:
        name = client.getsockname()
        client.shutdown(socket.SHUT_WR)
        read_all(client)
    assert [("%s:%d" % name, name, None, None, None)] == seen


def test_replies_and_direct_writes_keep_their_order() -> None:
    """Both go the same way."""

    class Both(LineHandler):
        def line_received(self, line: str) -> str:
            self.wfile.write(b"direct ")
            self.reply("reply")
            return line

    with serving(Both) as server:
        assert b"direct reply\na\ndirect reply\nb\n" == exchange(server.address, b"a\nb\n")


def test_the_hooks_are_called_in_order_with_the_reason() -> None:
    """Made, each line, lost."""
    handler = recorder()
    with serving(handler) as server:
        exchange(server.address, b"one\ntwo \xff\x1b\nexit\nthree")
    assert ["made", "one", "two \\xff\x1b", EndReason.EXIT] == handler.calls


@pytest.mark.parametrize("workless", [True, False])
def test_a_hook_that_raises_ends_one_session_and_is_logged(caplog: pytest.LogCaptureFixture, workless: bool) -> None:
    """With its traceback, once; what was replied before arrives; others go on."""
    lost: list[EndReason] = []

    class Fails(Upper):
        def connection_made(self) -> None:
            if not workless:
                raise ValueError("no work")

        def line_received(self, line: str) -> str:
            if line == "bad":
                raise ValueError("no such word")
            return super().line_received(line)

        def connection_lost(self, reason: EndReason) -> None:
            lost.append(reason)

    with serving(Fails, failures="ignore") as server:
        assert (b"GOOD\n" if workless else b"") == exchange(server.address, b"good\nbad\nnever")
        assert (b"STILL HERE\n" if workless else b"") == exchange(server.address, b"still here")
    assert ([EndReason.ERROR, EndReason.EOF] if workless else []) == lost
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert (1 if workless else 2) == len(errors)
    assert errors[0].exc_info is not None
    assert "ValueError" in errors[0].getMessage()


def test_a_client_that_resets_is_reason_reset(caplog: pytest.LogCaptureFixture) -> None:
    """What it sent is still received; nobody complains."""
    handler = recorder()
    with serving(handler) as server:
        client = connect(server.address)
        client.sendall(b"one\n")
        eventually(lambda: "one" in handler.calls)
        reset(client)
        eventually(lambda: EndReason.RESET in handler.calls)
    assert ["made", "one", EndReason.RESET] == handler.calls
    assert [] == [record for record in caplog.records if record.levelname != "INFO"]


def test_lines_are_received_also_when_the_client_takes_no_replies() -> None:
    """It sent and left; its last line was sent all the same."""
    calls: list[str] = []

    class Answers(LineHandler):
        def line_received(self, line: str) -> str:
            calls.append(line)
            return "x" * 100_000

    with serving(Answers) as server:
        client = connect(server.address)
        client.sendall(b"".join(b"%d\n" % number for number in range(100)))
        eventually(lambda: calls)
        reset(client)
        ours = server.server
        assert ours is not None
        eventually(lambda: not ours.active)
    assert [str(number) for number in range(100)] == calls


def test_a_handler_may_put_its_own_file_in_the_place_of_ours() -> None:
    """Flushed as ours is; what does not go out any more is nobody's fault."""
    came, left = threading.Event(), threading.Event()

    class Own(LineHandler):
        def setup(self) -> None:
            super().setup()
            self.wfile = self.connection.makefile("wb")

        def line_received(self, line: str) -> str:
            if line == "late":
                came.set()
                left.wait(DEADLINE)
            return line

    with serving(Own) as server:
        client = server.client()
        assert "one" == client.ask("one")
        client.send("late")
        assert came.wait(DEADLINE)
        reset(client.sock)  # type: ignore[arg-type] # there is no TLS
        left.set()


def test_a_handler_that_is_made_by_another_runs_there_and_then() -> None:
    """One after the other on one connection, or instead of itself; what made it finds it done."""
    seen: list[str] = []

    class First(LineHandler):
        def line_received(self, line: str) -> None:
            self.reply(f"first {line}")
            self.close()

    class Second(LineHandler):
        def connection_made(self) -> None:
            self.reply("ready")

        def line_received(self, line: str) -> str:
            return f"second {line}"

    class Both(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            for kind in (First, Second):
                seen.append(str(kind(self.request, self.client_address, self.server).session.reason.value))

    class HandsOver(LineHandler):
        def line_received(self, line: str) -> None:
            Second(self.request, self.client_address, self.server)
            self.close()

    def make(*arguments: Any) -> Second:
        handler = Second(*arguments)
        seen.append(handler.session.reason.value)
        return handler

    for kind in (Both, HandsOver, make):
        with serving(kind) as server:
            client = server.client()
            if kind is Both:
                assert "first one" == client.ask("one")
            elif kind is HandsOver:
                client.send("one")
            assert "ready" == client.receive_line()
            assert "second two" == client.ask("two")
            client.send("")
            assert b"" == client.finish()
    assert ["closed", "empty_line", "empty_line"] == seen


def test_what_is_left_of_the_replies_when_a_hook_has_raised_may_have_nowhere_to_go(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client has gone; the log has the hook's own fault, and that alone."""
    came, left = threading.Event(), threading.Event()

    class Fails(LineHandler):
        def line_received(self, line: str) -> None:
            came.set()
            self.reply("dropped")
            left.wait(DEADLINE)
            raise LookupError(line)

    for mode in ("thread", "event"):
        with serving(Fails, mode, failures="ignore") as server:
            client = connect(server.address)
            client.sendall(b"one\n")
            assert came.wait(DEADLINE)
            reset(client)
            left.set()
        came.clear()
        left.clear()
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [LookupError] * 2 == [record.exc_info[0] for record in errors if record.exc_info]
    assert 2 == len(errors)


def test_a_client_that_never_reads_is_idle() -> None:
    """A reply that cannot be sent counts as silence; what was received before is not lost."""
    lost: list[EndReason] = []

    class Floods(LineHandler):
        timeout = 0.3

        def line_received(self, line: str) -> bytes:
            return b"x" * 10_000_000

        def connection_lost(self, reason: EndReason) -> None:
            lost.append(reason)

    with serving(Floods) as server, connect(server.address) as client:
        client.sendall(b"one\n")
        eventually(lambda: lost)
    assert [EndReason.IDLE_TIMEOUT] == lost


def test_a_handlers_own_timeout_wins_over_the_options() -> None:
    """Seconds of silence, as in StreamRequestHandler."""
    handler = recorder()
    handler.timeout = 0.1
    with serving(handler, idle_timeout=DEADLINE) as server:
        assert b"" == exchange(server.address, b"unfinished", half_close=False)
    assert ["made", "unfinished", EndReason.IDLE_TIMEOUT] == handler.calls


def test_an_unfinished_exit_that_goes_on_in_time_is_no_exit() -> None:
    """The pause has not passed; the timeout of before is back afterwards."""
    handler = recorder()
    with serving(handler, idle_timeout=DEADLINE) as server, connect(server.address) as client:
        client.sendall(b"x\nexit")
        eventually(lambda: "x" in handler.calls)
        client.sendall(b"us\n")
        eventually(lambda: "exitus" in handler.calls)
        client.sendall(b"exit\n")
        assert b"" == read_all(client)
    assert ["made", "x", "exitus", EndReason.EXIT] == handler.calls


def test_what_was_sent_at_once_is_one_message_in_chunk_framing() -> None:
    """Up to 64 KiB; over TCP, as far as the network brings it in one piece."""
    handler = recorder()
    handler.framing = "chunk"
    ours, theirs = socket.socketpair()
    with theirs, ours:
        theirs.sendall(b"x" * 60_000)
        theirs.shutdown(socket.SHUT_WR)
        handler(ours, "", socketserver.BaseServer(("", 0), handler))
    assert ["made", "x" * 60_000, EndReason.EOF] == handler.calls


def test_class_attributes_win_over_the_servers_options() -> None:
    """framing and max_line."""
    handler = recorder()
    handler.max_line = 3
    with serving(handler) as server:
        exchange(server.address, b"abcdef\n")
    assert ["made", "abc", EndReason.LINE_TOO_LONG] == handler.calls

    handler = recorder()
    handler.framing = "chunk"
    with serving(handler) as server:
        exchange(server.address, b"one\ntwo")
    assert ["made", "one\ntwo", EndReason.EOF] == handler.calls


def test_the_session_counts_and_names_its_peer() -> None:
    """Lines and bytes received; the address as text."""
    seen: list[tuple[str, int, int]] = []

    class Looks(LineHandler):
        def connection_lost(self, reason: EndReason) -> None:
            seen.append((str(self.peer), self.session.lines, self.session.received))

    with serving(Looks) as server, connect(server.address) as client:
        peer = "%s:%d" % client.getsockname()
        client.sendall(b"one\ntwo\nexit\n")
        read_all(client)
    assert [(peer, 2, 13)] == seen


def test_print_prints_and_echo_prints_and_replies(capfd: pytest.CaptureFixture[str]) -> None:
    """A reply of echo means that the line is printed."""
    with serving(PrintHandler) as server:
        assert b"" == exchange(server.address, b"one\n")
    with serving(EchoHandler) as server, connect(server.address) as client:
        client.sendall(b"two\r\n\x1b\n")
        reply = b""
        while len(reply) < 6:
            reply += client.recv(100)
        assert b"two\n\x1b\n" == reply
        assert "one\ntwo\n\\x1b\n" == capfd.readouterr().out


def test_echo_does_not_mistake_a_browser_for_one_that_wants_a_page(capfd: pytest.CaptureFixture[str]) -> None:
    """Its reply is what was sent."""
    with serving(EchoHandler) as server:
        assert b"GET / HTTP/1.1\n" == exchange(server.address, b"GET / HTTP/1.1\r\n\r\n")


def test_only_the_first_line_can_be_a_browsers(capfd: pytest.CaptureFixture[str]) -> None:
    """A client may well send a log of requests."""
    with serving(PrintHandler) as server, connect(server.address) as client:
        client.sendall(b"log:\n")
        eventually(lambda: "log:" in capfd.readouterr().out)
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"" == read_all(client)


def test_the_chunk_handler_is_the_lectures_server_whatever_the_options(capfd: pytest.CaptureFixture[str]) -> None:
    """framing is its own."""
    with serving(ChunkHandler, options=Options(framing="line", bind=("127.0.0.1:0",))) as server:
        assert b"" == exchange(server.address, b"process exited\n", half_close=False)
    assert "" == capfd.readouterr().out


@pytest.mark.parametrize("server_class", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
def test_our_handlers_run_on_the_standard_librarys_servers(
    server_class: type[socketserver.TCPServer], capfd: pytest.CaptureFixture[str]
) -> None:
    """With default settings, printing to standard output."""
    with server_class(("127.0.0.1", 0), EchoHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        assert b"one\ntwo\n" == exchange(server.server_address[:2], b"one\ntwo\nexit\n", half_close=False)
        server.shutdown()
        thread.join(DEADLINE)
    assert "one\ntwo\n" == capfd.readouterr().out


def test_our_handlers_run_on_the_standard_librarys_forking_server() -> None:
    """Nothing printed is lost, though the child leaves by os._exit."""
    code = (
        "import socketserver, stdserve, sys\n"
        "with socketserver.ForkingTCPServer(('127.0.0.1', 0), stdserve.PrintHandler) as server:\n"
        "    print(server.server_address[1], file=sys.stderr, flush=True)\n"
        "    server.handle_request()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True) as process:
        assert process.stderr is not None
        port = int(process.stderr.readline())
        exchange(("127.0.0.1", port), b"one\n")
        out, err = process.communicate(timeout=DEADLINE)
    assert ("one\n", "") == (out, err)


def test_one_clients_reset_while_another_is_served(capfd: pytest.CaptureFixture[str]) -> None:
    """100 clients that reset at any moment leave no trace but their lines."""
    with serving(EchoHandler) as server, connect(server.address) as steady:
        for number in range(100):
            client = connect(server.address)
            client.sendall(b"line\n" * (number % 7))
            if number % 3 == 0:
                client.shutdown(socket.SHUT_RD)
            reset(client)
        steady.sendall(b"steady\n")
        assert b"steady\n" == steady.recv(100)
    assert "Traceback" not in capfd.readouterr().err


def test_the_handlers_that_print_are_built_on_each_other() -> None:
    """What a class puts between them is asked, and a browser gets its page wherever it is to."""
    seen: list[bytes] = []

    class Counts(PrintHandler):
        def lines_received(self, lines: Any) -> None:
            seen.append(lines.data)
            super().lines_received(lines)

    class Both(EchoHandler, Counts):
        answers_browsers = True

    with serving(Both, "thread", output=os.devnull) as server:
        request = b"GET / HTTP/1.1\nHost: here\n"
        assert exchange(server.address, request + b"\n").startswith(request + b"HTTP/1.1 200 OK\r\n")
    assert request == b"".join(seen)
