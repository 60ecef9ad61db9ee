"""A certificate authority for tests: pairs of files in PEM, and contexts of clients that trust them."""

from __future__ import annotations

import itertools
import ssl
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives import serialization

from stdserve.certificates import TLSFiles

NOW = datetime.now(timezone.utc)
DAY = timedelta(days=1)


class Authority:
    """A CA whose certificate is in the file ``path``; what it signs is written to files beside it."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self._number = itertools.count()
        self.path = str(self.write(self._ca.cert_pem.bytes()))

    def write(self, data: bytes) -> Path:
        """Put ``data`` into a file of its own."""
        path = self._folder / f"{next(self._number)}.pem"
        path.write_bytes(data)
        return path

    def issue(self, *names: str, **subject: Any) -> trustme.LeafCert:
        """Sign a certificate for ``names`` (localhost and 127.0.0.1 if there are none)."""
        return self._ca.issue_cert(*(names or ("localhost", "127.0.0.1")), **subject)

    def pair(self, *names: str, password: bytes | None = None, **subject: Any) -> TLSFiles:
        """Sign a certificate and write it and its key, encrypted if there is a password, to files."""
        leaf = self.issue(*names, **subject)
        key = leaf.private_key_pem.bytes()
        if password is not None:
            loaded = serialization.load_pem_private_key(key, None)
            pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
            key = loaded.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(password))
        certificate = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        return TLSFiles(str(self.write(certificate)), str(self.write(key)))

    def expired(self) -> TLSFiles:
        """A pair whose time is over."""
        return self.pair(not_before=NOW - 2 * DAY, not_after=NOW - DAY)

    def client(self, own: TLSFiles | None = None, version: str | None = None) -> ssl.SSLContext:
        """The standard library's context for a client, with a certificate of its own, of one version ("1.2")."""
        context = ssl.create_default_context(cafile=self.path)
        if own is not None:
            context.load_cert_chain(own.certfile, own.keyfile)
        if version is not None:
            context.minimum_version = context.maximum_version = ssl.TLSVersion[f"TLSv{version.replace('.', '_')}"]
        return context
