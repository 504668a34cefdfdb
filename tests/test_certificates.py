"""Certificates: made, loaded with clear errors, written safely, accepted by hash."""

from __future__ import annotations

import hashlib
import ssl
import stat
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from aioquic.tls import verify_certificate
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from gwt import certificates
from gwt.errors import CertificateError, ConfigError

NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def certificate() -> certificates.Certificate:
    return certificates.generate(now=NOW)


def _names(certificate: certificates.Certificate) -> list[object]:
    extension = certificate.certificate.extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    return [each.value for each in extension.value]


def test_generated_certificate_is_what_browsers_accept_by_hash(certificate):
    made = certificate.certificate
    assert isinstance(made.public_key(), ec.EllipticCurvePublicKey)
    assert isinstance(made.public_key().curve, ec.SECP256R1)
    assert made.version is x509.Version.v3
    assert made.not_valid_before_utc == NOW - timedelta(hours=1)
    assert made.not_valid_after_utc == NOW + timedelta(days=13)
    assert _names(certificate) == ["localhost", ip_address("127.0.0.1"), ip_address("::1")]


@pytest.mark.parametrize("days", [0.01, 1, 13, 13.99, 14])
def test_validity_with_its_back_dating_stays_below_14_days(days):
    made = certificates.generate(days=days, now=NOW).certificate
    assert made.not_valid_before_utc < NOW < made.not_valid_after_utc
    assert made.not_valid_after_utc - made.not_valid_before_utc < timedelta(days=14)


@pytest.mark.parametrize("days", [0, -1, 14.1, 365, float("nan")])
def test_days_out_of_range_are_refused_by_name(days):
    with pytest.raises(ConfigError, match=r"days must be .*not ") as caught:
        certificates.generate(days=days)
    assert caught.value.field == "days"


@pytest.mark.parametrize("hosts", [(), "", [""], ["two words"], ["localhost", "a..b"]])
def test_bad_hosts_are_refused_by_name(hosts):
    with pytest.raises(ConfigError) as caught:
        certificates.generate(hosts)
    assert caught.value.field == "hosts"


@pytest.mark.parametrize(
    ("hosts", "names"),
    [
        ("example.org", ["example.org"]),
        (["[::1]"], [ip_address("::1")]),
        (["*.example.org"], ["*.example.org"]),
        (["müller.example"], ["xn--mller-kva.example"]),
        (["a" * 60 + ".example.org"], ["a" * 60 + ".example.org"]),
    ],
)
def test_hosts_become_subject_alternative_names(hosts, names):
    assert _names(certificates.generate(hosts, now=NOW)) == names


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ConfigError, match="time zone"):
        certificates.generate(now=datetime(2026, 5, 4))


def test_hashes_are_those_of_the_certificate_and_of_its_key(certificate):
    assert certificate.sha256 == hashlib.sha256(certificate.der).hexdigest()
    again = certificates.Certificate(
        certificates.generate(now=NOW).certificate, certificate.private_key
    )
    assert again.sha256 != certificate.sha256
    assert len(certificate.spki_sha256_base64) == 44


def test_repr_shows_the_name_and_no_key(certificate):
    assert repr(certificate) == "<Certificate CN=localhost until 2026-05-17 12:00:00+00:00>"


def test_tls_of_the_standard_library_takes_it_as_its_own_authority(certificate, tmp_path):
    fresh = certificates.generate()
    certfile, keyfile = certificates.write(tmp_path, fresh)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certfile, keyfile)
    client = ssl.create_default_context(cafile=certfile)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    done = set()
    for _ in range(6):
        for end in ends:
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                pass
    assert len(done) == 2


def test_aioquic_takes_it_as_its_own_authority():
    fresh = certificates.generate()
    verify_certificate(
        certificate=fresh.certificate, server_name="localhost", cadata=fresh.pem()[0]
    )


def test_written_files_load_again_and_the_key_is_private(certificate, tmp_path):
    directory = tmp_path / "new" / "folder"
    certfile, keyfile = certificates.write(directory, certificate)
    assert (certfile, keyfile) == (directory / "cert.pem", directory / "key.pem")
    assert stat.S_IMODE(keyfile.stat().st_mode) == 0o600
    assert stat.S_IMODE(certfile.stat().st_mode) == 0o644
    loaded = certificates.load(certfile, keyfile)
    assert loaded.sha256 == certificate.sha256
    assert loaded.pem() == certificate.pem()
    assert loaded.chain == ()


