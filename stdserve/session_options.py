"""The settings of sessions: who may come and where, what a session is, how long it may take. ``options`` has the rest.

It is a room of its own for its length only: see ``options.Options``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property

from .addresses import (
    DEFAULT_PORT,
    LOOPBACK,
    UNIX_MODE,
    Address,
    parse_address,
    parse_port,
)
from .flags import COUNT, TIME, option, parse_count, parse_mode, parse_workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .certificates import Certificates
    from .networks import Rules

__all__ = ["BUILT_IN_MODES", "DEFAULT_MODE", "SessionOptions"]

#: The modes that need not be registered; ``factory.MODES`` has their classes.
BUILT_IN_MODES = ("single", "thread", "fork", "event") if hasattr(os, "fork") else ("single", "thread", "event")

#: The mode where neither an option nor a server class says which.
DEFAULT_MODE = "thread"


# A dataclass for the sake of its fields; all methods are made for the one that is made from it.
@dataclass(init=False, eq=False, repr=False, frozen=True, kw_only=True)
class SessionOptions:
    """The first part of ``Options``, which checks it."""

    port: int = option(
        DEFAULT_PORT,
        help="TCP port, 0 for any free one (default: %(default)s)",
        heads="addresses",
        metavar="PORT",
        parse=parse_port,
        least=0,
        most=65535,
    )
    bind: tuple[str, ...] = option(
        (),
        "-b",
        "--bind",
        help="address to listen on: HOST, HOST:PORT, [V6]:PORT, * or *:PORT (all interfaces, IPv4 and IPv6), unix:PATH,"
        " unix:@NAME, fd://N, systemd or systemd:NAME; repeatable (default: loopback, IPv4 and IPv6)",
        metavar="ADDRESS",
        repeat=True,
    )
    unix_mode: int = option(
        UNIX_MODE,
        "--unix-mode",
        help="who may connect to unix:PATH, as a file mode in octal (default: 600, the server's own user)",
        metavar="MODE",
        parse=parse_mode,
        least=0,
        most=0o777,
    )
    reuse_port: bool = option(
        False,
        "--reuse-port",
        help="let other servers listen on the same TCP port; the kernel spreads clients over them",
    )
    mode: str | None = option(
        None,
        "--mode",
        heads="sessions",
        help="single, thread, fork or event (default: thread, or the mode of the server class that --handler names)",
        metavar="MODE",
    )
    workers: int | None = option(
        None,
        "-w",
        "--workers",
        help="processes that share the listening sockets, each in the chosen mode, and a supervisor that replaces them;"
        " auto: as many as there are usable CPUs (default: none, one process is all)",
        metavar="N",
        parse=parse_workers,
        least=1,
    )
    pin: bool = option(
        False,
        "--pin",
        help="keep each process on one CPU: faster where threads do little but take turns (echo, chat), slower where"
        " they wait for a disk or compute outside of Python (Linux)",
    )
    handler: str = option(
        "stdserve:PrintHandler",
        "--handler",
        help="what to run: module:Class, a request handler or a server class with one, or what makes such a class,"
        " module:function (default: %(default)s)",
        metavar="TARGET",
    )
    wsgi: str | None = option(
        None,
        "--wsgi",
        help="run a WSGI application by HTTP instead of a handler: module:app, or module:make() for what that returns",
        metavar="TARGET",
    )
    framing: str = option(
        "line",
        "--framing",
        help="line: lines end at LF; chunk: each read is one message, the lecture's rule (default: %(default)s)",
        choices=("line", "chunk"),
    )
    once: bool = option(False, "--once", help="serve one client, then end")
    format: str = option(
        "text",
        "--format",
        heads="output",
        help="text: the line; peer: the client's address before it; json: one object a line (default: %(default)s)",
        choices=("text", "peer", "json"),
    )
    output: str | None = option(
        None, "-o", "--output", help="append what clients send to FILE instead of standard output", metavar="FILE"
    )
    raw: bool = option(False, "--raw", help="pass control characters and undecodable bytes through as they came")
    max_line: int = option(
        65536,
        "--max-line",
        heads="limits",
        help="longest line in bytes; a longer one ends its session (default: %(default)s)",
        metavar="BYTES",
        parse=parse_count,
        least=1,
    )
    max_conns: int | None = option(
        None,
        "-m",
        "--max-conns",
        help="sessions at a time in each process; more wait in the backlog"
        " (default: thread 1000, fork 200, event 10000)",
        **COUNT,
    )
    max_conns_per_ip: int | None = option(
        None,
        "--max-conns-per-ip",
        help="sessions at a time from one address (over unix:PATH, of one user); more are refused (default: no limit)",
        **COUNT,
    )
    overflow: str = option(
        "wait",
        "--overflow",
        help="what clients beyond --max-conns get: wait in the backlog, close, or reply with --overflow-message"
        " (default: %(default)s)",
        choices=("wait", "close", "reply"),
    )
    overflow_message: str = option(
        "busy, try again later",
        "--overflow-message",
        help="what a refused client can read (default: %(default)s)",
        metavar="TEXT",
    )
    idle_timeout: float | None = option(
        None,
        "-i",
        "--idle-timeout",
        help="end a session that is silent for this long: 500ms, 5s, 2m, 1h (default: never)",
        **TIME,
    )
    session_timeout: float | None = option(
        None,
        "--session-timeout",
        help="end a session that has lasted this long, whatever it does (default: never)",
        **TIME,
    )
    linger_timeout: float = option(
        2.0,
        "--linger-timeout",
        help="how long a session that is over waits for its client to read the last reply and close (default: 2s)",
        **TIME,
    )
    handshake_timeout: float = option(
        10.0,
        "--handshake-timeout",
        help="how long a client may take for its PROXY header and TLS handshake together (default: 10s)",
        **TIME,
    )
    proxy_protocol: bool = option(
        False,
        "--proxy-protocol",
        heads="access",
        help="every connection begins with a PROXY header, version 1 or 2, that says whose it is",
    )
    proxy_allow_from: tuple[str, ...] = option(
        (),
        "--proxy-allow-from",
        help="network whose PROXY headers are believed, others are refused; repeatable (default: this machine)",
        metavar="CIDR",
        repeat=True,
    )
    allow: tuple[str, ...] = option(
        (), "--allow", help="network to let in, all others are refused; repeatable", metavar="CIDR", repeat=True
    )
    allowfile: tuple[str, ...] = option(
        (), "--allowfile", help="file with a network to let in on each line", metavar="FILE", repeat=True
    )
    deny: tuple[str, ...] = option(
        (), "--deny", help="network to refuse, whatever --allow says; repeatable", metavar="CIDR", repeat=True
    )
    denyfile: tuple[str, ...] = option(
        (), "--denyfile", help="file with a network to refuse on each line", metavar="FILE", repeat=True
    )
    tls_cert: str | None = option(
        None,
        "--tls-cert",
        heads="TLS",
        help="speak TLS, with the certificate in FILE (PEM), its chain after it",
        metavar="FILE",
    )
    tls_key: str | None = option(
        None, "--tls-key", help="the certificate's key (PEM; default: in the same file)", metavar="FILE"
    )
    tls_password_file: str | None = option(
        None, "--tls-password-file", help="file whose first line is the key's password", metavar="FILE"
    )
    tls_client_ca: str | None = option(
        None,
        "--tls-client-ca",
        help="serve only clients with a certificate that one of the CAs in FILE (PEM) has signed",
        metavar="FILE",
    )
    tls_min_version: str = option(
        "1.2", "--tls-min-version", help="oldest TLS version to speak (default: %(default)s)", choices=("1.2", "1.3")
    )
    tls_reload: bool = option(
        False, "--tls-reload", help="read the TLS files again when one of them changes; if they are bad, keep the old"
    )

    @cached_property
    def rules(self) -> Rules | None:
        """The networks that may come in, read from ``allow``, ``deny`` and their files; None: all may.

        Raises StartError for a file that cannot be read, ConfigError for what stands in it.
        """
        if not (self.allow or self.allowfile or self.deny or self.denyfile):
            return None
        from .networks import Rules

        return Rules(self.allow, self.deny, allow_files=self.allowfile, deny_files=self.denyfile)

    @cached_property
    def trusted_proxies(self) -> Rules:
        """The networks whose PROXY headers are believed: this machine, where nothing else is said."""
        from .networks import Rules

        return Rules(self.proxy_allow_from or ("127.0.0.0/8", "::1"))

    @cached_property
    def certificates(self) -> Certificates | None:
        """What the TLS files hold, loaded when first asked for; None without TLS. Raises StartError."""
        if self.tls_cert is None:
            return None
        from .certificates import Certificates, TLSFiles

        files = self.tls_cert, self.tls_key, self.tls_password_file, self.tls_client_ca
        return Certificates(TLSFiles(*files, min_version=self.tls_min_version))

    def load(self) -> None:
        """Read the files that are named, so that what is wrong with them is told now; they are kept."""
        _ = self.rules, self.proxy_protocol and self.trusted_proxies, self.certificates

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where to listen; a ``bind`` without a port takes ``port``, no ``bind`` at all means loopback."""
        if not self.bind:
            return tuple(replace(address, port=self.port) for address in LOOPBACK)
        return tuple(parse_address(text, self.port) for text in self.bind)
