"""Who wrote a manifest: signed with the stack's KMS key, which only mirror Jobs may use.

    <uri>/<SHA-256 of the manifest>.sig      an ECDSA signature over `statement`, written before the manifest

So who can write to the bucket, and cannot use the key, gives replicas no weights: no manifest of their own, none that
was changed, and none of another model, which has another `uri`, source or revision. Replicas have the public key and
ask no KMS. A key of the stack's own is known only once it is made, so its public half is a file in each pod, and the
applications name the file (`file:///…`).
A manifest that was signed earlier for the same source and revision still counts: name a commit, which nobody can move.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror.manifest import Manifest
from modelfleet.serving.mirror.store import Location, Store, plain_errors

SUFFIX = ".sig"
#: An ECDSA signature over P-256 has 72 bytes at most.
MAX_SIGNATURE_BYTES = 1024
#: Begins the name of a file that has a public key.
_FILE = "file://"
#: KMS's name of the only algorithm of its `ECC_NIST_P256`.
#: https://docs.aws.amazon.com/kms/latest/developerguide/symm-asymm-choose-key-spec.html
ALGORITHM = "ECDSA_SHA_256"


def statement(location: Location, manifest: bytes, signer: str) -> bytes:
    """What is signed: which manifest, for which place, and whose signature its weights needed (a fingerprint)."""
    said = {"kind": "modelfleet manifest 1", "uri": str(location), "signer": signer, "sha256": _sha256(manifest)}
    return json.dumps(said, sort_keys=True).encode()


def name_of(manifest: bytes) -> str:
    """The name of a manifest's signature, beside it."""
    return f"{_sha256(manifest)}{SUFFIX}"


@dataclass(frozen=True)
class Expected:
    """What a reader wants of a manifest: signed with `key`, of files that `signer` signed (a fingerprint).

    `key` is base64 of the DER of a public key, or `file:///…`, where that is. Without it the manifest itself says whose
    signature its maker verified, which counts for who trusts whoever can write to the bucket.
    `source` and `revision` are compared unless `source` is None: then the place alone says what it is a copy of.
    """

    key: str = ""
    signer: str = ""
    source: str | None = None
    revision: str | None = None

    @classmethod
    def of(cls, weights: Mapping[str, Any], uri: str | None = None) -> Self | None:
        """What `args.weights` of an application say about its copy's manifest, or about that of another one at `uri`.

        None where the stack signs none, and nobody had to sign the files. Raises `MirrorError` for an empty key, which
        verifies nothing.
        """
        key, signer = weights.get("manifest_key"), (weights.get("signers") or {}).get(uri or weights.get("mirror"), "")
        if key is None:
            return cls(signer=signer) if signer else None
        if not key:
            raise MirrorError(f"the stack's manifest_key is empty, so nothing verifies {uri or 'its copy'}; {_AGAIN}")
        return cls(key, signer) if uri else cls(key, signer, weights.get("source"), weights.get("revision"))

    def verify(self, store: Store, location: Location, data: bytes, manifest: Manifest) -> None:
        """Raises `MirrorError` unless `data` is the manifest of this place, source and revision, after its signer."""
        if self.key:
            self._verify_signature(store, location, data)
        elif self.signer and manifest.signer != self.signer:
            said = f"that {manifest.signer} signed" if manifest.signer else "of no signer of"
            raise MirrorError(f"{location}: its manifest says {said} its files, and {self.signer} must have; {FIX}")
        if self.source is None:
            return
        found = _named(manifest.source, manifest.source_revision)
        if found != (wanted := _named(self.source, self.revision)):
            raise MirrorError(f"{location} has {found}, and the stack wants {wanted}; {FIX}")

    def _verify_signature(self, store: Store, location: Location, data: bytes) -> None:
        signature = store.read(location.key(name_of(data)), MAX_SIGNATURE_BYTES)
        if signature is None:
            raise MirrorError(f"{location}: its manifest is not signed with the stack's key; {FIX}")
        if not _is_signed(self.key, signature, statement(location, data, self.signer)):
            raise MirrorError(
                f"{location}: its manifest is signed by another key or for another place or signer; {FIX}"
            )


_AGAIN = "run `pulumi up` again"
FIX = "its mirror Job writes one (`pulumi up`)"


class KmsKey:
    """A KMS key that signs; `name` is an ARN, an id or `alias/…`.

    `public` is what `Expected.key` is, where it is known: then each signature must verify by it. Else KMS is asked.
    """

    def __init__(self, name: str, kms: Any = None, *, public: str | None = None) -> None:
        import boto3

        self._name, self._kms, self._public = name, kms or boto3.client("kms"), public

    def sign(self, data: bytes) -> bytes:
        """The signature of `data`, 4096 bytes at most, as DER; raises `MirrorError` where KMS refuses.

        Also where it is of another key than `public`, by which no replica would take it.
        """
        with plain_errors(
            f"sign with {self._name}", "KMS", "allow kms:Sign on the stack's key to the mirror Job's role"
        ):
            answer = self._kms.sign(KeyId=self._name, Message=data, MessageType="RAW", SigningAlgorithm=ALGORITHM)
        signature = bytes(answer["Signature"])
        if self._public and not _is_signed(self._public, signature, data):
            raise MirrorError(
                f"{self._name} signs with another key than the public half that replicas have; correct "
                "modelfleet:trust.manifestKey (`aws kms get-public-key` prints it)"
            )
        return signature

    def public(self) -> str:
        """What `Expected.key` is; raises `MirrorError` where KMS refuses."""
        if self._public:
            return self._public
        fix = "allow kms:GetPublicKey on the stack's key to the mirror Job's role"
        with plain_errors(f"read the public key of {self._name}", "KMS", fix):
            return base64.b64encode(self._kms.get_public_key(KeyId=self._name)["PublicKey"]).decode()


def is_p256(der: str) -> bool:
    """Whether it is base64 of the DER of a public key of P-256, which KMS calls `ECC_NIST_P256`."""
    from cryptography.hazmat.primitives.asymmetric import ec

    public = _loaded(der)
    return isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1)


def _is_signed(key: str, signature: bytes, data: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    public = _loaded(_text_of(key))
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise MirrorError(f"the stack's manifest_key is no public key of an elliptic curve; {_AGAIN}")
    try:
        public.verify(signature, data, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _loaded(der: str) -> Any:
    """The public key; None for what is none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    try:
        return load_der_public_key(base64.b64decode(der, validate=True))
    except (ValueError, binascii.Error, UnsupportedAlgorithm):
        return None


def _text_of(key: str) -> str:
    """`key`, read from its file where it names one: at each use, because the kubelet updates it."""
    if not key.startswith(_FILE):
        return key
    try:
        return Path(key.removeprefix(_FILE)).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise MirrorError(
            f"{key.removeprefix(_FILE)} has no public key that manifests are signed with ({reason}); `pulumi up` makes "
            "the ConfigMap manifest-key, which this pod must mount"
        ) from None


def _named(source: str, revision: str | None) -> str:
    return source if revision is None else f"{source}@{revision}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
