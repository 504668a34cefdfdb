"""
Keying material out of TLS (RFC 8446 7.5): the exporter that aioquic does not have.

Part of the seam of quic.py. It is made from aioquic's key schedule at the one moment when its
transcript ends with the server's Finished, and keeps nothing but one secret and a hash function.
"""

from __future__ import annotations

from aioquic.tls import KeySchedule, hkdf_expand_label
from cryptography.hazmat.primitives import hashes

__all__ = ["Exporter"]


class Exporter:
    """The exporter of one TLS connection."""

    __slots__ = ("_algorithm", "secret")

    def __init__(self, schedule: KeySchedule) -> None:
        # RFC 8446 7.1: Derive-Secret(Master Secret, "exp master", ClientHello...server Finished).
        self._algorithm = schedule.algorithm
        self.secret = schedule.derive_secret(b"exp master")

    def __repr__(self) -> str:
        return f"<Exporter {self._algorithm.name}>"

    def export(self, label: bytes, context: bytes, length: int) -> bytes:
        """Return `length` bytes, at most 255 times the hash's size; raises ValueError."""
        size = self._algorithm.digest_size
        if not 1 <= length <= 255 * size:
            raise ValueError(f"Between 1 and {255 * size} bytes can be exported, not {length}.")
        secret = hkdf_expand_label(self._algorithm, self.secret, label, self._hash(b""), size)
        return hkdf_expand_label(self._algorithm, secret, b"exporter", self._hash(context), length)

    def _hash(self, data: bytes) -> bytes:
        digest = hashes.Hash(self._algorithm)
        digest.update(data)
        return digest.finalize()
