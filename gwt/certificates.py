"""
Certificates: made for development, loaded from PEM files, accepted by their hash. Floor 3.

Nothing here knows a connection: bytes of a certificate come in, an answer or a CertificateError
comes out. Verifying a chain up to an authority, and the name in it, is TLS's work, not ours.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import os
import re
import ssl
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import certifi
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes as digests
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .errors import CertificateError, ConfigError
from .protocol.quictrust import Authorities

__all__ = [
    "Certificate",
    "PrivateKey",
    "authorities",
    "check_authorities",
    "check_pinned",
    "generate",
    "load",
    "matches",
    "write",
]

PrivateKey: TypeAlias = (
    ec.EllipticCurvePrivateKey
    | rsa.RSAPrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)

# W3C WebTransport, "custom certificate requirements": a certificate that is named in
# serverCertificateHashes may be valid for at most two weeks. RFC 5280 4.1.2.5 counts both ends
# in, hence the second.
_LONGEST = timedelta(days=14) - timedelta(seconds=1)

# Peers whose clock is a little behind ours must not find the certificate "not yet valid".
_CLOCK_SKEW = timedelta(hours=1)

_CERTIFICATE_PEM = b"-----BEGIN CERTIFICATE-----"
_CERTIFICATES_PEM = re.compile(
    rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL
)
_KEY_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)


@dataclass(frozen=True, slots=True, repr=False)
class Certificate:
    """A certificate with its private key, and the authorities between it and a root."""

    certificate: x509.Certificate
    private_key: PrivateKey
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def der(self) -> bytes:
        """The certificate as it goes over the wire."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def sha256(self) -> str:
        """SHA-256 of the DER form in hex: what ``serverCertificateHashes`` compares."""
        return hashlib.sha256(self.der).hexdigest()

    @property
    def spki_sha256_base64(self) -> str:
        """SHA-256 of the public key, as Chromium's --ignore-certificate-errors-spki-list wants."""
        return base64.b64encode(hashlib.sha256(_spki(self.certificate)).digest()).decode("ascii")

    def pem(self) -> tuple[bytes, bytes]:
        """Return the certificate with its chain, and the unencrypted private key, both as PEM."""
        certificates = b"".join(
            each.public_bytes(Encoding.PEM) for each in (self.certificate, *self.chain)
        )
        key = self.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return certificates, key

    def __repr__(self) -> str:
        until = self.certificate.not_valid_after_utc.isoformat(sep=" ", timespec="seconds")
        return f"<Certificate {self.certificate.subject.rfc4514_string()} until {until}>"


def generate(
    hosts: str | Sequence[str] = ("localhost", "127.0.0.1", "::1"),
    *,
    days: float = 13,
    now: datetime | None = None,
) -> Certificate:
    """
    Make a self-signed certificate for development, such as browsers accept by its hash.

    That means ECDSA on P-256, and less than 14 days from the first to the last moment of its
    validity, which begins an hour before ``now``. ``hosts`` are names and IP addresses. Raises
    ConfigError for an empty or impossible host and for days outside 0 to 14.
    """
    if not 0 < days <= 14:
        raise ConfigError(
            f"days must be above 0 and at most 14, not {days!r}: browsers accept no longer one.",
            field="days",
            value=days,
        )
    names = [_general_name(host) for host in ([hosts] if isinstance(hosts, str) else hosts)]
    if not names:
        raise ConfigError("hosts must have at least one name.", field="hosts", value=hosts)

    begin = _moment(now) - _CLOCK_SKEW
    end = min(begin + _CLOCK_SKEW + timedelta(days=days), begin + _LONGEST)

    key = ec.generate_private_key(ec.SECP256R1())
    # RFC 5280, upper bounds: a common name has at most 64 characters. Nobody reads it, the names
    # are in the SAN.
    common_name = x509.NameAttribute(NameOID.COMMON_NAME, str(names[0].value)[:64])
    subject = x509.Name([common_name])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .sign(key, digests.SHA256())
    )
    return Certificate(certificate, key)


def load(
    certfile: str | os.PathLike[str], keyfile: str | os.PathLike[str] | None = None
) -> Certificate:
    """
    Read a certificate, its chain and its private key from PEM files.

    The certificate comes first in ``certfile``, its chain after it; without ``keyfile`` the key is
    in the same file. Raises CertificateError, which names the file and what is wrong with it.
    """
    data = _read_pem(certfile)
    if _CERTIFICATE_PEM not in data:
        raise CertificateError(f"{_quote(certfile)} holds no certificate.")
    try:
        certificate, *chain = x509.load_pem_x509_certificates(data)
        public_key = _spki(certificate)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise CertificateError(f"The certificate in {_quote(certfile)} cannot be read.") from exc

    private_key = _load_key(
        certfile if keyfile is None else keyfile, data if keyfile is None else None
    )
    if _public_bytes(private_key) != public_key:
        raise CertificateError(
            f"The private key in {_quote(certfile if keyfile is None else keyfile)} does not match "
            f"the certificate in {_quote(certfile)}."
        )
    return Certificate(certificate, private_key, tuple(chain))


