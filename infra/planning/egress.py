"""What pods of a stack may connect to outside its namespace: only what its models, its network and its target need.

A NetworkPolicy knows addresses and no names, and a pool's pods serve several models, so the finest that a rule can say
is "public addresses at port 443". It is there if one model needs it. Where the object store is, only a network of the
stack's own tells: there S3 answers by its gateway endpoint, at public addresses. Elsewhere private addresses stay open
until `mirror.storageCidrs` names the store's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address
from typing import Final

from modelfleet.infra.planning.applications import all_mirrors
from modelfleet.infra.planning.head_storage import head_storage_plan
from modelfleet.infra.planning.network import PRIVATE_ADDRESSES, network_of
from modelfleet.infra.planning.plan import EgressPlan, Way
from modelfleet.infra.planning.signers import from_hub
from modelfleet.infra.planning.traces import collector_of
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.errors import Finding
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.schema import ModelConfig, S3MirrorConfig

PRIVATE: Final = tuple(str(block) for block in PRIVATE_ADDRESSES)
#: Instance metadata and whatever else a node answers on its link: a pod has its own role, never the node's.
LINK: Final = "169.254.0.0/16"
EVERYWHERE: Final = "0.0.0.0/0"
HTTP, HTTPS = 80, 443
OTHER_CLOUDS: Final = ("gs://", "az://")
#: Where the API server listens: behind its Service, and itself.
API_PORTS: Final = (HTTPS, 6443)
#: The Pod Identity agent on each node.
#: https://docs.aws.amazon.com/eks/latest/userguide/pod-id-how-it-works.html
CREDENTIALS: Final = "169.254.170.23/32"
#: Of the store that the stack makes for the head's state.
STORE_PORT: Final = 6379


def egress_plan(stack: LoadedStack, models: Sequence[LoadedModel]) -> EgressPlan:
    """The ways out of each kind of pod."""
    config = stack.config
    needs = {what for model in models for what in public_needs(stack, model.config)}
    copied = [one for model in models for one in all_mirrors(stack, model.config)]
    from_elsewhere = any(one.prefix and not one.source.startswith("s3://") for one in copied)
    storage = _storage(stack)
    internet = public("internet", HTTPS)
    collector = collector_of(stack)
    outside = collector is not None and collector.namespace is None
    return EgressPlan(
        replicas=(
            *storage,
            *([internet] if needs - {"media"} or outside else []),
            *([public("media", HTTP, HTTPS)] if "media" in needs else []),
            *_media_addresses(models),
        ),
        head=(*_api(stack), *_store(stack)),
        mirror=(*storage, *([internet] if from_elsewhere else []), *_kms(stack)),
        api=_api(stack),
        aws=(public("aws", HTTPS), Way("aws", PRIVATE, (HTTPS,)), _CREDENTIALS) if config.target.makes_cluster else (),
        issuer=_issuer(stack),
        collector=(collector.namespace, collector.port) if collector and collector.namespace else None,
    )


def egress_findings(stack: LoadedStack) -> Iterator[Finding]:
    """Networks of the object store and of the API server that are none."""
    config = stack.config
    for path, cidrs in (
        (("mirror", "storageCidrs"), config.mirror.storage_cidrs),
        (("kubernetes", "apiCidrs"), config.kubernetes.api_cidrs),
    ):
        for index, cidr in enumerate(cidrs or ()):
            if config.target.on_this_machine:
                yield stack.finding((*path, index), f"found '{cidr}', but target local has no pods; remove it")
            elif network_of(cidr) is None:
                message = f"found '{cidr}', which is not a network; write it as 10.8.0.0/24"
                yield stack.finding((*path, index), message)
    if config.kubernetes.api_cidrs == []:
        message = "is empty, and the head scales workers through the API server; name its networks, or take it out"
        yield stack.finding(("kubernetes", "apiCidrs"), message)


def public_needs(stack: LoadedStack, model: ModelConfig) -> Iterator[str]:
    """Why a model's replicas need public addresses beside the object store: `hub`, `cloud`, `code`, `media`."""
    engine = model.engine_config
    not_copied = [one.source for one in all_mirrors(stack, model) if one.prefix is None]
    named = [*not_copied, engine.engine_kwargs.get("hf_config_path")]
    if any(isinstance(name, str) and from_hub(name) for name in named):
        yield "hub"
    own = engine.mirror_config
    files = [file.bucket_uri for file in own.extra_files] if own is not None else []
    asks = isinstance(own, S3MirrorConfig) and own.s3_aws_credentials is not None  # an https:// of the file's choice
    if asks or any(str(name).startswith(OTHER_CLOUDS) for name in (*named, *files)):
        yield "cloud"
    if model.model_id in stack.config.trust.foreign_code:
        yield "code"
    if engine.engine_kwargs.get("allowed_media_domains"):
        yield "media"


