"""Who signs weights, as a stack file names it (`modelfleet:trust.signers`). Data alone; `mirror/signer.py` verifies."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

#: The file in a repository that `model_signing sign` writes (model-signing 1.1.1 `_cli.py`, `--signature`).
SIGNATURE = "model.sig"


@dataclass(frozen=True)
class Signer:
    """One of both, as PEM: the public key of an elliptic curve, or the certificates that a signer's own leads to."""

    public_key: str | None = None
    certificates: str | None = None

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name it, whatever whitespace its PEM has."""
        text = "".join((self.public_key or self.certificates or "").split())
        return hashlib.sha256(text.encode()).hexdigest()[:16]
