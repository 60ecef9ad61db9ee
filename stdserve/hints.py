"""How to try a server from another terminal: the commands that it proposes when it listens."""

from __future__ import annotations

from shlex import quote

from .options import Options

__all__ = ["ways_to_try"]


def ways_to_try(address: str, options: Options) -> tuple[str, ...]:
    """Return commands, and what to open in a browser, for a server at ``address`` (as ``format_peer`` shows it)."""
    proxied = " --proxy-protocol v2" if options.proxy_protocol else ""
    secure = "" if options.tls_cert is None else f" --tls-ca {quote(options.tls_cert)}"
    if address.startswith("unix:"):
        # There is no host name in the path to verify.
        secure = secure and f"{secure} --tls-name localhost"
        client = f"python -m stdserve.client {quote(address)}{proxied}{secure} ping"
        return (client,) if proxied or secure else _unix_ways(address.removeprefix("unix:"), client)
    host, _, port = address.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    client = f"python -m stdserve.client {host}:{port}{proxied}{secure} ping"
    if proxied:
        return (client,)
    if secure:
        return f"openssl s_client -connect {host}:{port}", client, f"a browser: https://{host}:{port}"
    bare = host.strip("[]")
    return (
        f"telnet {bare} {port}",
        f"python -c \"import socket; socket.create_connection(('{bare}', {port})).sendall(b'ping')\"",
        client,
        f"a browser: http://{host}:{port}",
    )


def _unix_ways(path: str, client: str) -> tuple[str, ...]:
    if path.startswith("@"):
        return client, f"curl --abstract-unix-socket {quote(path[1:])} http://localhost/"
    return f"nc -U {quote(path)}", client, f"curl --unix-socket {quote(path)} http://localhost/"
