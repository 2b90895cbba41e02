"""Who must have signed which weights: the stack's `trust.signers`, by Hugging Face id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from modelfleet.infra.names import MANIFEST_KEY_FILE
from modelfleet.infra.planning.plan import ManifestKeyPlan, MirrorPlan
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.signer import Signer


def signer_index(stack: LoadedStack, name: str) -> int | None:
    """The entry of `trust.signers` that counts for weights of this name; None where nobody need sign them."""
    for index, one in enumerate(stack.config.trust.signers):
        if any(fnmatchcase(name, pattern) for pattern in one.weights):
            return index
    return None


def signer_of(stack: LoadedStack, name: str) -> Signer | None:
    """Who must have signed weights of this name."""
    index = signer_index(stack, name)
    return None if index is None else stack.config.trust.signers[index].signer


def manifest_key_plan(stack: LoadedStack) -> ManifestKeyPlan | None:
    """What the stack signs manifests with; None where it signs none."""
    key = stack.config.trust.manifest_key
    if key is None:
        return None
    if key.own:
        return ManifestKeyPlan(None, f"file://{MANIFEST_KEY_FILE}", stack.config.cluster.deletion_protection)
    return ManifestKeyPlan(key.kms, key.der)


def signer_findings(stack: LoadedStack, loaded: Iterable[MirrorPlan]) -> Iterator[Finding]:
    """Errors for weights that must be signed and that nobody verifies, and warnings for entries that match none.

    `loaded` is all that models load; who copies it for the stack verifies it.
    """
    yield from _manifest_key(stack)
    config, matched = stack.config, set[int]()
    for one in dict.fromkeys(loaded):
        index = signer_index(stack, one.name)
        if index is None:
            continue
        matched.add(index)
        if one.prefix is None:
            message = (
                f"wants {one.name} signed, which replicas load without a copy of the stack's, so nobody verifies it; "
                "let the stack copy it (modelfleet:mirror.create, no bucket_uri in the model file), or take it out"
            )
            yield stack.finding(("trust", "signers", index), message)
    if matched and not config.target.on_this_machine and not _jobs_can_verify(stack):
        message = (
            "needs model-signing where mirror Jobs run, and the serving image lacks it; name an image of "
            "serving/mirror/Dockerfile in modelfleet:mirror.image"
        )
        yield stack.finding(("trust", "signers"), message)
    for index, unused in enumerate(config.trust.signers):
        if index not in matched:
            message = (
                f"found {', '.join(unused.weights)}, and no model of this stack loads it; correct it or take it out"
            )
            yield stack.finding(("trust", "signers", index, "weights"), message, Severity.WARNING)


def _manifest_key(stack: LoadedStack) -> Iterator[Finding]:
    """Who signs is a mirror Job, in AWS."""
    config, path = stack.config, ("trust", "manifestKey")
    if config.trust.manifest_key is None:
        return
    severity = Severity.ERROR
    if config.target.on_this_machine:
        message = "signs with KMS, and target local has none: its bucket answers its own user alone; take it out"
    elif not config.mirror.create:
        message = "signs what the stack copies, and modelfleet:mirror.create is false; take one of them out"
    elif config.trust.manifest_key.own and not config.target.makes_cluster:
        message = (
            f"found kms 'own', which target eks makes; target {config.target.name} gives pods no role that may sign, "
            "so name a key of yours: `kms` its ARN, `publicKey` its PEM"
        )
    else:
        severity = Severity.NOTICE
        message = (
            "lets replicas take only copies that mirror Jobs signed with it; a copy of before is not made again: its "
            "Job reads it back, compares it with its source and signs it"
        )
    yield stack.finding(path, message, severity)


def _jobs_can_verify(stack: LoadedStack) -> bool:
    """An image that the stack makes, or that is named for them; one that is named for replicas has none of it."""
    config = stack.config
    makes = config.target.makes_cluster and config.kubernetes.image is None
    return makes or config.mirror.image is not None or not config.mirror.create
