"""The command line, with TLS as a user of the room ``tls`` gives it to the three servers.

A stand-in until the core does it itself: then ``test_faults_tls.serve_tls`` starts ``-m stdserve``, and this goes.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
import time
from typing import Any

from stdserve.certificates import Certificates, TLSFiles
from stdserve.cli import main
from stdserve.errors import PeerError
from stdserve.factory import MODES, register_mode
from stdserve.mixin import ServerMixin
from stdserve.tls import TLSSocket, wrap

log = logging.getLogger("stdserve")


class TLSMixin(ServerMixin):
    """Certificates at the start and before each session, the handshake in the session, close_notify at its end."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        options = self.options
        assert options.tls_cert is not None
        files = (options.tls_cert, options.tls_key, options.tls_password_file, options.tls_client_ca)
        self.certificates = Certificates(TLSFiles(*files, min_version=options.tls_min_version))
        signal.signal(signal.SIGHUP, lambda *_: self.certificates.reload())

    def get_request(self) -> tuple[socket.socket, Any]:
        request, client_address = super().get_request()
        if self.options.tls_reload:
            self.certificates.refresh()
        return wrap(request, self.certificates.context), client_address

    def finish_request(self, request: Any, client_address: Any) -> None:
        assert isinstance(request, TLSSocket)
        request.handshake(time.monotonic() + self.options.handshake_timeout)
        log.info("tls %s subject=%s", request.version(), request.subject)
        super().finish_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        request.close_notify(time.monotonic() + self.options.linger_timeout)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, PeerError):
            log.info("reject reason=%s: %s", error.reason, error)
        else:
            super().handle_error(request, client_address)


if __name__ == "__main__":
    for mode, server in list(MODES.items()):
        register_mode(mode, type(server.__name__, (TLSMixin, server), {}))
    raise SystemExit(main())