def test_writing_over_a_readable_key_makes_it_private_and_leaves_nothing_else(
    certificate, tmp_path
):
    (tmp_path / "key.pem").write_text("old")
    (tmp_path / "key.pem").chmod(0o644)
    _, keyfile = certificates.write(tmp_path, certificate)
    assert stat.S_IMODE(keyfile.stat().st_mode) == 0o600
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cert.pem", "key.pem"]


def test_a_write_that_fails_leaves_no_temporary_file(certificate, tmp_path):
    (tmp_path / "key.pem").mkdir()
    with pytest.raises(OSError, match=r"key\.pem"):
        certificates.write(tmp_path, certificate)
    assert [each.name for each in tmp_path.iterdir()] == ["key.pem"]


def test_key_and_chain_may_share_the_file_of_the_certificate(certificate, tmp_path):
    cert_pem, key_pem = certificate.pem()
    other_pem, _ = certificates.generate(now=NOW).pem()
    path = tmp_path / "all.pem"
    path.write_bytes(b"a comment\n" + cert_pem + key_pem + other_pem)
    loaded = certificates.load(path)
    assert loaded.sha256 == certificate.sha256
    assert len(loaded.chain) == 1
    assert loaded.pem()[0] == cert_pem + other_pem


def test_key_in_the_older_form_with_its_parameters_loads(certificate, tmp_path):
    cert_pem, _ = certificate.pem()
    key_pem = certificate.private_key.private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    )
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    path = tmp_path / "all.pem"
    path.write_bytes(parameters + key_pem + cert_pem)
    assert certificates.load(path).sha256 == certificate.sha256


class TestLoadErrors:
    """Each names the file, and says what is wrong with it in a sentence."""

    def refused(self, certfile: Path, keyfile: Path | None = None) -> str:
        with pytest.raises(CertificateError) as caught:
            certificates.load(certfile, keyfile)
        message = str(caught.value)
        assert message.endswith(".")
        assert repr(str(keyfile or certfile)) in message or repr(str(certfile)) in message
        return message

    def test_missing_file(self, tmp_path):
        assert "does not exist" in self.refused(tmp_path / "cert.pem")

    def test_missing_key_file(self, certificate, tmp_path):
        certfile, keyfile = certificates.write(tmp_path, certificate)
        keyfile.unlink()
        message = self.refused(certfile, keyfile)
        assert "key.pem" in message
        assert "does not exist" in message

    def test_directory(self, tmp_path):
        assert "cannot be read" in self.refused(tmp_path)

    @pytest.mark.parametrize("data", [b"", b"hello", b"\x30\x82\x01\x00" * 20])
    def test_not_pem(self, tmp_path, data):
        path = tmp_path / "cert.der"
        path.write_bytes(data)
        assert "is not a PEM file" in self.refused(path)

    def test_no_certificate(self, certificate, tmp_path):
        _, keyfile = certificates.write(tmp_path, certificate)
        assert "holds no certificate" in self.refused(keyfile)

    @pytest.mark.parametrize("body", [b"AAAA", b"!!!!", b""])
    def test_broken_certificate(self, tmp_path, body):
        path = tmp_path / "cert.pem"
        path.write_bytes(b"-----BEGIN CERTIFICATE-----\n" + body + b"\n-----END CERTIFICATE-----\n")
        assert "certificate in" in self.refused(path)

    def test_no_key(self, certificate, tmp_path):
        certfile, _ = certificates.write(tmp_path, certificate)
        assert "holds no private key" in self.refused(certfile)

    def test_broken_key(self, certificate, tmp_path):
        certfile, keyfile = certificates.write(tmp_path, certificate)
        keyfile.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
        assert "key in" in self.refused(certfile, keyfile)

    def test_encrypted_key(self, certificate, tmp_path):
        certfile, keyfile = certificates.write(tmp_path, certificate)
        keyfile.write_bytes(
            certificate.private_key.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
            )
        )
        assert "is encrypted" in self.refused(certfile, keyfile)

    def test_key_of_a_kind_that_tls_cannot_use(self, certificate, tmp_path):
        certfile, keyfile = certificates.write(tmp_path, certificate)
        keyfile.write_bytes(
            dsa.generate_private_key(1024).private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
            )
        )
        assert "TLS 1.3 cannot use" in self.refused(certfile, keyfile)

    def test_key_of_another_certificate(self, certificate, tmp_path):
        certfile, keyfile = certificates.write(tmp_path, certificate)
        keyfile.write_bytes(certificates.generate(now=NOW).pem()[1])
        assert "does not match" in self.refused(certfile, keyfile)


