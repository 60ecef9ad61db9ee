"""The protocol against its rules: any stream, any split, and a second, naive implementation of both framings."""

from __future__ import annotations

import codecs
import itertools
import sys
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stdserve.protocol import (
    EXIT_PAUSE,
    FRAMINGS,
    Chunk,
    ChunkProtocol,
    EndReason,
    Event,
    LineProtocol,
    Lines,
    SessionEnd,
)

#: Everything that str.strip() removes.
BLANKS = [chr(code) for code in range(sys.maxunicode + 1) if not chr(code).strip()]

#: What streams are made of: line ends, blanks of all kinds, "exit" and what looks like it, halves of characters.
PIECES = [
    *(b"\n", b"\r", b"\r\n", b"\n\r", b"exit", b"exi", b"t", b"EXIT", b"process exited", b"exit\r\n", b" exit \n"),
    *(b"a", b"abc", b"abc\n", b"\x00", b"\x1b", b"\x7f", b"\xff", b"\xd0", b"\xb6", b"\xc2", b"\xe2\x80", b"\xed\xa0"),
    *("ж".encode(), "\u20ac\n".encode(), "\U0001f40d".encode(), "\u200b".encode(), "\x9b".encode()),
    *(blank.encode() for blank in BLANKS),
]

# Not st.binary(): what Hypothesis draws, it also compares with numbers and text, which is an error under -bb.
octets = st.lists(st.integers(0, 255), max_size=12).map(bytes)
pieces = st.sampled_from(PIECES) | octets
streams = st.lists(pieces, max_size=24).map(b"".join)
characters = st.sampled_from([*BLANKS, "exit", "a", "ж", "\u20ac", "\U0001f40d"])
framings = st.sampled_from(sorted(FRAMINGS))
limits = st.integers(1, 9) | st.just(65536)
reasons = st.sampled_from(EndReason)

#: The lines that came out, as bytes without their LF, and how the session ended, if it has.
Outcome = tuple[list[bytes], EndReason | None]


@st.composite
def reads(draw: st.DrawFn, source: st.SearchStrategy[bytes] = streams) -> list[bytes]:
    """Draw a stream as a list of reads, none of them empty: that would be EOF."""
    stream = draw(source)
    cuts = draw(st.sets(st.integers(1, max(1, len(stream) - 1))) | st.just(set(range(len(stream)))))
    read = [stream[start:end] for start, end in itertools.pairwise(sorted({0, len(stream), *cuts}))]
    return [block for block in read if block]


def outcome(events: Iterable[Event]) -> Outcome:
    """Flatten the events of line framing; the end, if there is one, is the last."""
    lines: list[bytes] = []
    reason = None
    for event in events:
        assert reason is None, "an event after the end"
        if isinstance(event, SessionEnd):
            reason = event.reason
            continue
        assert isinstance(event, Lines)
        assert event.data.endswith(b"\n")
        found = event.data.removesuffix(b"\n").split(b"\n")
        assert len(found) == len(event)
        assert [line.decode("utf-8", "backslashreplace") for line in found] == list(event)
        lines += found
    return lines, reason


def by_the_rules(stream: bytes, max_line: int, at_eof: bool, obey_exit: bool) -> Outcome:
    """Say what section 2 of the design wants of a stream that came so far, or came to its end."""
    lines: list[bytes] = []
    *whole, rest = stream.split(b"\n")
    for line in [line.removesuffix(b"\r") for line in whole] + [rest] * (at_eof and rest != b""):
        if len(line) > max_line:
            return [*lines, line[:max_line]], EndReason.LINE_TOO_LONG
        text = line.decode("utf-8", "backslashreplace").strip()
        if obey_exit and text in ("", "exit"):
            return lines, EndReason.EXIT if text else EndReason.EMPTY_LINE
        lines.append(line)
    if len(rest.removesuffix(b"\r")) > max_line:
        return [*lines, rest[:max_line]], EndReason.LINE_TOO_LONG
    return lines, EndReason.EOF if at_eof else None


def talk(protocol: LineProtocol | ChunkProtocol, *blocks: bytes) -> list[Event]:
    """Return all the events of some reads."""
    return [event for block in blocks for event in protocol.receive_data(block)]


def test_lines_are_equal_by_what_they_hold_and_show_it() -> None:
    """As any value."""
    assert Lines(b"a\n") == Lines(b"a\n") != Lines(b"b\n")
    assert {Lines(b"a\n")} == {Lines(b"a\n"), Lines(b"a\n")}
    assert "Lines(data=b'a\\n')" == repr(Lines(b"a\n"))


