"""Handlers from PyPI, as they are, in every mode, by their own clients. What each asks of its server is set on it."""

from __future__ import annotations

import struct
from typing import Any

from authority import Authority
from transports import every_mode, every_transport, offered, package


@every_mode
@every_transport
def test_flask_on_werkzeugs_handler(mode: str, transport: str, authority: Authority) -> None:
    """An application with a route, a body that comes in, an error of its own; the scheme is that of the connection."""
    flask, serving = package("flask"), package("werkzeug.serving")
    app = flask.Flask("shop")

    @app.get("/hello/<name>")  # type: ignore[untyped-decorator, unused-ignore]
    def hello(name: str) -> Any:
        return {"hello": name, "scheme": flask.request.scheme}

    @app.post("/sum")  # type: ignore[untyped-decorator, unused-ignore]
    def add() -> str:
        return str(sum(flask.request.get_json()))

    attributes = {
        "app": app,
        "ssl_context": "ours" if transport == "tls" else None,  # it looks whether there is one
        "multithread": mode == "thread",
        "multiprocess": mode == "fork",
        "passthrough_errors": False,
        "log": lambda *_: None,
        "_server_version": "shop",
    }
    with offered(serving.WSGIRequestHandler, mode, transport, authority, attributes=attributes) as server:
        client = server.http()
        client.request("GET", "/hello/you")
        scheme = b"https" if transport == "tls" else b"http"
        assert b'{"hello":"you","scheme":"' + scheme + b'"}\n' == client.getresponse().read()
        client.request("POST", "/sum", b"[1, 2, 3]", {"Content-Type": "application/json"})
        assert b"6" == client.getresponse().read()
        client.request("GET", "/other")
        reply = client.getresponse()
        assert (404, "shop") == (reply.status, reply.headers["Server"].split()[0])
        client.close()


@every_mode
@every_transport
def test_prometheus_client(mode: str, transport: str, authority: Authority) -> None:
    """The smallest: metrics of a registry, read by its own parser."""
    exposition, registry = package("prometheus_client.exposition"), package("prometheus_client").CollectorRegistry()
    package("prometheus_client").Gauge("answer", "To everything.", registry=registry).set(42)
    handler = exposition.MetricsHandler.factory(registry)
    with offered(handler, mode, transport, authority) as server:
        client = server.http()
        client.request("GET", "/metrics")
        (family,) = package("prometheus_client.parser").text_string_to_metric_families(
            client.getresponse().read().decode()
        )
        client.close()
        assert ("answer", 42.0) == (family.name, family.samples[0].value)


@every_mode
@every_transport
def test_hl7apy(mode: str, transport: str, authority: Authority) -> None:
    """A message of HL7 by MLLP, answered by the handler for its type; the handler closes the socket itself."""
    mllp = package("hl7apy.mllp")

    class Answers(mllp.AbstractHandler):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self, message: str, word: str) -> None:
            super().__init__(message)
            self.word = word

        def reply(self) -> str:
            return f"\x0b{self.word} {len(self.incoming_message)}\x1c\r"

    handlers = {"QBP^Q22^QBP_Q21": (Answers, "well")}
    attributes = {"handlers": handlers, "timeout": 10}
    message = "MSH|^~\\&|REC APP|REC FAC|SEND APP|SEND FAC|20110708163513||QBP^Q22^QBP_Q21|111069|D|2.5||||||\rQPD|1\r"
    with (
        offered(mllp.MLLPRequestHandler, mode, transport, authority, attributes=attributes) as server,
        server.connect() as client,
    ):
        client.sendall(b"\x0b" + message.encode() + b"\x1c\r")
        assert f"\x0bwell {len(message)}\x1c\r".encode() == client.recv(1000)


@every_mode
@every_transport
def test_dnslib(mode: str, transport: str, authority: Authority) -> None:
    """A question and its answer over TCP; over TLS that is DNS over TLS (RFC 7858)."""
    dnslib, server_of = package("dnslib"), package("dnslib.server")

    class Resolver:
        def resolve(self, request: Any, handler: Any) -> Any:
            reply = request.reply()
            reply.add_answer(*dnslib.RR.fromZone(f"{request.q.qname} 60 A 192.0.2.7"))
            return reply

    attributes = {"resolver": Resolver(), "logger": server_of.DNSLogger("-")}
    with offered(server_of.DNSHandler, mode, transport, authority, attributes=attributes) as server:
        question = dnslib.DNSRecord.question("example.org")
        if transport == "tcp":
            packed = question.send(*server.address, tcp=True, timeout=10)
        else:
            with server.connect() as client, client.makefile("rb") as reader:
                client.sendall(struct.pack("!H", len(question.pack())) + question.pack())
                packed = reader.read(*struct.unpack("!H", reader.read(2)))
        answer = dnslib.DNSRecord.parse(packed)
        assert ("192.0.2.7", question.header.id) == (str(answer.short()), answer.header.id)


@every_mode
@every_transport
def test_websocket_server(mode: str, transport: str, authority: Authority) -> None:
    """Handshake, messages short and long, a ping, the end. Its own TLS is plain text from 3.12 on; ours is TLS."""
    websocket = package("websocket")

    class Told:
        """The methods that the handler calls on its server."""

        key = cert = None

        def _new_client_(self, handler: Any) -> None:
            handler.send_message("welcome")

        def _client_left_(self, handler: Any) -> None: ...

        def _message_received_(self, handler: Any, text: str) -> None:
            handler.send_message(text.upper())

        def _ping_received_(self, handler: Any, data: bytes) -> None:
            handler.send_pong(data)

        def _pong_received_(self, handler: Any, data: bytes) -> None: ...

    handler = package("websocket_server.websocket_server").WebSocketHandler
    with offered(handler, mode, transport, authority, bases=(Told,)) as server:
        if transport == "unix":
            client = websocket.create_connection("ws://localhost/", socket=server.connect())
        else:
            scheme = "wss" if transport == "tls" else "ws"
            client = websocket.create_connection(
                f"{scheme}://localhost:{server.address[1]}/", timeout=30, sslopt={"ca_certs": authority.path}
            )
        assert "welcome" == client.recv()
        for text in ("hello", "x" * 70_000):
            client.send(text)
            assert text.upper() == client.recv()
        client.ping("here?")
        assert (websocket.ABNF.OPCODE_PONG, b"here?") == client.recv_data(control_frame=True)
        client.close()
