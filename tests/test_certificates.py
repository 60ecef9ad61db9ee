"""Contexts from files: what is wrong with a file is said in one line, and a bad pair never takes a good one's place."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
import trustme
from authority import DAY, NOW, Authority
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from stdserve import certificates
from stdserve.certificates import Certificates, TLSFiles, load_context
from stdserve.errors import ConfigError, StartError


def test_a_pair_makes_a_context_for_a_server(authority: Authority) -> None:
    """TLS 1.2 and newer, without what has been attacked; clients need no certificate."""
    context = load_context(authority.pair())
    assert ssl.PROTOCOL_TLS_SERVER == context.protocol
    assert ssl.TLSVersion.TLSv1_2 == context.minimum_version
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert ssl.CERT_NONE == context.verify_mode
    assert 0 == context.num_tickets


def test_the_oldest_version_and_the_clients_authority_can_be_chosen(authority: Authority) -> None:
    """A CA for clients makes a certificate of theirs a condition."""
    files = dataclasses.replace(authority.pair(), client_ca=authority.path, min_version="1.3")
    context = load_context(files)
    assert ssl.TLSVersion.TLSv1_3 == context.minimum_version
    assert ssl.CERT_REQUIRED == context.verify_mode
    assert [files.certfile, files.keyfile, authority.path] == files.paths
    with pytest.raises(ConfigError, match=r"--tls-min-version must be one of 1\.2, 1\.3, not '1\.1'"):
        load_context(dataclasses.replace(files, min_version="1.1"))


def test_the_key_may_stand_in_the_certificates_file(authority: Authority) -> None:
    """As haproxy has it."""
    pair = authority.pair()
    assert pair.keyfile
    both = authority.write(Path(pair.certfile).read_bytes() + Path(pair.keyfile).read_bytes())
    load_context(TLSFiles(str(both)))


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\nanother line\n"])
def test_an_encrypted_key_is_opened_with_the_first_line_of_the_password_file(authority: Authority, end: bytes) -> None:
    """Whatever ends that line; the password may be any bytes but for that."""
    password = "pä ss".encode("latin-1")
    pair = authority.pair(password=password)
    load_context(dataclasses.replace(pair, password_file=str(authority.write(password + end))))


def test_nobody_is_asked_for_a_password_on_the_terminal(authority: Authority) -> None:
    """OpenSSL would."""
    pair = authority.pair(password=b"secret")
    with pytest.raises(StartError, match=r"^the key in '\S+' is encrypted, and there is no password file for it$"):
        load_context(pair)


Spoil = Callable[[Authority, TLSFiles], TLSFiles]


def change(**fields: str | bytes | None) -> Spoil:
    """Put other paths, or paths of files with other bytes in them, in the place of good ones."""

    def spoil(authority: Authority, files: TLSFiles) -> TLSFiles:
        paths = {k: str(authority.write(v)) if isinstance(v, bytes) else v for k, v in fields.items()}
        return dataclasses.replace(files, **paths)  # type: ignore[arg-type]

    return spoil


def other_key(key_type: trustme.KeyType) -> Spoil:
    """Put another pair's key in the place of this one's."""
    return lambda authority, files: dataclasses.replace(files, keyfile=authority.pair(key_type=key_type).keyfile)


def dated(begin: datetime, end: datetime) -> Spoil:
    """Another pair, of this time."""
    return lambda authority, files: authority.pair(not_before=begin, not_after=end)


GARBLED = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
GARBLED_KEY = GARBLED.replace(b"CERTIFICATE", b"PRIVATE KEY")
DATE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
NO_FILE = r"/nowhere': No such file or directory$"


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (change(certfile="/nowhere"), rf"^cannot read the certificate '{NO_FILE}"),
        (change(certfile="/"), r"^cannot read the certificate '/': Is a directory$"),
        (change(certfile="a\0b"), r"^cannot read the certificate 'a\\x00b': embedded null byte$"),
        (change(certfile=b""), r"^'\S+' has no certificate in PEM$"),
        (change(certfile=b"\x30\x82\x01"), r"^'\S+' has no certificate in PEM$"),
        (change(certfile=GARBLED), r"^cannot use the certificate in '\S+' with the key in '\S+': "),
        (change(keyfile="/nowhere"), rf"^cannot read the key '{NO_FILE}"),
        (change(keyfile=None), r"^'\S+' has no private key in PEM$"),
        (change(keyfile=b"key"), r"^'\S+' has no private key in PEM$"),
        (change(keyfile=GARBLED_KEY), r"^cannot use the certificate in '\S+' with the key in '\S+': "),
        (change(password_file="/nowhere"), rf"^cannot read the password file '{NO_FILE}"),
        (change(client_ca="/nowhere"), rf"^cannot read the CA file '{NO_FILE}"),
        (change(client_ca=b"ca"), r"^the CA file '\S+' has no certificate in PEM$"),
        (change(client_ca=GARBLED), r"^cannot use the CA file '\S+': "),
        (other_key(trustme.KeyType.ECDSA), r"^the key in '\S+' does not match the certificate in '\S+'$"),
        (other_key(trustme.KeyType.RSA), r"^the key in '\S+' does not match the certificate in '\S+'$"),
        (dated(NOW - 2 * DAY, NOW - DAY), rf"^the certificate in '\S+' expired on {DATE} UTC$"),
        (dated(NOW + DAY, NOW + 2 * DAY), rf"^the certificate in '\S+' is not valid before {DATE} UTC$"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(authority: Authority, spoil: Spoil, complaint: str) -> None:
    """The file, and its fault."""
    files = spoil(authority, authority.pair())
    with pytest.raises(StartError, match=complaint) as error:
        load_context(files)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("password", [b"", b"wrong", b"x" * 2000])
def test_a_wrong_password_is_called_so(authority: Authority, password: bytes) -> None:
    """Even one that no key could have."""
    files = dataclasses.replace(authority.pair(password=b"secret"), password_file=str(authority.write(password)))
    with pytest.raises(StartError, match=r"^the password in '\S+' does not open the key in '\S+'$"):
        load_context(files)


# The dates of a certificate.

KEY = ec.generate_private_key(ec.SECP256R1())
MOMENTS = st.datetimes(datetime(1950, 1, 1), datetime(9999, 12, 31)).map(lambda moment: moment.replace(microsecond=0))


def certificate(begin: datetime, end: datetime, issuer: str = "x") -> bytes:
    """A self-signed certificate of this time, in DER."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)])
    builder = x509.CertificateBuilder(name, name, KEY.public_key(), x509.random_serial_number(), begin, end)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