# Line framing.


@given(reads(), limits, st.booleans())
@example([b"abc\r", b"\n", b"abc\r"], 3, True)
@example([b"abc\r", b"\r\n"], 3, True)
@example([b"ab\rdef\n"], 3, True)
@example([b"exit\n\n", b"exit"], 9, False)
def test_any_split_of_any_stream_gives_what_the_rules_say_at_once(
    blocks: list[bytes], max_line: int, obey_exit: bool
) -> None:
    """After each read exactly that is told which the bytes so far decide, however they were cut; then EOF."""
    protocol, events = LineProtocol(max_line, obey_exit), list[Event]()
    for count, block in enumerate(blocks, 1):
        events += protocol.receive_data(block)
        assert by_the_rules(b"".join(blocks[:count]), max_line, False, obey_exit) == outcome(events)
        assert obey_exit or not protocol.awaiting_exit
    events += protocol.receive_data(b"")

    assert by_the_rules(b"".join(blocks), max_line, True, obey_exit) == outcome(events)


@given(reads(), limits)
def test_eof_and_the_end_of_a_drain_are_the_same(blocks: list[bytes], max_line: int) -> None:
    """Draining looks to a session like EOF (rule 8)."""
    read, drained = LineProtocol(max_line), LineProtocol(max_line)

    assert talk(read, *blocks, b"") == talk(drained, *blocks) + drained.end(EndReason.EOF)


@pytest.mark.parametrize("blank", [blank for blank in BLANKS if blank != "\n"], ids=ascii)
def test_every_blank_is_stripped_as_in_python(blank: str) -> None:
    """A line of any character that strip() removes is blank; around "exit" it changes nothing, inside it does."""

    def told(line: str) -> Outcome:
        return outcome(LineProtocol().receive_data(f"a\n{line}\n".encode()))

    assert ([b"a"], EndReason.EMPTY_LINE) == told(blank)
    assert ([b"a"], EndReason.EMPTY_LINE) == told(3 * blank)
    assert ([b"a"], EndReason.EXIT) == told(f"{blank}exit{blank}")
    inside = f"ex{blank}it"
    assert ([b"a", inside.encode()], None) == told(inside)


def test_no_other_character_is_blank() -> None:
    """All of Unicode, a line for each character that strip() keeps, goes through to the last one."""
    kept = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).strip() and not 0xD800 <= code <= 0xDFFF]

    assert [Lines("".join(f"{c}\n" for c in kept).encode())] == LineProtocol().receive_data(
        "".join(f"{c}\r\n" for c in kept).encode()
    )


@given(octets | streams)
@example(b"\xe2\x80")
@example(b"exit\x00")
@example(b"\xc2\xa0exit\xe3\x80\x80\r")
def test_a_line_ends_the_session_exactly_when_its_stripped_text_says_so(line: bytes) -> None:
    """The text decides, as Python reads it: blank, or "exit"."""
    line = line.replace(b"\n", b"")
    text = line.decode("utf-8", "backslashreplace").strip()
    ends = {"": EndReason.EMPTY_LINE, "exit": EndReason.EXIT}

    assert ends.get(text) == outcome(LineProtocol().receive_data(line + b"\n"))[1]


def test_a_run_of_lines_is_handed_over_in_one_block() -> None:
    """Printing a megabyte is a few calls: the lines of one read are one event, without the CR of their CRLF."""
    assert [Lines(b"a\nb\nc\r\nd\n")] == LineProtocol().receive_data(b"a\nb\r\nc\r\r\nd\nrest")


def test_lines_iterate_as_text() -> None:
    """A block counts its lines and reads as text, undecodable bytes shown."""
    lines = Lines(b"one\n\xff\xd0\xb6\n\n")

    assert ["one", "\\xffж", ""] == list(lines)
    assert 3 == len(lines)


@pytest.mark.parametrize(
    "line", [b"process exited", b"exit now", b"EXIT", b"ex it", b"exitexit", b"\xffexit", b"exit\x00"]
)
def test_text_that_contains_exit_is_an_ordinary_line(line: bytes) -> None:
    """Only a line that reads exit and nothing else ends the session (rule 3)."""
    assert [Lines(line + b"\n")] == LineProtocol().receive_data(line + b"\n")


def test_what_follows_the_end_is_not_printed() -> None:
    """Neither the line that ends the session nor those behind it come out, in the same read or a later one."""
    protocol = LineProtocol()

    assert [Lines(b"a\n"), SessionEnd(EndReason.EXIT)] == protocol.receive_data(b"a\nexit\nb\n")
    assert [] == protocol.receive_data(b"c\n")


