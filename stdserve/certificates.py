"""TLS contexts: made from files that are checked first, and replaced by better ones while the server runs.

Imported where TLS is asked for, and only there: ``ssl`` takes longer to import than all that a start needs.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timezone

from .errors import ConfigError, StartError
from .logs import Event

__all__ = ["PLAIN_EOF", "Certificates", "TLSFiles", "client_context", "load_context"]

_log = logging.getLogger("stdserve")

#: Seconds from one look at the files to the next, see ``Certificates.refresh``.
LOOK_SECONDS = 2.0

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

#: OpenSSL 3 takes an EOF without close_notify, which ends the reads of every draining session, for a fatal error after
#: which nothing can be sent: the last replies would be lost. Earlier versions have neither the fault nor the option.
PLAIN_EOF = getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)

_CERTIFICATE = re.compile(b"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_KEY = re.compile(b"-----BEGIN [A-Z ]*PRIVATE KEY-----")

#: What OpenSSL calls a key that is not the certificate's; the last two are for one of another kind (RSA, EC).
_MISMATCH = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}

#: Tags in DER: [0] of a certificate, and a time in 13 characters.
_VERSION_TAG, _UTC_TIME = 0xA0, 0x17


@dataclass(frozen=True)
class TLSFiles:
    """What a server's TLS is made of: paths of files in PEM, and the oldest version spoken ("1.2" or "1.3").

    ``certfile`` is the certificate with its chain after it, ``keyfile`` its key (None: it is in ``certfile`` too),
    ``password_file`` has the key's password in its first line, ``client_ca`` are the CAs one of which must have signed
    the certificate that each client then has to have.
    """

    certfile: str
    keyfile: str | None = None
    password_file: str | None = None
    client_ca: str | None = None
    min_version: str = "1.2"

    @property
    def paths(self) -> list[str]:
        """All the files."""
        return [path for path in (self.certfile, self.keyfile, self.password_file, self.client_ca) if path]


def load_context(files: TLSFiles) -> ssl.SSLContext:
    """Return a context for a server, of Python's own choice of ciphers, without compression and renegotiation.

    Raises StartError, in one line, for a file that cannot be read or is not in PEM, a key that does not match, a
    password that is wrong or missing (nobody is asked on the terminal), a certificate whose time is over or has not
    come; ConfigError for a version that is none of the two.

    There are no session tickets: TLS 1.3 sends them unasked, and a client that only writes does not read them, so
    that the kernel answers its close with a RST and throws away what is still on its way (81,920 of 2,000,000 bytes
    arrived). What they would save is one signature for a client that comes again.
    """
    if files.min_version not in _VERSIONS:
        raise ConfigError(f"--tls-min-version must be one of {', '.join(_VERSIONS)}, not {files.min_version!r}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[files.min_version]
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | PLAIN_EOF
    context.num_tickets = 0
    _load_pair(context, files.certfile, files.keyfile, files.password_file)
    if files.client_ca is not None:
        _load_authorities(context, files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(
    ca_file: str | None = None, insecure: bool = False, cert: str | None = None, key: str | None = None
) -> ssl.SSLContext:
    """Return a context for a client that trusts the CAs in ``ca_file`` (None: the system's), or anyone if ``insecure``.

    ``cert`` and ``key`` are its own certificate as in :class:`TLSFiles`. Raises StartError as ``load_context`` does.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A server shall not make a call that sends wait for one that receives.
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_file is None:
        context.load_default_certs()
    else:
        _load_authorities(context, ca_file)
    if cert is not None:
        _load_pair(context, cert, key, None)
    return context


class Certificates:
    """The context that new sessions take: ``context``; replaced as a whole, and sessions keep what they began with.

    Making it raises what ``load_context`` raises. All methods may be called from any thread and from a signal
    handler. Forked processes each have, and reload, their own.
    """

    def __init__(self, files: TLSFiles) -> None:
        self.files = files
        self._lock = threading.RLock()
        self._seen = self._look()
        self._looked = time.monotonic()
        self.context = load_context(files)

    def reload(self) -> bool:
        """Read the files again, whether they have changed or not; keep what there is and log it if they are bad."""
        with self._lock:
            self._seen = self._look()  # before they are read: what changes meanwhile counts as a change
            try:
                self.context = load_context(self.files)
            except StartError as error:
                _log.error(Event("error", f"tls: {error}; the certificate from before stays"))
                return False
        _log.info(Event("reload", certificate=self.files.certfile))
        return True

    def changed(self) -> bool:
        """Tell whether a file is not the one that was read last (or that failed to load last)."""
        return self._look() != self._seen

    def refresh(self) -> bool:
        """Reload if a file has changed, with a look at them at most every LOOK_SECONDS; True if the context is new.

        To be called before each session: a server without clients needs no new certificate.
        """
        now = time.monotonic()
        with self._lock:
            if now - self._looked < LOOK_SECONDS:
                return False
            self._looked = now
            return self.changed() and self.reload()

    def _look(self) -> list[tuple[int, ...] | None]:
        return [_identity(path) for path in self.files.paths]


def _identity(path: str) -> tuple[int, ...] | None:
    """Return what is different of a file that has been written or put in the place of another; None if it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev


def _read(path: str, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:  # the latter for a path with a NUL
        raise StartError(f"cannot read the {what} {path!r}: {getattr(error, 'strerror', None) or error}") from None


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    if not _CERTIFICATE.search(_read(path, "CA file")):
        raise StartError(f"the CA file {path!r} has no certificate in PEM")
    try:
        context.load_verify_locations(path)
    except OSError as error:
        raise StartError(f"cannot use the CA file {path!r}: {error}") from None


def _load_pair(context: ssl.SSLContext, certfile: str, keyfile: str | None, password_file: str | None) -> None:
    """Load a certificate and its key; say which of the two is at fault, and how."""
    key = certfile if keyfile is None else keyfile
    certificate = _CERTIFICATE.search(_read(certfile, "certificate"))
    if not certificate:
        raise StartError(f"{certfile!r} has no certificate in PEM")
    if not _KEY.search(_read(key, "key")):
        raise StartError(f"{key!r} has no private key in PEM")
    password = None if password_file is None else _read(password_file, "password file").split(b"\n")[0].rstrip(b"\r")
    asked = False

    def answer() -> bytes:
        nonlocal asked
        asked = True
        if password is None:
            raise StartError(f"the key in {key!r} is encrypted, and there is no password file for it")
        return password

    try:
        context.load_cert_chain(certfile, key, answer)
    except (OSError, ValueError) as error:  # the latter for a password that is too long
        if getattr(error, "reason", None) in _MISMATCH:
            raise StartError(f"the key in {key!r} does not match the certificate in {certfile!r}") from None
        if asked:
            raise StartError(f"the password in {password_file!r} does not open the key in {key!r}") from None
        raise StartError(f"cannot use the certificate in {certfile!r} with the key in {key!r}: {error}") from None
    _check_dates(certfile, certificate[0])


def _check_dates(path: str, certificate: bytes) -> None:
    """Raise StartError for a certificate that every client would refuse today; its chain is the clients' to judge."""
    try:
        begin, end = _dates(ssl.PEM_cert_to_DER_cert(certificate.decode()))
    except ValueError:
        return  # OpenSSL has taken it, and knows more ways to write a date than RFC 5280 allows
    now = datetime.now(timezone.utc)
    if now < begin:
        raise StartError(f"the certificate in {path!r} is not valid before {begin:%Y-%m-%d %H:%M:%S} UTC")
    if now > end:
        raise StartError(f"the certificate in {path!r} expired on {end:%Y-%m-%d %H:%M:%S} UTC")


def _dates(certificate: bytes) -> tuple[datetime, datetime]:
    """Return the first and the last moment of a certificate in DER; raise ValueError if it is none.

    The standard library tells the dates of a peer's certificate and of a CA's, but not of one's own. They stand at
    a fixed place (RFC 5280, 4.1): version if not 1, serial number, signature algorithm, issuer, validity.
    """
    try:
        fields = list(_elements(_elements(_elements(certificate)[0][1])[0][1]))
        validity = fields[4 if fields[0][0] == _VERSION_TAG else 3][1]
        begin, end = (_moment(tag, text.decode("ascii")) for tag, text in _elements(validity))
    except IndexError:
        raise ValueError("not a certificate in DER") from None
    return begin, end


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """Return tag and content of each element in ``der`` (X.690, 8.1 and 10.1); raise IndexError if it is cut off."""
    found, at = [], 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length > 127:
            size = length - 128
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        found.append((tag, der[at : at + length]))
        at += length
    return found


def _moment(tag: int, text: str) -> datetime:
    if tag == _UTC_TIME:  # two digits of the year, from 1950 to 2049 (RFC 5280, 4.1.2.5.1)
        text = ("20" if text < "50" else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)
