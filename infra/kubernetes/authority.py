"""The authority whose certificates Ray's processes show each other (`kubernetes.rayTls`)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

#: Pods' certificates end with their authority. `kubernetes.rayAuthority` makes the next one before.
VALID: Final = timedelta(days=3650)
SLACK: Final = timedelta(hours=1)


class Authority(NamedTuple):
    """Both as PEM."""

    certificate: str
    key: str


def make_authority(name: str) -> Authority:
    """A new authority, for the certificates of pods only (no authority below it)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - SLACK).not_valid_after(now + VALID)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    made = builder.sign(key, hashes.SHA256())
    return Authority(made.public_bytes(serialization.Encoding.PEM).decode(), secret.decode())