@given(framings, st.lists(reads(), min_size=2, max_size=2), reasons, limits)
def test_nothing_comes_after_the_end(framing: str, blocks: list[list[bytes]], reason: EndReason, limit: int) -> None:
    """A session has one end, its last event; whatever is told to the protocol then, it says no more."""
    protocol = FRAMINGS[framing](limit)
    events = [*talk(protocol, *blocks[0]), *protocol.end(reason)]

    assert [SessionEnd] == [type(event) for event in events if isinstance(event, SessionEnd)]
    assert isinstance(events[-1], SessionEnd)
    assert not protocol.awaiting_exit
    assert [] == [*protocol.pause(), *talk(protocol, *blocks[1], b""), *protocol.end(reason), *protocol.pause()]


@pytest.mark.parametrize(
    ("rest", "lines", "reason"),
    [
        (b"ping", [b"ping"], EndReason.EOF),
        (b"ping\r", [b"ping\r"], EndReason.EOF),
        (b"\xd0", [b"\xd0"], EndReason.EOF),
        (b"exit", [], EndReason.EXIT),
        (b" exit\r", [], EndReason.EXIT),
        (b" \t", [], EndReason.EMPTY_LINE),
        (b"", [], EndReason.EOF),
    ],
)
def test_what_came_before_eof_is_a_line(rest: bytes, lines: list[bytes], reason: EndReason) -> None:
    """The lecture's clients send no newline; a CR that no LF follows is part of the line (rules 1 and 4)."""
    assert ([b"a", *lines], reason) == outcome(talk(LineProtocol(), b"a\n" + rest, b""))


@pytest.mark.parametrize("reason", [reason for reason in EndReason if reason is not EndReason.EOF])
def test_a_session_that_is_ended_keeps_the_reason(reason: EndReason) -> None:
    """What is unfinished is printed as a line, unless it is one that never is; the reason is the caller's (rule 6)."""

    def ended(rest: bytes) -> Outcome:
        protocol = LineProtocol()
        return outcome([*talk(protocol, *[rest] * bool(rest)), *protocol.end(reason)])

    assert ([b"half"], reason) == ended(b"half")
    assert ([], reason) == ended(b"")
    assert ([], reason) == ended(b"exit")
    assert ([], reason) == ended(b"  ")


@pytest.mark.parametrize("rest", [b"exit", b"exit\r"])
def test_an_unfinished_exit_counts_after_a_pause(rest: bytes) -> None:
    """Telnet and the lecture send these bytes and wait for the server to hang up (rule 5)."""
    protocol = LineProtocol()
    protocol.receive_data(b"a\n" + rest)

    told = [protocol.awaiting_exit, *protocol.pause(), protocol.awaiting_exit]
    assert [True, SessionEnd(EndReason.EXIT), False] == told
    assert 0.2 == EXIT_PAUSE


@given(reads(), limits)
def test_a_pause_changes_nothing_unless_exit_is_waited_for(blocks: list[bytes], max_line: int) -> None:
    """However long a client takes between its reads, the lines are the same; only "exit" is taken at its word."""
    hasty, slow = LineProtocol(max_line), LineProtocol(max_line)
    for block in [*blocks, b""]:
        assert hasty.receive_data(block) == slow.receive_data(block)
        if not slow.awaiting_exit:
            assert [] == slow.pause()


@given(reads())
def test_exit_is_waited_for_when_the_unfinished_line_reads_just_that(blocks: list[bytes]) -> None:
    """Not when it is longer, shorter, finished, or behind the end of the session."""
    protocol = LineProtocol()
    ended = outcome(talk(protocol, *blocks))[1] is not None
    rest = b"".join(blocks).rpartition(b"\n")[2]

    assert (not ended and rest in (b"exit", b"exit\r")) == protocol.awaiting_exit


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""], ids=repr)
def test_a_line_of_the_longest_length_fits_with_any_end(end: bytes) -> None:
    """CR and LF are not counted; and at EOF there are none."""
    assert ([b"abcd"], EndReason.EOF) == outcome(talk(LineProtocol(4), b"abcd" + end, b""))


@pytest.mark.parametrize(
    "line", [b"abcde\n", b"abcde\r\n", b"abcd\r\r\n", b"abcd\re\n", b"abcde", b"abcd\r\r"], ids=repr
)
def test_a_line_that_is_too_long_is_cut_as_soon_as_it_is(line: bytes) -> None:
    """Its first bytes are printed and the session ends, without waiting for the rest of it (rule 7)."""
    told = [b"a", b"abcd"], EndReason.LINE_TOO_LONG

    assert told == outcome(LineProtocol(4).receive_data(b"a\n" + line))
    assert told == outcome(talk(LineProtocol(4), b"a\n", *(bytes([byte]) for byte in line)))


