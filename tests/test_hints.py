"""What is proposed is right for the server that proposes it; the plain ways are tried in test_interop."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from authority import Authority
from processes import DEADLINE, ServerProcess

from stdserve.hints import ways_to_try
from stdserve.options import Options


def test_a_plain_server_is_tried_in_all_the_lectures_ways() -> None:
    """On an address that can be connected to, where it listens on all."""
    telnet, python, client, browser = ways_to_try("0.0.0.0:10001", Options())
    assert "telnet 127.0.0.1 10001" == telnet
    assert "socket.create_connection(('127.0.0.1', 10001))" in python
    assert "python -m stdserve.client 127.0.0.1:10001 ping" == client
    assert "a browser: http://127.0.0.1:10001" == browser
    assert "telnet ::1 10001" == ways_to_try("[::]:10001", Options())[0]


def test_a_unix_socket_is_tried_by_what_can() -> None:
    """Netcat knows no abstract ones."""
    assert "nc -U '/tmp/a b'" == ways_to_try("unix:/tmp/a b", Options())[0]
    assert not any("nc" in way for way in ways_to_try("unix:@name", Options()))


@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.parametrize("words", [["--proxy-protocol"], ["TLS"], ["--proxy-protocol", "TLS"]], ids=str)
def test_behind_a_proxy_and_with_tls_our_client_is_told_what_it_needs(
    authority: Authority, tmp_path: Path, family: str, words: list[str]
) -> None:
    """The command is run as it is proposed, with the server's own certificate as the one to trust."""
    pair = authority.pair()
    trusted = tmp_path / "all.pem"
    trusted.write_bytes(Path(pair.certfile).read_bytes() + Path(authority.path).read_bytes())
    flags = [
        ["--tls-cert", str(trusted), "--tls-key", str(pair.keyfile)] if word == "TLS" else [word] for word in words
    ]
    bind = "127.0.0.1:0" if family == "tcp" else "unix:sock"
    with ServerProcess("-b", bind, *sum(flags, []), port=None) as server:
        way = server.wait_for_log(r"^  python -m (stdserve\.client .*)")[1]
        command = [sys.executable, "-m", *shlex.split(way)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, cwd=server.folder)
        assert (0, "") == (done.returncode, done.stderr)
        server.wait_for_output(b"ping\n")
        assert not [line for line in server.log if "telnet" in line]
