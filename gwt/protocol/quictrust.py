"""
Which authorities a client trusts: those of a bundle that a server's certificates may lead to.

Part of the seam of quic.py. aioquic reads the whole bundle for every handshake, which takes as
long as the rest of it. It still verifies, by the same code; it is given the few that can matter.
"""

from __future__ import annotations

from collections.abc import Iterable

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.tls import AlertBadCertificate, Context
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import Certificate

__all__ = ["Authorities", "TrustingContext"]


class Authorities:
    """A bundle of certificates to trust, by whom they are of."""

    def __init__(self, certificates: Iterable[Certificate]) -> None:
        self._by_subject: dict[bytes, list[tuple[bytes, bytes]]] = {}
        for each in certificates:
            entry = each.issuer.public_bytes(), each.public_bytes(Encoding.PEM)
            self._by_subject.setdefault(each.subject.public_bytes(), []).append(entry)

    def for_chain(self, chain: Iterable[Certificate]) -> bytes:
        """Return in PEM those that a path from any of `chain` can lead to; none is b""."""
        wanted = [each.issuer.public_bytes() for each in chain]
        found: dict[bytes, list[tuple[bytes, bytes]]] = {}
        while wanted:
            name = wanted.pop()
            if name not in found:
                found[name] = self._by_subject.get(name, [])
                # A bundle may hold some that are not the last of a path.
                wanted += [issuer for issuer, _ in found[name]]
        return b"".join(pem for entries in found.values() for _, pem in entries)


class TrustingContext(Context):
    """A client's TLS: what verifies is aioquic's, with fewer authorities first."""

    authorities: Authorities | None = None

    def _client_handle_certificate_verify(self, input_buf: Buffer) -> None:
        begin, certificate = input_buf.tell(), self._peer_certificate
        if self.authorities is not None and certificate is not None:
            cafile = self._cafile
            chosen = self.authorities.for_chain((certificate, *self._peer_certificate_chain))
            if chosen:
                try:
                    self._cadata, self._cafile = chosen, None
                    super()._client_handle_certificate_verify(input_buf)
                    return
                except AlertBadCertificate:
                    # Names can be equal and not the same bytes (RFC 5280 7.1): all of them decide.
                    input_buf.seek(begin)
                finally:
                    self._cadata, self._cafile = None, cafile
        super()._client_handle_certificate_verify(input_buf)
