"""Classes of others in front of a server's, attributes on it: from code, in every mode, in workers too."""

from __future__ import annotations

import socketserver
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from xmlrpc.server import SimpleXMLRPCDispatcher, SimpleXMLRPCServer

import pytest
from processes import ServerProcess, exchange
from test_mixin import running
from transports import every_mode

from stdserve import (
    ConfigError,
    EchoHandler,
    ServerMixin,
    SingleServer,
    ThreadServer,
    create_server,
    serving,
)
from stdserve.composing import compose

local = partial(create_server, bind="127.0.0.1:0")


class Tells(socketserver.StreamRequestHandler):
    """Says what its server has."""

    def handle(self) -> None:
        server: Any = self.server
        self.wfile.write(f"{server.greeting} {server.greet()}".encode())


class Greets:
    """What a handler may ask of its server."""

    greeting = "nothing"

    def greet(self) -> str:
        return self.greeting.upper()


@every_mode
@pytest.mark.parametrize("workers", [None, 2])
def test_attributes_and_bases_are_there_in_every_process(mode: str, workers: int | None) -> None:
    """In the one that serves, in workers, in forked children."""
    made = {"attributes": {"greeting": "hello"}, "bases": [Greets]}
    with serving(Tells, mode, workers=workers, **made) as server:  # type: ignore[arg-type]
        assert b"hello HELLO" == exchange(server.address, b"")


@pytest.mark.parametrize("workers", ["None", "2"])
def test_serve_takes_them_too(workers: str, tmp_path: Path) -> None:
    """With a handler, and with one that the options name."""
    code = (
        "import socketserver, stdserve, sys\n"
        "class Tells(socketserver.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        self.wfile.write(self.server.greet().encode())\n"
        "class Greets:\n"
        "    def greet(self): return self.greeting.upper()\n"
        "if __name__ == '__main__':\n"
        "    named = stdserve.Options(handler='program:Tells')\n"
        "    handler, options = (Tells, None) if sys.argv[1] == 'class' else (None, named)\n"
        "    stdserve.serve(handler, options, bind='127.0.0.1:0', workers=%s, attributes={'greeting': 'hello'},\n"
        "        bases=[Greets], ready=lambda addresses: print(addresses[0], flush=True))\n" % workers
    )
    (tmp_path / "program.py").write_text(code)
    for how in ("class", "name"):
        with ServerProcess(how, port=None, command=(sys.executable, "program.py"), cwd=tmp_path) as server:
            server.wait_for_output(b"\n")
            address = ("127.0.0.1", int(server.output.split(b":")[1]))
            assert b"HELLO" == exchange(address, b"")
            assert 0 == server.stop()


def test_a_class_that_takes_no_arguments_is_initialised_apart() -> None:
    """As SimpleXMLRPCDispatcher is, also in front of a class of one's own; what is set comes after that."""

    class Calculator(SimpleXMLRPCDispatcher, ThreadServer):
        """No __init__ of its own."""

    for server in (
        local(EchoHandler, bases=[SimpleXMLRPCDispatcher], attributes={"allow_none": True}),
        local(type("Configured", (Calculator,), {"RequestHandlerClass": EchoHandler}), attributes={"allow_none": True}),
    ):
        with running(server):
            dispatcher: Any = server
            assert ({}, True, "utf-8") == (dispatcher.funcs, dispatcher.allow_none, dispatcher.encoding)
            assert b"one\n" == exchange(server.server_address, b"one\n")


def test_a_class_that_passes_on_has_its_part_in_the_constructor() -> None:
    """It sees the arguments, and may stand beside one that takes none, whose super() goes no further."""
    begun = []

    class Passes:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            begun.append(("passes", len(args)))
            super().__init__(*args, **kwargs)

    class TakesNone:
        def __init__(self) -> None:
            super().__init__()
            begun.append(("takes none", 0))

    class TakesNoneEither(TakesNone):
        def __init__(self, word: str = "") -> None:
            super().__init__()
            begun.append(("nor this", 0))

    with local(EchoHandler, bases=[Passes, TakesNoneEither]) as server:
        assert ["TakesNoneEither", "TakesNone", "_Door", "Passes"] == [c.__name__ for c in type(server).__mro__[2:6]]
    assert [("takes none", 0), ("nor this", 0), ("passes", 2)] == begun


def test_a_base_may_override_a_hook() -> None:
    """It stands in front."""

    class Refuses:
        def verify_request(self, request: Any, client_address: Any) -> bool:
            return False

    with running(local(EchoHandler, bases=[Refuses])) as server:
        assert b"" == exchange(server.server_address, b"one\n")


def test_an_init_of_ones_own_is_left_alone() -> None:
    """Whoever writes one calls those that there are."""

    class Calculator(SimpleXMLRPCDispatcher, ThreadServer):
        RequestHandlerClass = EchoHandler

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            ThreadServer.__init__(self, *args, **kwargs)
            SimpleXMLRPCDispatcher.__init__(self, allow_none=True)

    with local(Calculator) as server:
        assert type(server) is Calculator
        assert server.allow_none


@pytest.mark.parametrize("server", [SingleServer, ThreadServer])
def test_a_class_with_nothing_in_front_stays_the_same(server: type[ServerMixin]) -> None:
    """The object has the very class that was asked for."""
    assert compose(server) is server


def test_classes_that_do_not_go_together_are_named() -> None:
    """Before anything listens."""

    class Needs:
        def __init__(self, word: str) -> None: ...

    class Passes:
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    class Wrong(Passes, SimpleXMLRPCDispatcher, ThreadServer):
        RequestHandlerClass = EchoHandler

    for bases, reason in (
        ([Needs], r"Needs cannot be mixed in: its __init__ needs arguments \(missing a required argument: 'word'\)"),
        ([SimpleXMLRPCServer], "SimpleXMLRPCServer cannot be mixed in: its __init__ needs arguments"),
        ([socketserver.BaseServer], "bases BaseServer do not go with ThreadServer: "),
    ):
        with pytest.raises(ConfigError, match=reason):
            local(EchoHandler, bases=bases)
    with pytest.raises(ConfigError, match="Passes would pass its arguments on to SimpleXMLRPCDispatcher, which takes"):
        local(Wrong)


@pytest.mark.parametrize("name", ["sessions", "listeners", "options", "_turn"])
def test_what_is_the_servers_own_cannot_be_set(name: str) -> None:
    """The port is free again."""
    with pytest.raises(ConfigError, match=f"attribute '{name}' is the server's own"):
        local(EchoHandler, attributes={name: 1})


def test_a_start_without_them_imports_nothing_for_them() -> None:
    """Few servers need it."""
    code = (
        "import stdserve, sys\n"
        "stdserve.create_server(port=0).server_close()\n"
        "print('stdserve.composing' in sys.modules)\n"
    )
    assert b"False\n" == subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).stdout
