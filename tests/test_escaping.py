"""What a client sends as the operator sees it: nothing in it reaches the terminal as a command or forges a line."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stdserve.escaping import decode, escape

# Not st.binary(): what Hypothesis draws, it also compares with numbers and text, which is an error under -bb.
data = st.lists(st.integers(0, 255), max_size=40).map(bytes) | st.text(max_size=40).map(
    lambda text: text.encode("utf-8", "surrogatepass")
)


def one_by_one(data: bytes) -> str:
    """Escape a character at a time, by Unicode's own word for a control character."""
    return "".join(
        "".join(f"\\x{byte:02x}" for byte in c.encode()) if unicodedata.category(c) == "Cc" and c not in "\t\n" else c
        for c in data.decode("utf-8", "backslashreplace")
    )


@given(data)
@example(b"\x1b[2J\x9b\xc2\x9b\x7f\r\n\tok")
@example(bytes(range(256)))
def test_control_characters_and_undecodable_bytes_are_shown_and_nothing_else_changes(data: bytes) -> None:
    """Two ways to escape agree, on any bytes."""
    assert one_by_one(data) == escape(data).decode()


@given(data, st.integers(0, 2))
@example(b"\x00", 1)
@example(b"\x7f", 1)
@example("ж".encode(), 1)
@example(b"", 1)
def test_a_large_block_is_escaped_as_a_small_one_is(data: bytes, place: int) -> None:
    """It is looked at in another way."""
    plain = b"\tplain text\n" * 1000
    blocks = [plain, plain]
    blocks.insert(place, data)

    assert b"".join(map(escape, blocks)) == escape(b"".join(blocks))


@pytest.mark.parametrize("code", range(256))
def test_no_byte_of_a_large_block_is_overlooked(code: int) -> None:
    """Each of them, in the last place."""
    byte, plain = bytes([code]), b"x" * 5000

    assert plain + escape(byte) == escape(plain + byte)


def test_every_character_of_unicode_is_judged_by_its_category() -> None:
    """All of them at once, also those that no random test would meet."""
    text = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF).encode()

    assert one_by_one(text) == escape(text).decode()


@given(data)
def test_nothing_is_left_that_drives_a_terminal(data: bytes) -> None:
    """The only control characters that remain are tab and LF; escaping what is escaped changes nothing."""
    escaped = escape(data)

    assert set() == {c for c in escaped.decode() if unicodedata.category(c) == "Cc"} - {"\t", "\n"}
    assert escaped == escape(escaped)


@given(data, data)
def test_lines_stay_the_lines_they_were(first: bytes, second: bytes) -> None:
    """A LF neither comes nor goes, and what is on one side of it does not change the other."""
    assert escape(first) + b"\n" + escape(second) == escape(first + b"\n" + second)
    assert first.count(b"\n") == escape(first).count(b"\n")


@given(data)
def test_decoded_text_can_always_be_encoded_again(data: bytes) -> None:
    """No byte raises, going in or out; what is valid comes back as it was."""
    text = decode(data)
    text.encode()

    assert text == decode(text.encode())


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"\x1b[31mred", b"\\x1b[31mred"),
        (b"a\x00b", b"a\\x00b"),
        (b"back\x08\x08", b"back\\x08\\x08"),
        (b"over\rwritten", b"over\\x0dwritten"),
        (b"del\x7f", b"del\\x7f"),
        (b"\xff\xfe", b"\\xff\\xfe"),
        (b"half \xd0", b"half \\xd0"),
        ("C1 \x9b".encode(), b"C1 \\xc2\\x9b"),
        ("surrogate \ud800".encode("utf-8", "surrogatepass"), b"surrogate \\xed\\xa0\\x80"),
        (b"tab\tand\n", b"tab\tand\n"),
        ("привет \U0001f40d".encode(), "привет \U0001f40d".encode()),
        (b"", b""),
    ],
)
def test_examples(data: bytes, shown: bytes) -> None:
    r"""Each is shown as \\xNN by its bytes, or left alone."""
    assert shown == escape(data)


def test_clean_ascii_is_not_copied() -> None:
    """The common case costs one look."""
    data = bytes(range(0x20, 0x7F)) + b"\t\n"

    assert escape(data) is data
