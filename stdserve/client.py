"""The client's command line: ``python -m stdserve.client ADDRESS [MESSAGE ...]`` sends lines, shows the replies.

It ends with the server's own end: exit code 0 means that the server has finished what was sent. An error is one line
on stderr, the text of its exception: ``connect timeout``, ``connection refused``, ``connect error: ...``, ``send data
timeout: ...``, ``send data error: ...``, ``output error: ...`` (exit code 1), wrong usage (2).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .addresses import parse_address
from .connection import Client, as_line
from .errors import ConfigError, OutputError, StartError, StdserveError
from .terminal import say, settle
from .transfer import Input, Transfer

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    import ssl
    from typing import NoReturn

__all__ = ["main"]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raise ConfigError for one that is wrong."""
    import argparse  # only the command line needs these

    from .flags import parse_duration

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(message.replace(", MESSAGE", "") + " (see --help)")  # intermixed parsing requires it

    def duration(text: str) -> float:
        try:
            return parse_duration(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    codes = "Exit codes: 0 the server has finished what was sent, 1 it has not, 2 usage, 130 interrupted."
    parser = Parser("python -m stdserve.client", description="Send lines, show the replies.", epilog=codes)
    add = parser.add_argument
    add("address", metavar="ADDRESS", help="HOST:PORT, [V6]:PORT, HOST, unix:PATH or unix:@NAME")
    add("messages", metavar="MESSAGE", nargs="*", help="a line to send; none: standard input is sent as it comes")
    add("--connect-timeout", metavar="SECONDS", type=duration, default=5.0, help="(%(default)g; also 500ms, 2m, 1h)")
    add("--read-timeout", metavar="SECONDS", type=duration, help="for the server to take, reply, finish (no limit)")
    _add_tls(parser)
    proxy = parser.add_argument_group("PROXY protocol", "What a proxy says of its client, first of all.").add_argument
    proxy("--proxy-protocol", choices=["v1", "v2"], help="send a header of this version")
    proxy("--proxy-source", metavar="IP:PORT", help="the client's address in it (that of this connection)")
    # Intermixed, or argparse would give no MESSAGE to "ADDRESS --read-timeout 2 MESSAGE".
    return parser.parse_intermixed_args(argv)


def _add_tls(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("TLS", "Each of these asks for it, as --tls does.")
    add, trust = group.add_argument, group.add_mutually_exclusive_group().add_argument
    add("--tls", action="store_true", help="verify the server by its name and the CAs of the system")
    trust("--tls-ca", metavar="FILE", help="verify it by the CAs in FILE (PEM) instead")
    trust("--tls-insecure", action="store_true", help="do not verify it: whoever answers can read everything")
    add("--tls-name", metavar="NAME", help="the server's name where it is not the HOST")
    add("--tls-cert", metavar="FILE", help="the client's own certificate, for servers that want one (PEM)")
    add("--tls-key", metavar="FILE", help="its key (in the same file)")


def _context(given: argparse.Namespace) -> ssl.SSLContext | None:
    """Return what the options about TLS ask for; as with ncat, each of them asks for TLS, too."""
    if given.tls_key and not given.tls_cert:
        raise ConfigError("--tls-key needs --tls-cert")
    asked = given.tls, given.tls_ca, given.tls_insecure, given.tls_cert, given.tls_name is not None
    if not any(asked):
        return None
    from .certificates import client_context  # it imports ssl, a quarter of a start

    return client_context(given.tls_ca, given.tls_insecure, given.tls_cert, given.tls_key)


def _source(given: argparse.Namespace) -> tuple[str, int] | None:
    """Return the address of the client that a proxy is to tell of, None for our own."""
    if given.proxy_source is None:
        return None
    if given.proxy_protocol is None:
        raise ConfigError("--proxy-source needs --proxy-protocol")
    address = parse_address(given.proxy_source, default_port=0)
    return address.host, address.port


def _run(given: argparse.Namespace) -> None:
    if not sys.stdout:  # the socket would get its number, and the server its own replies
        raise OutputError("output error: standard output is closed")
    if not given.messages and not sys.stdin:
        raise ConfigError("there is no MESSAGE to send, and standard input is closed")
    with Client(
        given.address,
        tls=_context(given),
        tls_name=given.tls_name,
        proxy_protocol=given.proxy_protocol,
        proxy_source=_source(given),
        connect_timeout=given.connect_timeout,
        read_timeout=given.read_timeout,
    ) as client:
        data = b"".join(map(as_line, given.messages))
        standard_input = None if given.messages else Input(sys.stdin.fileno())
        Transfer(client.sock, sys.stdout.fileno(), data, standard_input, client.read_timeout).run()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the client's command line (``sys.argv`` by default) and return its exit code; errors go to stderr."""
    try:
        _run(_parse(argv))
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells count
    except (StdserveError, OSError) as error:  # OSError: no descriptors left
        say(f"{error}\n")
        return 2 if isinstance(error, ConfigError | StartError) else 1  # the latter for a file that an option names
    finally:
        settle()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
