"""The examples, each run as its reader runs it: in its folder, by the commands of its own docstring."""

from __future__ import annotations

import ast
import re
import socket
from pathlib import Path

import pytest
from example_programs import (
    REPOSITORY,
    SOURCES,
    Folder,
    Terminal,
    blocks,
    server_commands,
)
from processes import DEADLINE, ServerProcess, children_of, peer_program, reset

from stdserve import Client


@pytest.fixture
def example(tmp_path: Path) -> Folder:
    """The examples, in a folder of this test's own."""
    return Folder(tmp_path)


# All of them.


@pytest.mark.parametrize("name", SOURCES)
def test_each_is_short(name: str) -> None:
    """Fewer than 80 lines, with all that it explains."""
    assert len(SOURCES[name].read_text().splitlines()) < 80


def test_the_table_of_the_readme_has_each_with_its_command() -> None:
    """The one that its docstring begins with."""
    section = (REPOSITORY / "README.md").read_text().partition("### Examples")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| \[(\w+)\.py\]\(examples/\1\.py\) \| [^|]+ \| `(.*)` \|$", section, re.MULTILINE))
    assert {name: server_commands(name)[0] for name in SOURCES} == rows


# upper


@pytest.mark.parametrize("which", [0, 1])
def test_upper_replies_in_capitals(example: Folder, which: int) -> None:
    """In one process and in four, to our client and to netcat."""
    peer_program("nc")
    ours, netcat, _ = blocks("upper")[1].splitlines()
    with example.serve("upper", which=which) as server:
        assert b"HELLO, WORLD\n" == example.run(ours, server.port).stdout
        assert b"ONE\nTWO\n" == example.run(netcat, server.port).stdout
        assert [0, 4][which] == len(children_of(server.pid))


def test_upper_is_the_handler_that_the_readme_begins_with() -> None:
    """Types and docstrings apart."""
    handler = (REPOSITORY / "README.md").read_text().partition("<!-- example: handler -->\n```python\n")[2]
    classes = []
    for text in (handler.partition("```")[0], SOURCES["upper"].read_text()):
        (found,) = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef))
        for node in ast.walk(found):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                del node.body[0]
            if isinstance(node, ast.FunctionDef):
                node.returns = None
            if isinstance(node, ast.arg):
                node.annotation = None
        classes.append(ast.unparse(found))
    assert classes[0] == classes[1]


# chat


def join(server: ServerProcess, nickname: str) -> Client:
    """A member of the chat room, who has been welcomed."""
    client = Client(server.address, read_timeout=DEADLINE)
    assert "* your nickname?" == client.receive_line()
    assert nickname in client.ask(nickname)
    return client


def test_a_chat_between_telnet_and_others(example: Folder) -> None:
    """Who comes, speaks and leaves is told to everyone else; /quit ends the session, the word exit does not."""
    telnet = peer_program("telnet")
    (command,) = blocks("chat")[1].splitlines()
    assert ["telnet", "127.0.0.1", "10001"] == command.split()
    with (
        example.serve("chat") as server,
        join(server, "ann") as ann,
        Terminal(telnet, "127.0.0.1", str(server.port)) as bob,
    ):
        bob.wait_for(b"* your nickname?")
        bob.type(b"bob")
        bob.wait_for(b"* here: ann, bob")
        assert "* bob has come" == ann.receive_line()
        for line in (b"exit", b"", b"hello"):
            bob.type(line)
        assert ["bob: exit", "bob: hello"] == [ann.receive_line(), ann.receive_line()]
        ann.send("hi \x1b[2Jbob")
        bob.wait_for(b"ann: hi [2Jbob")
        bob.type(b"/quit")
        bob.wait_for(b"Connection closed by foreign host")
        assert "* bob has left" == ann.receive_line()


def test_a_nickname_is_a_word_that_nobody_else_has(example: Folder) -> None:
    """It is asked for until it is good; once its bearer has gone, it is free."""
    with example.serve("chat") as server, Client(server.address, read_timeout=DEADLINE) as other:
        ann = join(server, "ann")
        other.receive_line()
        for nickname in ("ann", "", "two words", "x" * 21, "\x1b"):
            assert other.ask(nickname).endswith("your nickname?")
        ann.send("/quit")
        assert b"" == ann.finish()
        ann.close()
        server.wait_for_log("^close ")
        assert "* here: ann" == other.ask("ann")


def test_who_does_not_read_and_who_is_gone_disturb_nobody(example: Folder) -> None:
    """24 MB are said past one who reads none of it, and who misses what its outbox does not hold, and no more."""
    with (
        example.serve("chat") as server,
        join(server, "ann") as ann,
        join(server, "bob") as bob,
        join(server, "slow") as slow,
        join(server, "gone") as gone,
    ):
        assert isinstance(gone.sock, socket.socket)
        reset(gone.sock)
        listen(ann, "* gone has left")
        listen(bob, "* gone has left")
        for number in range(400):
            said = f"{number} {'x' * 60_000}"
            ann.send(said)
            assert f"ann: {said}" == bob.receive_line()
        heard = 0
        for line in slow.lines():
            if line == "ann: again":
                break
            heard += line.startswith("ann: ")
            ann.send("again")  # at the latest when the last one is heard there is room for it
        assert 100 <= heard < 400