class TestPinning:
    def test_matches_finds_the_hash_wherever_it_stands(self, certificate):
        digest = bytes.fromhex(certificate.sha256)
        assert certificates.matches(certificate.der, [digest])
        assert certificates.matches(certificate.der, [bytes(32), digest, b"short"])
        assert not certificates.matches(certificate.der, [bytes(32), digest[:-1]])
        assert not certificates.matches(certificate.der, [])

    @pytest.mark.parametrize("age", [timedelta(hours=-1), timedelta(0), timedelta(days=13)])
    def test_pinned_certificate_is_accepted_throughout_its_validity(self, certificate, age):
        digest = bytes.fromhex(certificate.sha256)
        certificates.check_pinned(certificate.der, [digest], NOW + age)

    @pytest.mark.parametrize(
        ("age", "words"),
        [
            (timedelta(hours=-1, seconds=-1), "is not valid before 2026-05-04 11:00:00"),
            (timedelta(days=13, seconds=1), "expired at 2026-05-17 12:00:00"),
        ],
    )
    def test_pinned_certificate_is_refused_outside_its_validity(self, certificate, age, words):
        digest = bytes.fromhex(certificate.sha256)
        with pytest.raises(CertificateError, match=words):
            certificates.check_pinned(certificate.der, [digest], NOW + age)

    def test_another_certificate_is_refused_with_its_hash(self, certificate):
        with pytest.raises(CertificateError, match=certificate.sha256):
            certificates.check_pinned(certificate.der, [bytes(32)], NOW)

    def test_bytes_that_are_no_certificate_are_refused(self):
        with pytest.raises(CertificateError, match="cannot be read"):
            certificates.check_pinned(b"junk", [hashlib.sha256(b"junk").digest()], NOW)

    def test_without_a_time_the_clock_counts(self):
        fresh = certificates.generate()
        certificates.check_pinned(fresh.der, [bytes.fromhex(fresh.sha256)])
        stale = certificates.generate(now=datetime.now(UTC) - timedelta(days=20))
        with pytest.raises(CertificateError, match="expired"):
            certificates.check_pinned(stale.der, [bytes.fromhex(stale.sha256)])


class TestAuthorities:
    """A file of authorities is looked at before anybody is connected to."""

    def test_one_that_holds_certificates_is_accepted(self, certificate, tmp_path):
        cert, _ = certificates.write(tmp_path, certificate)
        certificates.check_authorities(cert)
        certificates.check_authorities(str(cert))

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            ("", "holds no certificates"),
            ("hello", "holds no certificates"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds no cert"),
            ("key", "holds no certificates"),
            (None, "cannot be read: No such file"),
        ],
    )
    def test_one_without_is_named(self, certificate, tmp_path, content, why):
        file = tmp_path / "authorities.pem"
        if content == "key":
            file.write_bytes(certificate.pem()[1])
        elif content is not None:
            file.write_text(content)
        with pytest.raises(ConfigError, match=rf"'{file}' {why}") as info:
            certificates.check_authorities(file)
        assert (info.value.field, info.value.value) == ("cafile", file)

    def test_a_file_that_has_changed_is_read_again(self, certificate, tmp_path):
        file = tmp_path / "authorities.pem"
        file.write_text("nothing yet")
        with pytest.raises(ConfigError):
            certificates.check_authorities(file)
        file.write_bytes(certificate.pem()[0])
        certificates.check_authorities(file)
        file.write_text("gone")
        with pytest.raises(ConfigError):
            certificates.check_authorities(file)