def write(directory: str | os.PathLike[str], certificate: Certificate) -> tuple[Path, Path]:
    """
    Write cert.pem and key.pem into a directory, which is made if need be; return their paths.

    The key can be read by its owner only. Each file is replaced whole, so that no reader meets
    half of one. Raises OSError, which names the file.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    certfile, keyfile = folder / "cert.pem", folder / "key.pem"
    cert_pem, key_pem = certificate.pem()
    _replace(keyfile, key_pem, mode=0o600)
    _replace(certfile, cert_pem, mode=0o644)
    return certfile, keyfile


def check_authorities(cafile: str | os.PathLike[str]) -> None:
    """Raise ConfigError, which names the file, unless certificates to trust can be read from it."""
    try:
        about = os.stat(cafile)
        _read_authorities(os.fspath(cafile), about.st_mtime_ns, about.st_size)
    except ssl.SSLError:
        why = "holds no certificates that can be read"
    except OSError as exc:
        why = f"cannot be read: {exc.strerror}"
    else:
        return
    raise ConfigError(f"cafile {_quote(cafile)} {why}.", field="cafile", value=cafile)


@lru_cache(16)
def _read_authorities(cafile: str, *_version: int) -> None:
    # By the same code of OpenSSL that reads it when a server shows its certificate. Once for each
    # version of a file: a bundle of authorities takes some milliseconds.
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile)


def authorities(cafile: str | os.PathLike[str] | None) -> Authorities | None:
    """Return the certificates of a file, or certifi's; None if it cannot be read now."""
    path = certifi.where() if cafile is None else os.fspath(cafile)
    try:
        about = os.stat(path)
        return _authorities(path, about.st_mtime_ns, about.st_size)
    except OSError:
        return None


@lru_cache(4)
def _authorities(path: str, *_version: int) -> Authorities:
    found = []
    with warnings.catch_warnings():
        # An authority whose serial number is not as RFC 5280 wants it is none of a client's affair.
        warnings.simplefilter("ignore")
        for pem in _CERTIFICATES_PEM.findall(Path(path).read_bytes()):
            # Who leads to one that cannot be read is left to aioquic, and so to OpenSSL.
            with suppress(ValueError):
                found.append(x509.load_pem_x509_certificate(pem))
    return Authorities(found)


def matches(der: bytes, hashes: Sequence[bytes]) -> bool:
    """Tell whether the SHA-256 of a certificate is among some hashes, in constant time."""
    digest = hashlib.sha256(der).digest()
    # A list, not a generator: any() would stop at the first that is equal.
    return any([hmac.compare_digest(digest, each) for each in hashes])


def check_pinned(der: bytes, hashes: Sequence[bytes], now: datetime | None = None) -> None:
    """
    Accept a peer's certificate by its hash instead of by an authority, or raise CertificateError.

    It must be one of ``hashes`` and valid at ``now``. Neither its name nor its issuer counts, as
    in browsers. They also refuse RSA keys and a validity above 14 days, which limit what a leaked
    page or key can do; here whoever holds the hash chose the certificate, so that is left alone.
    """
    if not matches(der, hashes):
        raise CertificateError(
            "The server's certificate matches none of server_certificate_hashes: its SHA-256 is "
            f"{hashlib.sha256(der).hexdigest()}."
        )
    try:
        certificate = x509.load_der_x509_certificate(der)
    except ValueError as exc:
        raise CertificateError("The server's certificate cannot be read.") from exc
    moment = _moment(now)
    if moment < certificate.not_valid_before_utc:
        raise CertificateError(
            f"The server's certificate is not valid before {certificate.not_valid_before_utc}."
        )
    if moment > certificate.not_valid_after_utc:
        raise CertificateError(
            f"The server's certificate expired at {certificate.not_valid_after_utc}."
        )


def _moment(now: datetime | None) -> datetime:
    if now is None:
        now = datetime.now(UTC)
    if now.tzinfo is None:
        raise ConfigError("now must have a time zone.", field="now", value=now)
    # Certificates count whole seconds.
    return now.astimezone(UTC).replace(microsecond=0)


def _general_name(host: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        # The codec passes ASCII on and turns other names into the form that certificates hold.
        name = host.encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    if not name or any(character.isspace() for character in name):
        raise ConfigError(f"{host!r} is not a host name.", field="hosts", value=host)
    return x509.DNSName(name)


def _load_key(path: str | os.PathLike[str], data: bytes | None) -> PrivateKey:
    found = _KEY_PEM.search(_read_pem(path) if data is None else data)
    if found is None:
        raise CertificateError(f"{_quote(path)} holds no private key.")
    try:
        key = load_pem_private_key(found.group() + b"\n", password=None)
    except TypeError as exc:
        raise CertificateError(f"The private key in {_quote(path)} is encrypted.") from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise CertificateError(f"The private key in {_quote(path)} cannot be read.") from exc
    if not isinstance(key, PrivateKey):
        raise CertificateError(
            f"The private key in {_quote(path)} is of a kind that TLS 1.3 cannot use."
        )
    return key


def _read_pem(path: str | os.PathLike[str]) -> bytes:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as exc:
        raise CertificateError(f"{_quote(path)} does not exist.") from exc
    except OSError as exc:
        raise CertificateError(f"{_quote(path)} cannot be read: {exc.strerror}.") from exc
    if b"-----BEGIN " not in data:
        raise CertificateError(f"{_quote(path)} is not a PEM file.")
    return data


def _replace(path: Path, data: bytes, *, mode: int) -> None:
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
        os.replace(temporary, path)
    except OSError as exc:
        if temporary is not None:
            os.unlink(temporary)
        # Not the name of the temporary file, which nobody asked for.
        raise OSError(exc.errno, exc.strerror, str(path)) from exc


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _public_bytes(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _quote(path: str | os.PathLike[str]) -> str:
    return repr(os.fspath(path))