@settings(deadline=None)
@given(MOMENTS, MOMENTS, st.text("abc", min_size=1, max_size=64))
def test_the_dates_of_a_certificate_are_read_as_written(one: datetime, other: datetime, issuer: str) -> None:
    """UTCTime up to 2049, GeneralizedTime from then on, wherever they stand."""
    begin, end = sorted((one, other))
    dates = certificates._dates(certificate(begin, end, issuer))
    assert (begin.replace(tzinfo=timezone.utc), end.replace(tzinfo=timezone.utc)) == dates


WHOLE = certificate(datetime(2020, 1, 1), datetime(2050, 1, 1))


@given(st.binary(max_size=100) | st.integers(0, len(WHOLE)).map(lambda size: WHOLE[:size]))
def test_any_other_bytes_have_no_dates(data: bytes) -> None:
    """One error, whatever is wrong."""
    if data != WHOLE:
        try:
            certificates._dates(data)
        except ValueError:
            pass


def test_dates_that_are_no_dates_are_left_to_openssl(authority: Authority) -> None:
    """It took the certificate, and so will clients."""
    certificates._check_dates("path", GARBLED)


# Renewal.


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> TLSFiles:
    """A pair in a place of its own, to be replaced."""
    place = TLSFiles(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    put(authority.pair(), place)
    return place


def put(pair: TLSFiles, place: TLSFiles) -> None:
    """Put other files in the place of these, each at once, as certbot and Kubernetes do."""
    for source, target in zip(pair.paths, place.paths, strict=True):
        shutil.copyfile(source, target + ".new")
        os.replace(target + ".new", target)


def test_a_renewed_pair_takes_the_place_of_the_old_one(
    authority: Authority, files: TLSFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """As a context of its own, with one line in the log."""
    caplog.set_level(logging.INFO)
    held = Certificates(files)
    before = held.context
    assert not held.changed()
    put(authority.pair(), files)
    assert held.changed()
    assert held.reload()
    assert not held.changed()
    assert before is not held.context
    assert [("INFO", f"reload certificate={files.certfile}")] == [(r.levelname, r.message) for r in caplog.records]


def test_a_broken_pair_keeps_the_old_one_and_says_so(
    authority: Authority, files: TLSFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, until a file changes again."""
    held = Certificates(files)
    before = held.context
    Path(files.certfile).write_text("nothing of use")
    assert held.changed()
    assert not held.reload()
    assert not held.changed()
    assert before is held.context
    (record,) = caplog.records
    assert "ERROR" == record.levelname
    assert (
        f"error tls: '{files.certfile}' has no certificate in PEM; the certificate from before stays" == record.message
    )
    put(authority.expired(), files)
    assert not held.reload()
    os.unlink(files.certfile)
    assert held.changed()
    assert not held.reload()
    assert before is held.context
    put(authority.pair(), files)
    assert held.reload()
    assert before is not held.context


def test_the_files_are_looked_at_now_and_then(
    authority: Authority, files: TLSFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for each session, and loaded only if they have changed."""
    monkeypatch.setattr(certificates, "LOOK_SECONDS", 1000.0)
    held = Certificates(files)
    before = held.context
    put(authority.pair(), files)
    assert not held.refresh()
    assert before is held.context
    monkeypatch.setattr(certificates, "LOOK_SECONDS", 0.0)
    assert held.refresh()
    assert before is not held.context
    assert not held.refresh()
    Path(files.certfile).unlink()
    assert not held.refresh()


def test_a_first_pair_that_is_bad_is_an_error(authority: Authority) -> None:
    """There is none to keep."""
    with pytest.raises(StartError, match="expired"):
        Certificates(authority.expired())


def test_a_start_without_tls_does_not_import_ssl() -> None:
    """It takes longer than all that a start needs."""
    code = "import sys, stdserve.cli, stdserve.runner, stdserve.client; sys.exit('ssl' in sys.modules)"
    assert 0 == subprocess.run([sys.executable, "-c", code]).returncode
