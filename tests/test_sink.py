"""The sink below its servers: formats, locks, failures."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import DEADLINE, eventually

from stdserve.errors import OutputError, StartError
from stdserve.protocol import Chunk, Lines
from stdserve.sink import MOST_HELD, Sink, open_sink

PEER = "127.0.0.1:4000"


def written(event: Lines | Chunk, format: str = "text", raw: bool = False) -> bytes:
    """What a sink writes for one event."""
    reader, writer = os.pipe()
    sink = Sink(writer, format=format, raw=raw)
    sink.write(event, PEER)
    sink.close()
    with os.fdopen(reader, "rb") as stream:
        return stream.read()


@pytest.mark.parametrize(
    ("event", "format", "raw", "expected"),
    [
        (Lines(b"a\nb\x1b\n"), "text", False, b"a\nb\\x1b\n"),
        (Lines(b"a\nb\x1b\n"), "text", True, b"a\nb\x1b\n"),
        (Lines(b"a\r\nb\n"), "text", False, b"a\\x0d\nb\n"),
        (Lines(b"a\nb\x1b\n"), "peer", False, b"127.0.0.1:4000 a\n127.0.0.1:4000 b\\x1b\n"),
        (Lines(b"a\nb\x1b\n"), "peer", True, b"127.0.0.1:4000 a\n127.0.0.1:4000 b\x1b\n"),
        (Chunk(b"a\r\nb\rc"), "text", False, b"a\r\nb\\x0dc"),
        (Chunk(b"a\r\nb\rc"), "text", True, b"a\r\nb\rc"),
        (Chunk(b"a"), "peer", False, b"127.0.0.1:4000 a\n"),
    ],
)
def test_formats(event: Lines | Chunk, format: str, raw: bool, expected: bytes) -> None:
    """Text as it came and safe, raw as it came, the peer before each line."""
    assert expected == written(event, format, raw)


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_json_gives_every_text_back_and_drives_no_terminal(texts: list[str]) -> None:
    """One object a line; no control character stands in it as it is."""
    texts = [text.encode("utf-8", "replace").decode().replace("\n", "") for text in texts]
    output = written(Lines("".join(text + "\n" for text in texts).encode()), "json")

    assert texts == [json.loads(line)["line"] for line in output.decode().split("\n")[:-1]]
    shown = output.decode().replace("\n", "")
    assert not [character for character in shown if ord(character) < 32 or 127 <= ord(character) < 160]


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    """What a server before wrote stays."""
    path = tmp_path / "out"
    path.write_bytes(b"before\n")
    sink = open_sink(str(path))
    sink.write(Lines(b"after\n"), PEER)
    sink.close()
    assert b"before\nafter\n" == path.read_bytes()


def test_a_file_that_cannot_be_opened_is_a_start_error(tmp_path: Path) -> None:
    """Named, with the system's reason."""
    with pytest.raises(StartError, match=f"cannot write to {tmp_path}: Is a directory"):
        open_sink(str(tmp_path))


def test_a_failure_is_remembered() -> None:
    """Every later write fails at once, and says why."""
    reader, writer = os.pipe()
    sink = Sink(writer, "the pipe")
    assert sink.error is None
    os.close(reader)
    for _ in range(2):
        with pytest.raises(OutputError, match="cannot write to the pipe: its reader has gone"):
            sink.write(Lines(b"a\n"), PEER)
    assert str(sink.error) == "cannot write to the pipe: its reader has gone"
    sink.close()


