"""Other people's programs as clients: telnet, netcat, openssl's and bash's sockets, curl, Chromium."""

from __future__ import annotations

import os
import pty
import shlex
import shutil
import subprocess
import sys
import tempfile

import pytest
from processes import DEADLINE, ServerProcess, eventually, peer_program
from test_modes import MODES

CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.mark.parametrize("mode", MODES)
def test_telnet_talks_as_in_the_lecture(mode: str) -> None:
    """Lines typed in a telnet session are printed; "exit" makes telnet say that the host closed."""
    telnet = peer_program("telnet")
    with ServerProcess(*MODES[mode]) as server:
        terminal, side = pty.openpty()
        client = subprocess.Popen([telnet, "127.0.0.1", str(server.port)], stdin=side, stdout=side, stderr=side)
        os.close(side)
        seen = bytearray()

        def sees(text: bytes) -> bool:
            try:
                seen.extend(os.read(terminal, 4096))
            except OSError:  # how a terminal says that everybody has left
                return True
            return text in seen

        eventually(lambda: sees(b"Escape character is"))
        os.write(terminal, b"ffff\n")
        server.wait_for_output(b"ffff\n")
        os.write(terminal, b"aaaa\n")
        server.wait_for_output(b"aaaa\n")
        os.write(terminal, b"exit\n")
        eventually(lambda: sees(b"Connection closed by foreign host"))
        client.wait(DEADLINE)
        os.close(terminal)
        assert 0 == server.stop()
        assert b"ffff\naaaa\n" == server.output


@pytest.mark.parametrize("mode", MODES)
def test_netcat_sends_a_file(mode: str) -> None:
    """`nc -N` sends, half-closes, and ends when the server does."""
    netcat = peer_program("nc")
    with ServerProcess(*MODES[mode]) as server:
        data = b"".join(b"line %d\n" % number for number in range(1000))
        command = [netcat, "-N", "127.0.0.1", str(server.port)]
        assert 0 == subprocess.run(command, input=data, timeout=DEADLINE).returncode
        assert 0 == server.stop()
        assert data == server.output


def test_curl_gets_the_page() -> None:
    """And a HEAD without a body."""
    curl = peer_program("curl")
    with ServerProcess() as server:
        url = f"http://127.0.0.1:{server.port}/"
        page = subprocess.run([curl, "-sS", url], capture_output=True, timeout=DEADLINE, check=True).stdout
        assert b"printed your browser's request" in page
        head = subprocess.run([curl, "-sSI", url], capture_output=True, timeout=DEADLINE, check=True).stdout
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert 0 == server.stop()
        assert b"GET / HTTP/1.1\n" in server.output
        assert b"HEAD / HTTP/1.1\n" in server.output


def test_netcat_curl_and_our_client_talk_over_a_unix_socket_as_proposed() -> None:
    """By the words on stderr, in a folder whose name needs quotes; curl gets the page."""
    netcat, curl = peer_program("nc"), peer_program("curl")
    with ServerProcess("--bind", "unix:a sock", port=None) as server:
        words = shlex.split(server.wait_for_log("^  (nc -U .*)$")[1])
        command = [netcat, "-N", *words[1:]]
        assert 0 == subprocess.run(command, input=b"one\n", cwd=server.folder, timeout=DEADLINE).returncode
        server.wait_for_output(b"one\n")
        words = shlex.split(server.wait_for_log("^  (curl --unix-socket .*)$")[1])
        command = [curl, "-sS", *words[1:]]
        page = subprocess.run(command, capture_output=True, cwd=server.folder, timeout=DEADLINE, check=True).stdout
        assert b"printed your browser's request" in page
        words = shlex.split(server.wait_for_log(r"^  python (-m stdserve\.client .*)$")[1])
        subprocess.run([sys.executable, *words], cwd=server.folder, timeout=DEADLINE, check=True)
        server.wait_for_output(b"ping\n")
        assert 0 == server.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract names")
def test_curl_and_our_client_talk_to_an_abstract_name_as_proposed() -> None:
    """netcat cannot."""
    curl = peer_program("curl")
    with ServerProcess("--bind", f"unix:@stdserve-curl-{os.getpid()}", port=None) as server:
        words = shlex.split(server.wait_for_log("^  (curl --abstract-unix-socket .*)$")[1])
        command = [curl, "-sS", *words[1:]]
        page = subprocess.run(command, capture_output=True, timeout=DEADLINE, check=True).stdout
        assert b"printed your browser's request" in page
        words = shlex.split(server.wait_for_log(r"^  python (-m stdserve\.client .*)$")[1])
        subprocess.run([sys.executable, *words], cwd=server.folder, timeout=DEADLINE, check=True)
        server.wait_for_output(b"ping\n")
        assert not [line for line in server.log if "nc -U" in line]


@pytest.mark.parametrize("framing", ["line", "chunk"])
@pytest.mark.parametrize("mode", ["single", "thread", "fork", "event"])
def test_chromium_shows_the_page_and_its_request_is_printed(mode: str, framing: str) -> None:
    """The lecture's third way to try the server; there the browser waits for ever."""
    chromium = peer_program("chromium")
    profile = tempfile.mkdtemp(prefix="stdserve-chromium-")
    try:
        with ServerProcess("--mode", mode, "--framing", framing) as server:
            url = f"http://127.0.0.1:{server.port}/"
            dump = [chromium, *CHROMIUM, f"--user-data-dir={profile}", "--dump-dom", url]
            shown = subprocess.run(dump, capture_output=True, timeout=60).stdout
            assert b"printed your browser's request" in shown
            assert b"GET / HTTP/1.1" in server.output
            assert b"User-Agent: " in server.output
    finally:
        shutil.rmtree(profile, ignore_errors=True)


def test_the_one_liner_that_the_server_proposes_works() -> None:
    """Each of the ways it tells on stderr is tried as printed (telnet and a browser are tried above)."""
    with ServerProcess() as server:
        line = server.wait_for_log(r'^  python -c "(.*)"$')[1]
        subprocess.run([sys.executable, "-c", line], timeout=DEADLINE, check=True)
        server.wait_for_output(b"ping\n")
        words = server.wait_for_log(r"^  python (-m stdserve\.client .*)$")[1].split()
        subprocess.run([sys.executable, *words], timeout=DEADLINE, check=True, cwd=server.folder)
        server.wait_for_output(b"ping\nping\n")
        assert server.wait_for_log(r"^  telnet 127\.0\.0\.1 (\d+)$")[1] == str(server.port)
        assert server.wait_for_log(r"^  a browser: http://127\.0\.0\.1:(\d+)$")[1] == str(server.port)
