"""Who must have signed which weights: the stack's `trust.signers`, by Hugging Face id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from modelfleet.infra.names import MANIFEST_KEY_FILE
from modelfleet.infra.planning.plan import ManifestKeyPlan, MirrorPlan
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.document import KeyPath
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.signer import Signer


def from_hub(source: str) -> bool:
    """Whether weights of that name come from the Hub: no folder, bucket or wheel."""
    return ":" not in source and not source.startswith("/")


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
            yield stack.finding(("trust", "signers", index), _unverified(stack, one))
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


def _unverified(stack: LoadedStack, one: MirrorPlan) -> str:
    config = stack.config
    if config.target.on_this_machine and config.mirror.create and from_hub(one.source):
        return (
            f"wants {one.name} signed, which a replica on this machine's cards loads from the Hub itself, so nobody "
            f"verifies it; name a download of it in modelfleet:mirror.sources ({one.name}: file:///FOLDER), which is "
            "verified, or take it out"
        )
    return (
        f"wants {one.name} signed, which replicas load without a copy of the stack's, so nobody verifies it; "
        "let the stack copy it (modelfleet:mirror.create, no bucket_uri in the model file), or take it out"
    )


def streaming_findings(stack: LoadedStack, models: Iterable[LoadedModel]) -> Iterator[Finding]:
    """Warnings for models that stream weights whose bytes `trust.manifestKey` should vouch for: vLLM reads those."""
    if stack.config.trust.manifest_key is None:
        return
    for model in models:
        engine = model.config.engine_config
        if str(engine.engine_kwargs.get("load_format", "")).startswith("runai_streamer"):
            message = (
                "streams the weights, so replicas verify the signed manifest and not the files' SHA-256 (modelfleet:"
                "trust.manifestKey): who can write to the bucket can change them; take it out to have them compared"
            )
            path = ("engine_config", "engine_kwargs", "load_format")
            yield model.document.finding(path, message, Severity.WARNING)


def _manifest_key(stack: LoadedStack) -> Iterator[Finding]:
    """Who signs is a mirror Job, in AWS."""
    config, key = stack.config, stack.config.trust.manifest_key
    path: KeyPath = ("trust", "manifestKey")
    if key is None:
        return
    severity = Severity.ERROR
    if config.target.on_this_machine:
        message = "signs with KMS, and target local has none: its bucket answers its own user alone; take it out"
    elif not config.mirror.create:
        message = "signs what the stack copies, and modelfleet:mirror.create is false; take one of them out"
    elif key.own and not config.target.makes_cluster:
        message = (
            f"found kms 'own', which target eks makes; target {config.target.name} gives pods no role that may sign, "
            "so name a key of yours: `kms` its ARN, `publicKey` its PEM"
        )
    elif key.region not in ("", stack.region or key.region):
        path = (*path, "kms")
        message = (
            f"found a key of {key.region}, and mirror Jobs ask KMS in the stack's region, {stack.region} (aws:region); "
            "name a key of that region"
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
