"""What a Ray pod runs first where Ray's processes speak TLS: it makes the pod's certificate, for its own address.

Mounted from a ConfigMap, run by the image's Python in an init container, which alone sees the authority's key. Ray
connects to addresses, and verifies the address on both sides, so a certificate is made when the pod has one.

    AUTHORITY   folder with the authority's `tls.crt` and `tls.key`      CERTIFICATES   where the pod's files go
    POD_IP      the pod's address                                        NAMESPACE      its namespace
"""

from __future__ import annotations

import ipaddress
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: Clocks of nodes may differ by so much.
SLACK = timedelta(hours=1)


def main() -> int:
    """Write `ca.crt`, `tls.crt` and `tls.key`, readable by this user alone."""
    authority, target = Path(os.environ["AUTHORITY"]), Path(os.environ["CERTIFICATES"])
    issuer = x509.load_pem_x509_certificate((authority / "tls.crt").read_bytes())
    issuer_key = serialization.load_pem_private_key((authority / "tls.key").read_bytes(), None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise SystemExit(f"{authority}/tls.key is not an elliptic curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    made = certificate(issuer, issuer_key, key.public_key(), os.environ["POD_IP"], os.environ["NAMESPACE"])
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    os.umask(0o077)
    (target / "tls.key").write_bytes(secret)
    (target / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (target / "ca.crt").write_bytes(issuer.public_bytes(serialization.Encoding.PEM))
    return 0


def certificate(
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    address: str,
    namespace: str,
) -> x509.Certificate:
    """A certificate of server and client for the pod's address, this machine and the namespace's Services.

    Workers know their head by its Service's name. It ends with its authority: Ray reads it once, when it starts.
    """
    names: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address(address)),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.DNSName("localhost"),
        x509.DNSName(f"*.{namespace}.svc.cluster.local"),
        x509.DNSName(f"*.{namespace}.svc"),
    ]
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder()
    builder = builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ray")]))
    builder = builder.issuer_name(issuer.subject).public_key(key).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - SLACK).not_valid_after(issuer.not_valid_after_utc)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return builder.add_extension(x509.ExtendedKeyUsage(both), critical=False).sign(issuer_key, hashes.SHA256())


if __name__ == "__main__":
    sys.exit(main())
