"""The factory: a mode by its word, a handler by its name, settings by theirs."""

from __future__ import annotations

import re

import pytest
from processes import exchange
from test_mixin import running

from stdserve import (
    MODES,
    ConfigError,
    EchoHandler,
    EventServer,
    ForkServer,
    Options,
    PrintHandler,
    ServerMixin,
    SingleServer,
    StartError,
    ThreadServer,
    create_server,
    register_mode,
)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("single", SingleServer), ("thread", ThreadServer), ("fork", ForkServer), ("event", EventServer)],
)
def test_a_mode_is_a_word(mode: str, expected: type[ServerMixin]) -> None:
    """And the server it makes is listening."""
    with create_server(EchoHandler, mode, bind="127.0.0.1:0") as server:
        assert type(server) is expected
        assert server.server_address[1] > 0
    assert type(server) is MODES[mode]


def test_thread_is_the_default_and_options_may_come_whole() -> None:
    """Settings go on top of them."""
    with create_server(bind="127.0.0.1:0") as server:
        assert (ThreadServer, PrintHandler) == (type(server), server.RequestHandlerClass)
    with create_server(options=Options(mode="single", max_line=7), bind=["127.0.0.1:0"]) as server:
        assert (SingleServer, 7) == (type(server), server.options.max_line)


def test_an_unknown_mode_names_the_known_ones() -> None:
    """As a ConfigError, which is a ValueError."""
    with pytest.raises(ValueError, match="--mode must be one of single, thread, fork, event, not 'gevent'"):
        create_server(mode="gevent")


def test_an_unknown_setting_is_named() -> None:
    """Not passed over."""
    with pytest.raises(ConfigError, match="colour"):
        create_server(colour="red")


def test_a_mode_of_ones_own_can_be_registered() -> None:
    """And is then made like any other."""

    class Mine(ThreadServer):
        pass

    register_mode("mine", Mine)
    try:
        with running(create_server(EchoHandler, "mine", bind="127.0.0.1:0")) as server:
            assert isinstance(server, Mine)
            assert b"one\n" == exchange(server.server_address, b"one\n")
    finally:
        del MODES["mine"]


@pytest.mark.parametrize("wrong", [object, 7])
def test_what_is_no_server_class_cannot_be_registered(wrong: object) -> None:
    """It says what is needed."""
    with pytest.raises(ConfigError, match="mode 'x' needs a subclass of ServerMixin"):
        register_mode("x", wrong)  # type: ignore[arg-type]


def test_a_constructor_that_fails_leaves_no_listener_open() -> None:
    """The error is the constructor's; the port is free again."""

    class Fails(ThreadServer):
        def __init__(self, *args: object, **kwargs: object) -> None:
            raise LookupError

    register_mode("fails", Fails)
    try:
        with pytest.raises(LookupError):
            create_server(mode="fails", bind="127.0.0.1:0")
    finally:
        del MODES["fails"]


def test_an_address_that_cannot_be_had_is_a_start_error() -> None:
    """With the address in it."""
    with pytest.raises(StartError, match=re.escape("192.0.2.1:0")):
        create_server(bind="192.0.2.1:0")