def test_a_cr_that_may_belong_to_the_terminator_is_waited_for() -> None:
    """After the longest line a CR is no excess until something other than LF follows it."""
    protocol = LineProtocol(4)

    assert [] == protocol.receive_data(b"abcd\r")
    assert [Lines(b"abcd\n")] == protocol.receive_data(b"\n")
    assert [] == protocol.receive_data(b"abcd\r")
    assert [Lines(b"abcd\n"), SessionEnd(EndReason.LINE_TOO_LONG)] == protocol.receive_data(b"")


def test_an_end_before_a_line_that_is_too_long_wins() -> None:
    """The stream decides in its own order, also within one read."""
    assert [SessionEnd(EndReason.EXIT)] == LineProtocol(4).receive_data(b"exit\nabcdefgh\n")
    assert [SessionEnd(EndReason.EMPTY_LINE)] == LineProtocol(4).receive_data(b"\nabcdefgh\n")
    assert [Lines(b"abcd\n"), SessionEnd(EndReason.LINE_TOO_LONG)] == LineProtocol(4).receive_data(b"abcdefgh\nexit\n")


def test_lines_fit_up_to_64_kibibytes_unless_told_otherwise() -> None:
    """The limit of asyncio's streams and of http.server."""
    line = b"x" * 65536

    assert [Lines(line + b"\n")] == LineProtocol().receive_data(line + b"\n")
    assert [Lines(line + b"\n"), SessionEnd(EndReason.LINE_TOO_LONG)] == LineProtocol().receive_data(line + b"xy\n")


def test_a_flood_without_a_newline_is_not_kept() -> None:
    """A hundred megabytes in one line cost no more than the limit: the session is over at the first of them."""
    protocol, block = LineProtocol(1000), b"x" * 1000

    assert [] == protocol.receive_data(block)
    assert [Lines(block + b"\n"), SessionEnd(EndReason.LINE_TOO_LONG)] == protocol.receive_data(b"x")


@pytest.mark.parametrize(
    "line", [b" " * 200_000 + b"x\n", "\u3000".encode() * 70_000 + b"\n", b"exit" + b" " * 200_000 + b"\n"]
)
def test_a_long_run_of_blanks_costs_a_few_times_its_size(line: bytes) -> None:
    """No line makes the server take many times its length in memory."""
    protocol = LineProtocol(1_000_000)
    tracemalloc.start()
    try:
        protocol.receive_data(line)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak <= 10 * len(line), f"{peak / len(line):.0f} bytes for one"


# Chunk framing.


def ending_read(blocks: list[bytes]) -> tuple[int, EndReason]:
    """Say which read ends a session of the lecture's server, were it to decode as it goes, and why."""
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    for number, block in enumerate(blocks):
        text = decoder.decode(block)
        if "exit" in text:
            return number, EndReason.EXIT
        if text and not text.strip() and not decoder.getstate()[0]:
            return number, EndReason.EMPTY_LINE
    return len(blocks), EndReason.EOF


def messages(events: list[Event]) -> tuple[list[bytes], EndReason]:
    """Return the messages of a whole session in chunk framing, and why it ended."""
    *chunks, end = events
    assert isinstance(end, SessionEnd)
    data = []
    for event in chunks:
        assert isinstance(event, Chunk)
        assert [event.data.decode("utf-8", "backslashreplace")] == list(event)
        assert 1 == len(event)
        assert event.data, "an empty message"
        data.append(event.data)
    return data, end.reason


@given(reads())
@example([b"a\r", b"\nb", b"\r"])
@example([b"a\r\xd0", b"\xb6"])
@example([b" \xd0", b"\xb6 "])
def test_messages_are_printed_as_they_came_up_to_the_one_that_ends_the_session(blocks: list[bytes]) -> None:
    """Not a byte is lost, added or moved; which read ends the session is the lecture's rule."""
    data, reason = messages(talk(ChunkProtocol(), *blocks, b""))
    last, expected = ending_read(blocks)
    before, shown = b"".join(blocks[:last]), b"".join(data)

    assert expected == reason
    # The two halves of a character may be on both sides of the end.
    assert before.startswith(shown) or shown.startswith(before)
    assert abs(len(before) - len(shown)) < (4 if expected is not EndReason.EOF else 1)