def public(purpose: str, *ports: int) -> Way:
    """Public addresses at these TCP ports."""
    return Way(purpose, (EVERYWHERE,), ports, without=(*PRIVATE, LINK))


_CREDENTIALS = Way("credentials", (CREDENTIALS,), (HTTP,))


def _storage(stack: LoadedStack) -> list[Way]:
    """To the object store, and for a role's credentials."""
    config = stack.config
    if config.mirror.storage_cidrs is not None:
        named = [Way("storage", tuple(config.mirror.storage_cidrs))] if config.mirror.storage_cidrs else []
        return [*named, _CREDENTIALS]
    known = [public("storage", HTTPS), _CREDENTIALS]
    if not config.target.makes_cluster:
        return [*known, Way("storage", PRIVATE)]
    # An interface endpoint of S3 has private addresses, and only AWS knows whether an existing network has one.
    return [*known, Way("storage", PRIVATE, (HTTPS,))] if config.network.vpc_id else known


def _issuer(stack: LoadedStack) -> tuple[Way, ...]:
    """Where the gateway reads the keys of tokens; only its owner knows whether its name has private addresses."""
    jwt = stack.config.jwt
    if jwt is None or not jwt.asks_issuer:
        return ()
    return (public("issuer", jwt.jwks_port), Way("issuer", PRIVATE, (jwt.jwks_port,)))


def _kms(stack: LoadedStack) -> list[Way]:
    """Where manifests are signed; without `storageCidrs` public addresses at 443 are open anyway."""
    config = stack.config
    if config.trust.manifest_key is None:
        return []
    private = [Way("kms", PRIVATE, (HTTPS,))] if config.network.vpc_id or not config.target.makes_cluster else []
    return [public("kms", HTTPS), *private]


def _api(stack: LoadedStack) -> tuple[Way, ...]:
    """To the cluster's API: on EKS by a private address and port 443; elsewhere its port is the owner's choice.

    `apiCidrs` names the API server's own addresses: policies judge a connection after its Service's address became one.
    """
    named, ports = stack.config.kubernetes.api_cidrs, (HTTPS,) if stack.config.target.makes_cluster else ()
    if named is not None:
        return (Way("api", tuple(named), ports),)
    if stack.config.target.makes_cluster:
        return (Way("api", PRIVATE, (HTTPS,)),)
    return (Way("api", PRIVATE), public("api", *API_PORTS))


def _store(stack: LoadedStack) -> list[Way]:
    """To the store of the head's state; the name of an existing one has addresses that only its owner knows.

    Two ways, and not everywhere but `LINK`: the VPC CNI's agent gives all rules of a pod for one network the exceptions
    of each, so private addresses would be shut (aws-network-policy-agent v1.3.0, fw_rule_processor.go).
    """
    config = stack.config
    if address := config.kubernetes.redis_address:
        port = int(address.rpartition(":")[2])
        return [Way("store", PRIVATE, (port,)), public("store", port)]
    if head_storage_plan(stack) is None:
        return []
    return [Way("store", PRIVATE if config.network.vpc_id else (config.network.cidr,), (STORE_PORT,))]


def _media_addresses(models: Sequence[LoadedModel]) -> list[Way]:
    """Hosts that a model file names by a private address; one with a private name needs a policy of the user's own."""
    named = {
        domain
        for model in models
        for domain in model.config.engine_config.engine_kwargs.get("allowed_media_domains") or ()
    }
    hosts = sorted(str(domain) for domain in named if _is_private_host(str(domain)))
    return [Way("media", tuple(f"{host}/32" for host in hosts))] if hosts else []


def _is_private_host(domain: str) -> bool:
    try:
        address = IPv4Address(domain)
    except ValueError:
        return False
    return any(address in block for block in PRIVATE_ADDRESSES)
