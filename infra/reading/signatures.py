"""What a preview can know about signed weights: whether a repository's signature verifies, without its weights.

The Hub names the SHA-256 of each large file; the small ones, and the signature, are read. So the same comparison as a
mirror Job's (`serving/mirror/signer.py`) runs before a node is bought. The Job repeats it, on the bytes that it copies.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelfleet.infra.planning.plan import MirrorPlan, Plan
from modelfleet.infra.planning.signers import from_hub, signer_index
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.document import KeyPath
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.signer import Signer
from modelfleet.serving.errors import MirrorError, ServingError
from modelfleet.serving.mirror.proof import is_p256

#: Most bytes of files without a SHA-256 that a preview reads of one repository. Configurations have a few MB.
MOST_READ_BYTES = 256 * 2**20


def key_findings(stack: LoadedStack) -> Iterator[Finding]:
    """Errors for keys and certificates of `trust` that verify nothing."""
    yield from _manifest_key_findings(stack)
    if not stack.config.trust.signers:
        return
    from modelfleet.serving.mirror.signer import check_signer

    for index, one in enumerate(stack.config.trust.signers):
        try:
            check_signer(one.signer)
        except MirrorError as error:
            key = "publicKey" if one.public_key is not None else "certificates"
            yield stack.finding(("trust", "signers", index, key), str(error))


def _manifest_key_findings(stack: LoadedStack) -> Iterator[Finding]:
    """KMS signs manifests with P-256 alone, so a replica that has another key takes no copy."""
    key = stack.config.trust.manifest_key
    if key is not None and not key.own and not is_p256(key.der):
        message = (
            "this is no public key of P-256, and manifests are signed with KMS's ECC_NIST_P256; name what "
            "`aws kms get-public-key --key-id KEY --query PublicKey --output text` prints, between BEGIN and END"
        )
        yield stack.finding(("trust", "manifestKey", "publicKey"), message)


def signature_findings(plan: Plan, *, network: bool) -> Iterator[Finding]:
    """Errors for what is not signed by whom the stack names, notices for what only the copy can verify."""
    loaded = (one for model in plan.models for one in (model.mirror, *model.others))
    for mirror in dict.fromkeys(loaded):
        index = signer_index(plan.source, mirror.name)
        if mirror.signer is not None and mirror.prefix is not None and index is not None:
            yield from _found(plan.source, ("trust", "signers", index), mirror, mirror.signer, network=network)


def _found(
    stack: LoadedStack, path: KeyPath, mirror: MirrorPlan, signer: Signer, *, network: bool
) -> Iterator[Finding]:
    later = f"{mirror.name} must be signed; this is verified when it is copied, before any replica has it"
    if not from_hub(mirror.source):
        yield stack.finding(path, f"{later} (a preview does not read {mirror.source})", Severity.NOTICE)
    elif not network:
        yield stack.finding(path, f"{later} (this plan asks nobody; `modelfleet plan` does)", Severity.NOTICE)
    else:
        try:
            verify_repository(mirror, signer)
        except MirrorError as error:
            yield stack.finding(path, str(error))
        except ServingError as error:
            yield stack.finding(path, f"{later}; now it cannot be: {error}", Severity.WARNING)


def verify_repository(mirror: MirrorPlan, signer: Signer) -> None:
    """Raises `MirrorError` unless the repository on the Hub is signed so, `WeightsError` where the Hub cannot say."""
    from modelfleet.serving.mirror.hub import Repository
    from modelfleet.serving.mirror.manifest import CHUNK_BYTES
    from modelfleet.serving.mirror.signer import FIX, read_signature, signed_files, verify
    from modelfleet.serving.mirror.upload import with_hashes

    repository = Repository(mirror.source, mirror.revision, mirror.kind)
    files = repository.files()
    signature = read_signature(repository)
    signed_files(repository, signature, signer)  # a stranger's signature is not worth reading anything for
    plain = sum(file.size for file in files if file.sha256 is None)
    if plain > MOST_READ_BYTES:
        raise MirrorError(f"{repository} has {plain / 1e6:.0f} MB of files that are not in LFS, as no model has; {FIX}")
    verify(repository, with_hashes(repository, files, CHUNK_BYTES), signature, signer, kind=mirror.kind)
