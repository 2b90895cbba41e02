"""Whether weights are what their maker signed, by OpenSSF model-signing, before anything is copied.

    <repository>/model.sig      a DSSE envelope in a sigstore bundle: the SHA-256 of each file, signed

The library's `verifying.Config` hashes a folder on a disk, and wants it to have all signed files and no others. A copy
has no disk, and takes only the files that vLLM reads. So the library checks the signature and opens it, and the hashes
are compared here: with those that the copy itself checks byte by byte (`upload.py`).
https://github.com/sigstore/model-transparency/blob/main/docs/model_signing_format.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from modelfleet.serving.config.checkpoint_files import FILES, Kind
from modelfleet.serving.config.signer import SIGNATURE, Signer
from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror.origin import Origin, OriginFile, is_of_git

#: A signature has about 200 bytes for each file, and a mirror 10,000 files at most.
MAX_SIGNATURE_BYTES = 16 * 2**20
FIX = "ask its maker for a signature of these files, or change modelfleet:trust.signers"


@dataclass(frozen=True)
class Signature:
    """Who must have signed what is copied, of which `kind` it is, and where the signature is.

    `beside` has the signature where the files themselves come from elsewhere, such as a download of some of them.
    """

    signer: Signer
    kind: Kind = "model"
    beside: Origin | None = None

    def verify(self, origin: Origin, files: Sequence[OriginFile], report: Callable[[str], None]) -> None:
        """Raises `MirrorError` unless the files, each with its SHA-256, are those that were signed."""
        verify(origin, files, read_signature(self.beside or origin), self.signer, kind=self.kind)
        report(f"{origin} is signed by {self.signer.fingerprint}")


def read_signature(origin: Origin) -> bytes:
    """The signature beside the files of `origin`; raises `MirrorError` where there is none."""
    found = origin.find(SIGNATURE)
    if found is None:
        raise MirrorError(f"{origin} is not signed: it has no {SIGNATURE}; {FIX}")
    if found.size > MAX_SIGNATURE_BYTES:
        raise MirrorError(f"{origin}: {SIGNATURE} has {found.size} bytes, which no signature has; {FIX}")
    return b"".join(origin.stream(SIGNATURE, 0, found.size))


def verify(what: object, files: Sequence[OriginFile], signature: bytes, signer: Signer, *, kind: Kind) -> None:
    """Raises `MirrorError` unless `signer` signed every one of these files, each with its SHA-256, and none is missing.

    `files` is what is copied; of the other signed files only those count that `kind` would copy. `what` names it all
    in messages.
    """
    signed = signed_files(what, signature, signer)
    ours = {file.path: file.sha256 for file in files if file.path != SIGNATURE}
    faults = [
        *_some("is not signed", [path for path in ours if path not in signed]),
        *_some("is not what was signed", [path for path, sha256 in ours.items() if signed.get(path, sha256) != sha256]),
        *_some(
            "is signed and missing",
            [path for path in _wanted(signed, kind) if path not in ours and not is_of_git(path)],
        ),
    ]
    if faults:
        raise MirrorError(f"{what} differs from its signature: {'; '.join(faults)}; {FIX}")


def signed_files(what: object, signature: bytes, signer: Signer) -> dict[str, str]:
    """SHA-256 by path, of all that `signer` signed; raises `MirrorError` for a signature of somebody else, or none."""
    library = _library()
    with (
        TemporaryDirectory() as folder,
        _plain_errors(f"{what}: {SIGNATURE} is not of the signer that the stack names"),
    ):
        path = Path(folder) / SIGNATURE
        path.write_bytes(signature)
        manifest = _verifier(signer, Path(folder)).verify(library.Signature.read(path))
        found = [
            (one.identifier, one.digest.algorithm, one.digest.digest_hex) for one in manifest.resource_descriptors()
        ]
    if other := {f"{manifest.serialization_type.get('method')} of {algorithm}" for _, algorithm, _ in found} - {_PLAIN}:
        raise MirrorError(
            f"{what}: {SIGNATURE} has {', '.join(sorted(other))}, and a copy is compared by {_PLAIN}; have it signed "
            "with model-signing's defaults"
        )
    return {path: digest for path, _, digest in found}


def check_signer(signer: Signer) -> None:
    """Raises `MirrorError` for a key or certificates that verify nothing."""
    what = "public key" if signer.public_key is not None else "certificates"
    with TemporaryDirectory() as folder, _plain_errors(f"these {what} cannot be read" if what[-1] == "s" else _NO_KEY):
        _verifier(signer, Path(folder))


_PLAIN = "files of sha256"
_NO_KEY = "this is no public key of an elliptic curve (P-256, P-384 or P-521)"


def _library() -> Any:
    try:
        from model_signing._signing import sign_sigstore_pb
    except ModuleNotFoundError as error:
        raise MirrorError(
            f"{error.name} is missing here, so nothing verifies a signature; install requirements/operator.txt, or "
            "name an image of serving/mirror/Dockerfile in modelfleet:mirror.image"
        ) from None
    return sign_sigstore_pb


def _verifier(signer: Signer, folder: Path) -> Any:
    """The library's; it reads keys from files alone."""
    _library()
    from model_signing._signing import sign_certificate, sign_ec_key

    path = folder / "signer.pem"
    path.write_text(f"{(signer.public_key or signer.certificates or '').strip()}\n")
    return sign_ec_key.Verifier(path) if signer.public_key is not None else sign_certificate.Verifier([path])


@contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """One line of what the library, OpenSSL and a hostile file raise."""
    _library()
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from OpenSSL.crypto import Error, X509StoreContextError

    hostile = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
    try:
        yield
    except (InvalidSignature, UnsupportedAlgorithm, Error, X509StoreContextError, *hostile) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(". ")
        raise MirrorError(f"{what} ({reason}); {FIX}") from None


def _wanted(signed: Mapping[str, str], kind: Kind) -> list[str]:
    """Those of the signed files that a copy of such a repository has."""
    from huggingface_hub.utils import filter_repo_objects

    files = FILES[kind]
    return list(
        filter_repo_objects(signed, allow_patterns=files.wanted(list(signed)), ignore_patterns=list(files.ignored))
    )


def _some(fault: str, paths: Sequence[str]) -> list[str]:
    if not paths:
        return []
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return [f"{min(paths)!r}{more} {fault}"]
