"""The authorities that a client looks at, of those that it trusts: the same ones decide."""

from __future__ import annotations

import datetime
import inspect

import aioquic.tls
import pytest
from aioquic.buffer import Buffer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from gwt import certificates
from gwt.protocol.quictrust import Authorities, TrustingContext

DAY = datetime.timedelta(days=1)


class Signer:
    """An authority of a test's own, or what it has signed."""

    def __init__(self, name: str, by: Signer | None = None, *, ca: bool = True, issuer=None):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(issuer or (by.name if by else self.name))
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        if not ca:
            names = x509.SubjectAlternativeName([x509.DNSName("name.test")])
            builder = builder.add_extension(names, critical=False)
        self.certificate = builder.sign((by or self).key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


ROOT, OTHER = Signer("root"), Signer("other")
MIDDLE = Signer("middle", ROOT)
LEAF = Signer("leaf", MIDDLE, ca=False)
DIRECT = Signer("direct", ROOT, ca=False)


def of(*signers: Signer) -> list[x509.Certificate]:
    return [each.certificate for each in signers]


@pytest.mark.parametrize(
    ("trusted", "chain", "chosen"),
    [
        ([ROOT, OTHER], [DIRECT], [ROOT]),
        ([ROOT, OTHER], [LEAF, MIDDLE], [ROOT]),
        ([OTHER], [LEAF, MIDDLE], []),
        ([ROOT, OTHER], [LEAF], []),
        # What the server has left out, the bundle may have.
        ([ROOT, MIDDLE, OTHER], [LEAF], [MIDDLE, ROOT]),
        ([ROOT], [ROOT], [ROOT]),
        ([], [LEAF], []),
    ],
)
def test_those_that_a_path_can_lead_to_are_chosen(trusted, chain, chosen):
    assert Authorities(of(*trusted)).for_chain(of(*chain)) == b"".join(each.pem for each in chosen)


def test_two_of_one_name_are_both_looked_at():
    twin = Signer("root")
    assert Authorities(of(twin, ROOT)).for_chain(of(DIRECT)) == twin.pem + ROOT.pem


def verified(monkeypatch, tmp_path, trusted, chain, name="name.test", bundle=None):
    """Have a context verify a chain; return which authorities aioquic read, or the alert."""
    cafile = tmp_path / "bundle.pem"
    cafile.write_bytes(b"".join(each.pem for each in trusted))
    read = []
    verify = aioquic.tls.verify_certificate

    def counted(**options):
        read.append(options["cadata"] or options["cafile"])
        verify(**options)

    monkeypatch.setattr(aioquic.tls, "verify_certificate", counted)
    monkeypatch.setattr(aioquic.tls, "pull_certificate_verify", lambda buf: buf.pull_bytes(1))
    context = aioquic.tls.Context(is_client=True, cafile=str(cafile), server_name=name)
    context.__class__ = TrustingContext
    context.authorities = Authorities(of(*(trusted if bundle is None else bundle)))
    context._peer_certificate, *context._peer_certificate_chain = of(*chain)
    context._check_certificate_verify_signature = lambda verify: None
    context.key_schedule = type("Schedule", (), {"update_hash": lambda self, data: None})()
    try:
        context._client_handle_certificate_verify(Buffer(data=b"x"))
    finally:
        assert context._cadata is None and context._cafile == str(cafile)
    return ["file" if each == str(cafile) else each for each in read]


def test_the_chosen_ones_verify_without_the_file(monkeypatch, tmp_path):
    assert verified(monkeypatch, tmp_path, [ROOT, OTHER], [LEAF, MIDDLE]) == [ROOT.pem]


def test_names_that_are_equal_but_not_the_same_bytes_are_left_to_the_whole_file(
    monkeypatch, tmp_path
):
    shouted = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ROOT")])
    leaf = Signer("leaf", ROOT, ca=False, issuer=shouted)
    assert verified(monkeypatch, tmp_path, [ROOT, OTHER], [leaf]) == ["file"]
    # Also when one of the same bytes is there, which has signed something else.
    impostor = Signer("ROOT")
    found = verified(monkeypatch, tmp_path, [ROOT, impostor], [leaf])
    assert found == [impostor.pem, "file"]


@pytest.mark.parametrize(
    ("trusted", "chain", "name"),
    [
        ([OTHER], [LEAF, MIDDLE], "name.test"),
        ([ROOT], [LEAF], "name.test"),
        ([Signer("root")], [DIRECT], "name.test"),
        ([ROOT], [DIRECT], "another.test"),
        ([MIDDLE], [LEAF], "name.test"),
    ],
)
def test_what_the_file_does_not_vouch_for_is_refused(monkeypatch, tmp_path, trusted, chain, name):
    with pytest.raises(aioquic.tls.AlertBadCertificate):
        verified(monkeypatch, tmp_path, trusted, chain, name)


def test_an_authority_that_is_not_trusted_any_more_is_as_old_as_its_bundle(tmp_path):
    # certificates.authorities() reads a file again when it changes.
    path = tmp_path / "bundle.pem"
    path.write_bytes(ROOT.pem)
    assert certificates.authorities(path).for_chain(of(DIRECT)) == ROOT.pem
    path.write_bytes(OTHER.pem + OTHER.pem)
    assert certificates.authorities(path).for_chain(of(DIRECT)) == b""
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n" + ROOT.pem)
    assert certificates.authorities(path).for_chain(of(DIRECT)) == ROOT.pem
    assert certificates.authorities(tmp_path / "missing.pem") is None


def test_certifis_are_read_once():
    found = certificates.authorities(None)
    assert found is certificates.authorities(None)
    assert len(found._by_subject) > 100


def test_aioquic_verifies_where_it_did():
    # Private: what TrustingContext overrides, and what that reads.
    source = inspect.getsource(aioquic.tls.Context._client_handle_certificate_verify)
    for name in ("_cadata", "_cafile", "_peer_certificate", "_peer_certificate_chain"):
        assert f"self.{name}" in source, name
    assert source.index("verify_certificate(") < source.index("update_hash")
    assert source.index("verify_certificate(") < source.index("_set_state")