@given(reads(st.lists(characters, max_size=24).map(lambda text: "".join(text).encode())))
def test_no_message_cuts_a_character_or_a_crlf(blocks: list[bytes]) -> None:
    """A character, and a CRLF, that two reads have cut in two is whole again in one message."""
    data, _ = messages(talk(ChunkProtocol(), *blocks, b""))

    assert "".join(text.decode() for text in data) == b"".join(data).decode()
    assert [] == [both for both in itertools.pairwise(data) if both[0].endswith(b"\r") and both[1].startswith(b"\n")]


@pytest.mark.parametrize("blocks", [(b"a\xd0", b"\xb6 exit"), (b"a\xc2", b"\xa0")], ids=repr)
def test_a_character_that_the_end_cuts_stays_whole(blocks: tuple[bytes, ...]) -> None:
    """Also before the message that ends the session, no half of a character comes out."""
    data, _ = messages(talk(ChunkProtocol(), *blocks, b""))

    assert "\\x" not in b"".join(data).decode("utf-8", "backslashreplace")


@pytest.mark.parametrize("text", [b"exit", b"process exited", b"a\nb exit c\n", "ж exit".encode()])
def test_exit_anywhere_in_a_message_ends_the_session(text: bytes) -> None:
    """The lecture's rule: the message is not printed."""
    assert ([b"a"], EndReason.EXIT) == messages(talk(ChunkProtocol(), b"a", text, b"b", b""))


def test_exit_in_two_reads_is_not_exit() -> None:
    """Each read is a message of its own; nothing is ever waited for."""
    protocol = ChunkProtocol()

    assert [Chunk(b"ex"), Chunk(b"it")] == talk(protocol, b"ex", b"it")
    assert not protocol.awaiting_exit
    assert [] == protocol.pause()


@pytest.mark.parametrize("blank", BLANKS, ids=ascii)
def test_a_blank_message_ends_the_session(blank: str) -> None:
    """Whatever strip() removes is blank, line ends too; the limit of a line has no meaning here."""
    assert ([b"abc \n"], EndReason.EMPTY_LINE) == messages(talk(ChunkProtocol(1), b"abc \n", 3 * blank.encode(), b""))


def test_a_cr_is_held_back_until_it_is_known_what_follows() -> None:
    """A CRLF in two reads is one line end; a lone CR comes with the next message, or at the end."""
    protocol = ChunkProtocol()

    assert [Chunk(b"a")] == protocol.receive_data(b"a\r")
    assert [Chunk(b"\r\nb")] == protocol.receive_data(b"\nb\r")
    assert [Chunk(b"\r"), SessionEnd(EndReason.IDLE_TIMEOUT)] == protocol.end(EndReason.IDLE_TIMEOUT)


def test_half_a_character_comes_out_at_the_end() -> None:
    """What never became whole is shown all the same."""
    protocol = ChunkProtocol()

    assert [] == protocol.receive_data(b"\xd0")
    assert [Chunk(b"\xd0"), SessionEnd(EndReason.EOF)] == protocol.receive_data(b"")


@pytest.mark.parametrize("framing", FRAMINGS)
def test_six_hundred_cyrillic_letters_in_reads_of_any_size_stay_whole(framing: str) -> None:
    """The text that kills the lecture's server, which decodes each read of 1024 bytes by itself."""
    text = "ж" * 600
    for size in (1, 1023, 1024, 1200):
        data = text.encode()
        events = talk(FRAMINGS[framing](), *(data[at : at + size] for at in range(0, len(data), size)), b"")

        assert SessionEnd(EndReason.EOF) == events.pop()
        assert text == "".join(line for event in events for line in event)  # type: ignore[union-attr]


# Both.


@given(framings, st.lists(octets | streams, max_size=8), limits, reasons)
def test_no_bytes_raise(framing: str, blocks: list[bytes], max_line: int, reason: EndReason) -> None:
    """Whatever a client sends, the answer is events."""
    protocol = FRAMINGS[framing](max_line)
    for block in blocks:
        protocol.receive_data(block)
        if protocol.awaiting_exit:
            protocol.pause()
    protocol.end(reason)


def test_events_are_values() -> None:
    """Equal when they say the same, and fit to be compared, kept and passed on."""
    events = [Lines(b"a\n"), Chunk(b"a\n"), SessionEnd(EndReason.EOF)]

    assert 3 == len({*events, Lines(b"a\n"), Chunk(b"a\n"), SessionEnd(EndReason.EOF)})


def test_the_framings_go_by_their_words() -> None:
    """Line framing, and the lecture's."""
    assert {"line": LineProtocol, "chunk": ChunkProtocol} == FRAMINGS
