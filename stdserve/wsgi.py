"""WSGI applications, by the standard library's own handler: what that asks its server for, true to the mode.

It speaks HTTP/1.0, a connection for each request. Imported where WSGI is asked for, and only there: see ``loading``.
PEP 3333 is the contract between the server and the application.
"""

from __future__ import annotations

import inspect
import logging
from functools import cached_property
from wsgiref.simple_server import WSGIRequestHandler

from .addresses import format_peer
from .errors import ConfigError
from .logs import Event
from .targets import find_target, kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .options import Options

__all__ = ["ApplicationMixin", "WSGIHandler", "load_application"]

_log = logging.getLogger("stdserve")


class WSGIHandler(WSGIRequestHandler):
    """The standard library's handler, whose lines go to our log."""

    def log_message(self, format: str, *args: Any) -> None:
        """Log a request, or what is wrong with one, as an event "request"."""
        _log.info(Event("request", format % args, peer=format_peer(self.client_address)))


class ApplicationMixin:
    """What stands in front of a server class whose handler is a WSGIRequestHandler: ``wsgiref``'s WSGIServer has it.

    ``application`` is what to run; set it, on the class or the server, or call ``set_app``. What its environ says of
    threads, processes and the scheme is true of this server. Over a UNIX socket REMOTE_ADDR is ``unix:uid=1000``, as in
    the log, and SERVER_NAME is localhost: PEP 3333 wants it not to be empty.
    """

    application: Callable[..., Iterable[bytes]] | None = None

    if TYPE_CHECKING:  # what the server has besides
        options: Options
        server_name: str
        server_port: int
        forks: bool
        inline: bool

    def set_app(self, application: Callable[..., Iterable[bytes]]) -> None:
        """Run ``application`` from now on."""
        self.application = application

    def get_app(self) -> Callable[..., Iterable[bytes]]:
        """Return what calls the application for one request."""
        return self._run_application

    def _run_application(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # The handler says no to both, whatever its server does.
        environ["wsgi.multithread"] = not (self.forks or self.inline)
        environ["wsgi.multiprocess"] = self.forks or self.options.supervised
        if self.application is None:
            raise ConfigError("there is no application: set the server's attribute of that name")
        return self.application(environ, start_response)

    @cached_property
    def base_environ(self) -> dict[str, str]:
        """What the environ of every request begins with."""
        secure = self.options.tls_cert is not None
        environ = {
            "SERVER_NAME": self.server_name,
            "SERVER_PORT": str(self.server_port or (443 if secure else 80)),
            "GATEWAY_INTERFACE": "CGI/1.1",
            "REMOTE_HOST": "",
            "CONTENT_LENGTH": "",
            "SCRIPT_NAME": "",
        }
        # wsgiref makes wsgi.url_scheme of it, as CGI servers do.
        return {**environ, "HTTPS": "on"} if secure else environ


def load_application(target: str) -> Callable[..., Iterable[bytes]]:
    """Return the WSGI application that ``--wsgi`` names, or that its call returns; ConfigError if it can be none."""
    found, (where, name) = find_target(target, "--wsgi", "module:app"), (f"--wsgi {target}", target.partition(":")[2])
    if not callable(found):
        raise ConfigError(f"{where}: {name} is no WSGI application: it is {kind_of(found)}")
    try:
        signature = inspect.signature(found)
        signature.bind({}, print)
    except ValueError:
        pass  # some of those in C do not tell
    except TypeError:
        hint = "" if signature.parameters else f"; for the one that it returns: --wsgi {target}()"
        told = f"it takes {signature}, not (environ, start_response)"
        raise ConfigError(f"{where}: {name} is no WSGI application: {told}{hint}") from None
    application: Callable[..., Iterable[bytes]] = found
    return application