def test_who_leaves_hears_what_was_said_before(example: Folder) -> None:
    """An outbox is emptied first; meanwhile the others are told already."""
    said = [f"{number} {'x' * 60_000}" for number in range(95)]
    with (
        example.serve("chat") as server,
        join(server, "ann") as ann,
        join(server, "bob") as bob,
        join(server, "carl") as carl,
    ):
        for line in said:
            ann.send(line)
            assert f"ann: {line}" == carl.receive_line()
        bob.send("/quit")
        listen(ann, "* bob has left")
        assert ["* carl has come", *(f"ann: {line}" for line in said)] == list(bob.lines())


def listen(client: Client, until: str) -> None:
    """Read up to this line."""
    while until != client.receive_line():
        pass


# gateway


def test_a_device_and_one_who_watches_it(example: Folder) -> None:
    """The docstring's two commands."""
    peer_program("nc")
    device, watcher = blocks("gateway")[1].splitlines()
    with example.serve("gateway") as server:
        assert b"OK\nOK\nOK pump-1\nOK\n" == example.run(device, server.port).stdout
        assert re.fullmatch(rb"OK \d+s bar=3.2 rpm=1450\n", example.run(watcher, server.port).stdout)
        assert ["--idle-timeout", "60s"] == server_commands("gateway")[0].split()[-2:]


def test_a_device_that_calls_again_ends_its_old_session(example: Folder) -> None:
    """What it said before is remembered; the others are not disturbed."""
    with (
        example.serve("gateway") as server,
        Client(server.address, read_timeout=DEADLINE) as old,
        Client(server.address, read_timeout=DEADLINE) as new,
        Client(server.address, read_timeout=DEADLINE) as other,
    ):
        assert ["OK", "OK", "OK"] == [old.ask("HELLO pump"), old.ask("DATA a=1"), other.ask("HELLO valve")]
        assert "OK" == new.ask("HELLO pump")
        assert b"" == old.finish()
        server.wait_for_log("^close .* reason=closed lines=2 ")
        assert "OK pump valve" == other.ask("WHO")
        assert "OK 0s a=1" == re.sub(r"\d+s", "0s", other.ask("LAST pump"))
        assert b"" == new.finish()
        server.wait_for_log("^close .* reason=eof lines=1 ")
        assert "OK valve" == other.ask("WHO")


def test_what_the_gateway_does_not_know_is_an_error(example: Folder) -> None:
    """And no end: not "exit", not a blank line."""
    with example.serve("gateway") as server, Client(server.address, read_timeout=DEADLINE) as client:
        early, late = ["exit", "", "DATA a=1", "LAST pump", "HELLO"], ["HELLO other", "DATA", "DATA a", "DATA \x1b=1"]
        assert all(client.ask(line).startswith("ERR") for line in early)
        assert "OK" == client.ask("HELLO pump")
        assert all(client.ask(line).startswith("ERR") for line in late)
        assert "OK pump" == client.ask("WHO")


def test_a_silent_device_is_taken_off_the_list(example: Folder) -> None:
    """After the idle timeout, which is a short one here."""
    with example.serve("gateway", "--idle-timeout", "1s") as server:
        with Client(server.address, read_timeout=DEADLINE) as device:
            assert "OK" == device.ask("HELLO pump")
            assert [] == list(device.lines())
        server.wait_for_log("^close .* reason=idle_timeout")
        with Client(server.address, read_timeout=DEADLINE) as client:
            assert "OK" == client.ask("WHO")


# mtls


def test_who_may_do_what_by_certificate(example: Folder) -> None:
    """The docstring's commands: certificates, server, alice, bob, nobody."""
    peer_program("openssl")
    certificates, _, clients = blocks("mtls")
    assert 0 == example.run(certificates).returncode
    alice, bob, nobody = clients.splitlines()
    with example.serve("mtls") as server:
        assert b"OK tea at 4\n" == example.run(alice, server.port).stdout
        said = example.run(bob, server.port, input=b"READ\nWRITE tea at 5\nWHOAMI\nREAD\nexit\n").stdout
        assert b"OK tea at 4\nERR CN=bob may not WRITE\nOK CN=bob\nOK tea at 4\n" == said
        refused = example.run(nobody, server.port)
        assert (1, b"") == (refused.returncode, refused.stdout)
        server.wait_for_log("^open .* subject=CN=alice")
        server.wait_for_log("^reject .*certificate")