def test_a_failure_in_a_forked_child_is_known_to_its_parent() -> None:
    """The parent stops on it."""
    code = (
        "import os\n"
        "from stdserve.sink import Sink\n"
        "from stdserve.protocol import Lines\n"
        "full = os.open('/dev/full', os.O_WRONLY)\n"
        "sink = Sink(full, 'it')\n"
        "if os.fork() == 0:\n"
        "    try:\n"
        "        sink.write(Lines(b'a\\n'), '')\n"
        "    except Exception:\n"
        "        os._exit(0)\n"
        "os.wait()\n"
        "print(sink.error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    assert ("cannot write to it: No space left on device\n", "") == (result.stdout, result.stderr)


def test_a_pipe_that_is_not_blocking_gets_everything_all_the_same() -> None:
    """Its flag is left as it was found: others share it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    sink = Sink(writer)
    data = b"x" * 999_999 + b"\n"
    got = bytearray()

    thread = threading.Thread(target=sink.write, args=(Lines(data), PEER))
    thread.start()
    size = fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ)
    eventually(lambda: buffered(reader) >= size - 4096, "a full pipe")
    while len(got) < len(data):
        got.extend(os.read(reader, 65536))
    thread.join(DEADLINE)
    assert data == got
    assert not os.get_blocking(writer)
    sink.close()
    os.close(reader)


def test_a_large_block_into_a_pipe_holds_off_the_small_ones_of_other_threads() -> None:
    """A pipe takes a large block in parts; nothing comes between them."""
    reader, writer = os.pipe()
    sink = Sink(writer)
    large = threading.Thread(target=sink.write, args=(Lines(b"x" * 300_000 + b"\n"), PEER))
    large.start()
    size = fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ)
    eventually(lambda: buffered(reader) >= size - 4096, "a full pipe")
    small = threading.Thread(target=sink.write, args=(Lines(b"small\n"), PEER))
    small.start()
    got = bytearray()
    while len(got) < 300_007:
        got.extend(os.read(reader, 65536))
    assert b"x" * 300_000 + b"\nsmall\n" == got
    for thread in (large, small):
        thread.join(DEADLINE)
    sink.close()
    os.close(reader)


def buffered(reader: int) -> int:
    """Bytes that wait in a pipe (FIONREAD)."""
    import array
    import termios

    count = array.array("i", [0])
    fcntl.ioctl(reader, termios.FIONREAD, count)
    return count[0]


def test_standard_output_stays_open_when_the_sink_is_closed() -> None:
    """It is not the sink's to close."""
    sink = open_sink()
    sink.close()
    os.fstat(1)


def test_a_regular_file_is_prompt_and_a_pipe_waits_for_its_reader(tmp_path: Path) -> None:
    """So whoever must not wait can know."""
    reader, writer = os.pipe()
    pipe, file = Sink(writer), open_sink(str(tmp_path / "out"))
    try:
        assert (False, True) == (pipe.prompt, file.prompt)
    finally:
        pipe.close()
        file.close()
        os.close(reader)


def test_a_thread_that_gathers_writes_once_for_all_it_has_said(tmp_path: Path) -> None:
    """At the latest when that is too much to hold, or over; other threads write at once meanwhile."""
    path = tmp_path / "out"
    sink = open_sink(str(path))
    with sink.gathering():
        sink.write(Lines(b"one\n"), PEER)
        sink.write(Lines(b"two\n"), PEER)
        other = threading.Thread(target=sink.write, args=(Lines(b"another thread\n"), PEER))
        other.start()
        other.join(DEADLINE)
        assert (b"another thread\n", 2) == (path.read_bytes(), len(sink.held))
        sink.put_out()
        sink.put_out()
        assert b"another thread\none\ntwo\n" == path.read_bytes()
        sink.write(Lines(b"three\n"), PEER)
        many = b"x" * 99 + b"\n"
        sink.write(Lines(many * (MOST_HELD // 100 + 1)), PEER)
        assert path.read_bytes().endswith(b"three\n" + many * (MOST_HELD // 100 + 1))
        sink.write(Lines(b"end\n"), PEER)
    assert path.read_bytes().endswith(many + b"end\n")
    sink.write(Lines(b"later\n"), PEER)
    assert path.read_bytes().endswith(b"end\nlater\n")
    sink.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_what_was_held_when_the_output_failed_is_told_to_whoever_puts_it_out() -> None:
    """And to whoever comes for it after the failure."""
    sink = open_sink("/dev/full")
    with sink.gathering():
        sink.write(Lines(b"one\n"), PEER)
        for _ in range(2):
            with pytest.raises(OutputError, match="No space left"):
                sink.put_out()
    sink.close()


def test_a_large_block_is_the_last_that_is_written_at_once(tmp_path: Path) -> None:
    """What comes after it is held as what came before."""
    sink = open_sink(str(tmp_path / "out"))
    with sink.gathering() as held:
        sink.write(Lines(b"x" * (2 * MOST_HELD) + b"\n"), PEER)
        assert [] == held
        sink.write(Lines(b"one\n"), PEER)
        assert [b"one\n"] == held
    sink.close()


def test_of_two_that_gather_the_second_writes_at_once(tmp_path: Path) -> None:
    """Two servers with one output: what one holds is not the other's to put out."""
    path = tmp_path / "out"
    sink = open_sink(str(path))
    with sink.gathering() as held:
        sink.write(Lines(b"held\n"), PEER)

        def gather() -> None:
            with sink.gathering() as second:
                sink.write(Lines(b"at once\n"), PEER)
                empty.append(second == [])

        empty: list[bool] = []
        other = threading.Thread(target=gather)
        other.start()
        other.join(DEADLINE)
        assert ([True], [b"held\n"], b"at once\n") == (empty, held, path.read_bytes())
    assert b"at once\nheld\n" == path.read_bytes()
    sink.close()


def test_a_process_that_is_forked_meanwhile_holds_nothing(tmp_path: Path) -> None:
    """What it prints is written at once, what its parent holds only by its parent."""
    code = (
        "import os, sys\n"
        "from stdserve.protocol import Lines\n"
        "from stdserve.sink import open_sink\n"
        "sink = open_sink('out')\n"
        "with sink.gathering():\n"
        "    sink.write(Lines(b'held\\n'), 'peer')\n"
        "    if not (child := os.fork()):\n"
        "        for _ in range(3):\n"
        "            sink.write(Lines(b'x' * 40000 + b'\\n'), 'peer')\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=DEADLINE)
    assert (0, b"") == (result.returncode, result.stderr)
    assert [b"x" * 40000] * 3 + [b"held"] == (tmp_path / "out").read_bytes().splitlines()
