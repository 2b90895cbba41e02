"""The model file: one YAML with RayLLM's three sections, as pydantic models.

Key names are today's (Ray Serve 2.60, vLLM 0.32); RayLLM's older spellings are normalised before these models
see them (`rayllm/legacy.py`). Every field's description becomes the reference in `models/README.md`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from modelfleet.serving.config.accelerators import CPU, accelerator_of, known_gpus, resource_name
from modelfleet.serving.config.catalogs import serve_options
from modelfleet.serving.config.cron import TimeZone, WeeklyCron, begin_apart
from modelfleet.serving.config.engine_schema import (
    AzureMirrorConfig,
    EngineConfig,
    ExtraFile,
    GcsMirrorConfig,
    GenerationConfig,
    LoraAdapter,
    PromptFormat,
    S3AwsCredentials,
    S3MirrorConfig,
)
from modelfleet.serving.config.section import (
    GPU_PARTS,
    Availability,
    AverageRequests,
    BalanceFactor,
    Cpus,
    Factor,
    GpuPart,
    Gpus,
    Memory,
    Milliseconds,
    Part,
    Percent,
    QueuedRequests,
    Replicas,
    Requests,
    Seconds,
    Section,
    Share,
    SomeReplicas,
    SomeSeconds,
    Workers,
)
from modelfleet.serving.config.validation import KeyFault, near, shown

__all__ = [
    "GPU_PARTS",
    "AutoscalingConfig",
    "AzureMirrorConfig",
    "DeploymentConfig",
    "EngineConfig",
    "ExtraFile",
    "Fallback",
    "GcsMirrorConfig",
    "GenerationConfig",
    "LoraAdapter",
    "ModelConfig",
    "PromptFormat",
    "RayActorOptions",
    "S3AwsCredentials",
    "S3MirrorConfig",
    "ScalingConfig",
    "Schedule",
    "ScheduleEntry",
    "Section",
    "Slo",
    "slug_of",
]


#: The key with the target of each policy that has one.
POLICY_TARGETS = {"time_to_first_token": "target_ttft_s", "kv_use": "target_kv_use"}


class ScheduleEntry(Section):
    """From when on a model has which bounds."""

    cron: WeeklyCron = Field(
        description="When it begins, every week: minute, hour, `*`, `*`, weekday.", examples=["0 8 * * mon-fri"]
    )
    min_replicas: Replicas | None = Field(
        None, description="Fewest replicas from then on; default the model's own.", examples=[2]
    )
    max_replicas: SomeReplicas | None = Field(
        None, description="Most replicas from then on; default the model's own.", examples=[8]
    )


class Schedule(Section):
    """A model's bounds by the time of the week."""

    time_zone: TimeZone = Field(description="Whose clock counts, in summer and winter.", examples=["Europe/Berlin"])
    entries: Annotated[list[ScheduleEntry], AfterValidator(begin_apart)] = Field(
        min_length=1,
        description="Of all entries the one that began last counts, at any time.",
        examples=[[{"cron": "0 8 * * mon-fri", "min_replicas": 2}, {"cron": "0 20 * * *", "min_replicas": 0}]],
    )


class AutoscalingConfig(Section):
    """Ray Serve's autoscaling of a model's replicas."""

    min_replicas: Replicas = Field(1, description="Fewest replicas; 0 lets the model scale to zero.", examples=[1])
    initial_replicas: Replicas | None = Field(
        None, description="Replicas at first deployment; default min_replicas.", examples=[1]
    )
    max_replicas: SomeReplicas = Field(1, description="Most replicas.", examples=[8])
    target_ongoing_requests: AverageRequests = Field(
        1.0,
        description="Ongoing requests per replica that the autoscaler aims for; about 40 % of max_ongoing_requests.",
        examples=[24],
    )
    policy: Literal["requests", "time_to_first_token", "kv_use", "ray_serve"] = Field(
        "requests",
        description="What the number of replicas follows: running and waiting requests, the target of "
        "target_ttft_s, the target of target_kv_use, or Ray Serve's own policy, which sees no waiting requests.",
        examples=["requests"],
    )
    target_ttft_s: SomeSeconds | None = Field(
        None, description="Mean seconds to the first token that time_to_first_token aims for.", examples=[1.5]
    )
    target_kv_use: Part | None = Field(
        None, description="Mean share of a replica's KV blocks in use that kv_use aims for.", examples=[0.6]
    )
    metrics_interval_s: SomeSeconds | None = Field(
        None, description="Seconds between a replica's reports; default 1, with ray_serve 10.", examples=[1]
    )
    look_back_period_s: SomeSeconds | None = Field(
        None,
        description="Seconds over which reports are averaged; default 5, with ray_serve 30. The other policies average "
        "only what waits at Serve while a model has no replica.",
        examples=[5],
    )
    upscaling_factor: Factor = Field(
        1.0, description="Gain of each upscaling decision; below 1 slows it.", examples=[1.0]
    )
    downscaling_factor: Factor = Field(
        1.0, description="Gain of each downscaling decision; below 1 slows it.", examples=[0.6]
    )
    upscale_delay_s: Seconds | None = Field(
        None,
        description="Seconds that more load must last before replicas are added; default 2, with ray_serve 30.",
        examples=[2],
    )
    downscale_delay_s: Seconds | None = Field(
        None,
        description="Seconds that less load must last before replicas are removed; default 300, with ray_serve 600.",
        examples=[600],
    )
    downscale_to_zero_delay_s: Seconds | None = Field(
        None,
        description="Seconds before the last replica is removed; default downscale_delay_s, or 600 without it.",
        examples=[1800],
    )

    schedule: Schedule | None = Field(
        None,
        description="Other bounds by the time of the week, without a restart of replicas that stay.",
        examples=[{"time_zone": "Europe/Berlin", "entries": [{"cron": "0 8 * * mon-fri", "min_replicas": 2}]}],
    )

    @model_validator(mode="after")
    def min_initial_and_max_are_in_order(self) -> Self:
        """`min <= initial <= max`."""
        initial = self.min_replicas if self.initial_replicas is None else self.initial_replicas
        if not self.min_replicas <= initial <= self.max_replicas:
            raise KeyFault(
                "max_replicas" if self.min_replicas > self.max_replicas else "initial_replicas",
                f"found min_replicas {self.min_replicas}, initial_replicas {initial}, max_replicas "
                f"{self.max_replicas}; allowed is min_replicas <= initial_replicas <= max_replicas",
            )
        return self

    @model_validator(mode="after")
    def a_schedule_has_bounds_in_order(self) -> Self:
        """Each entry's fewest are at most its most, with what it leaves to the model; and somebody acts on it."""
        if self.schedule is None:
            return self
        if self.policy == "ray_serve":
            raise KeyFault("schedule", "found with policy ray_serve, which knows no time; leave one of both out")
        for number, one in enumerate(self.schedule.entries, 1):
            fewest = self.min_replicas if one.min_replicas is None else one.min_replicas
            most = self.max_replicas if one.max_replicas is None else one.max_replicas
            if fewest > most:
                message = f"entry {number} has min_replicas {fewest} and max_replicas {most}; allowed is min <= max"
                raise KeyFault("schedule", message)
        return self

    @model_validator(mode="after")
    def a_policy_has_its_target(self) -> Self:
        """Each target belongs to one policy, which needs it."""
        for policy, key in POLICY_TARGETS.items():
            given = getattr(self, key) is not None
            if given and self.policy != policy:
                raise KeyFault(key, f"found with policy {self.policy}; write policy: {policy}, or leave it out")
            if not given and self.policy == policy:
                raise KeyFault("policy", f"found {policy}, which needs {key}; add it")
        return self


class RayActorOptions(Section):
    """Resources of the replica actor itself, without its workers' (RayLLM's first bundle)."""

    num_cpus: Cpus | None = Field(None, description="CPUs of the replica actor; default 1.", examples=[1])
    num_gpus: Gpus | None = Field(
        None, description="GPUs of the replica actor itself; default 0. The workers bring their own.", examples=[0]
    )
    memory: Memory | None = Field(
        None, description="Bytes of memory that the replica actor reserves.", examples=[2147483648]
    )
    resources: dict[str, Share] = Field(
        default_factory=dict,
        description="Custom resources, e.g. `accelerator_type:L4: 0.001`.",
        examples=[{"accelerator_type:L4": 0.001}],
    )
    runtime_env: dict[str, Any] = Field(
        default_factory=dict,
        description="Ray runtime environment of the replica.",
        examples=[{"env_vars": {"OMP_NUM_THREADS": "8"}}],
    )


class Slo(Section):
    """What clients of the model may expect. Alerts follow from it; replicas know nothing of it."""

    ttft_p95_ms: Milliseconds | None = Field(
        None, description="95 of 100 requests get their first token within so many milliseconds.", examples=[800]
    )
    tpot_p95_ms: Milliseconds | None = Field(
        None,
        description="95 of 100 requests get a further token at least every so many milliseconds, on average over their "
        "answer.",
        examples=[50],
    )
    availability: Availability | None = Field(
        None, description="Share of requests that the gateway answers without a 5xx status.", examples=[0.999]
    )

    @model_validator(mode="after")
    def names_something(self) -> Self:
        """An empty one would look like a promise."""
        if not self.model_fields_set:
            raise ValueError("is empty; name ttft_p95_ms, tpot_p95_ms or availability, or leave it out")
        return self


class DeploymentConfig(Section):
    """Ray Serve's deployment options of the model."""

    autoscaling_config: AutoscalingConfig | None = Field(
        None, description="Without it: num_replicas fixed replicas.", examples=[{"min_replicas": 1, "max_replicas": 8}]
    )
    num_replicas: SomeReplicas | None = Field(
        None, description="Fixed number of replicas, when autoscaling_config is absent; default 1.", examples=[2]
    )
    max_ongoing_requests: Requests = Field(
        100, description="Requests that one replica works on at a time; the rest wait.", examples=[64]
    )
    max_queued_requests: QueuedRequests | None = Field(
        None,
        description="Requests that can wait for each replica, or for the first one to start; more get a 503 with "
        "Retry-After. Default twice max_ongoing_requests; -1 means no limit.",
        examples=[200],
    )
    prefix_cache_affinity: bool | None = Field(
        None,
        description="true: the gateway sends a conversation that goes on to the replica that has its KV blocks, within "
        "hash_balance_factor; false: every request to the replica with the fewest open ones. Default true for a model "
        "that writes text and caches prefixes. A change restarts nothing.",
        examples=[False],
    )
    hash_balance_factor: BalanceFactor = Field(
        150,
        description="With prefix_cache_affinity: percent of the mean of open requests from which on a replica passes a "
        "conversation on to another one.",
        examples=[200],
    )
    ray_actor_options: RayActorOptions = Field(
        default_factory=RayActorOptions, description="Resources of the replica actor.", examples=[{"num_cpus": 1}]
    )
    health_check_period_s: SomeSeconds = Field(
        10.0, description="Seconds between health checks of a replica.", examples=[10]
    )
    health_check_timeout_s: SomeSeconds = Field(
        30.0, description="Seconds until a health check counts as failed.", examples=[30]
    )
    graceful_shutdown_wait_loop_s: SomeSeconds = Field(
        2.0, description="Seconds between checks for open requests at shutdown.", examples=[2]
    )
    graceful_shutdown_timeout_s: SomeSeconds | None = Field(
        None,
        description="Seconds that open requests get when a replica ends; default as long as the gateway allows a "
        "request, within what the drain of a node leaves.",
        examples=[60],
    )
    max_surge_percent: Percent | None = Field(
        None,
        description="Replicas that an edit starts before it stops old ones, in percent of all, rounded up; 0 stops an "
        "old one first. Default 20 where the pool has room for one more, else 0.",
        examples=[20],
    )
    slo: Slo | None = Field(
        None,
        description="What clients may expect; the stack's alerts and `plan` compare with it.",
        examples=[{"ttft_p95_ms": 800, "availability": 0.999}],
    )

    @classmethod
    def explain(cls, key: str) -> str | None:
        """Ray Serve has more options than a model file takes."""
        if key.startswith("placement_group_"):
            return "cannot be set here: it follows from scaling_config"
        return (
            "is an option of Ray Serve that a model file does not take"
            if key in serve_options()["deployment"]
            else None
        )

    @model_validator(mode="after")
    def replicas_are_given_once(self) -> Self:
        """Fixed or autoscaled, not both."""
        if self.num_replicas is not None and self.autoscaling_config is not None:
            raise KeyFault("num_replicas", "num_replicas and autoscaling_config exclude each other; keep one of them")
        return self


class Fallback(Section):
    """How the model runs on another accelerator, on which its pool falls back."""

    accelerator: str = Field(
        description="The other accelerator, which a `fallback` of the pool gives.", examples=["A10G"]
    )
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="vLLM engine arguments there, over those of engine_config; null takes one back.",
        examples=[{"max_num_seqs": 32}],
    )

    @field_validator("accelerator")
    @classmethod
    def accelerator_is_a_known_gpu(cls, value: str) -> str:
        """A name of the accelerators' table. Not a type: where this is imported beside the GPU, there is no table."""
        if value not in known_gpus():
            raise ValueError(f"found {shown(value)}; {near(value, known_gpus())}")
        return value


class ScalingConfig(Section):
    """What one replica takes: its workers and where they are placed."""

    num_workers: Workers = Field(
        description="Workers per replica: the tensor parallel size, times `pipeline_parallel_size`, its nodes; or as "
        "many as `data_parallel_size`, whose ranks share a model's experts.",
        examples=[4],
    )
    num_gpus_per_worker: Literal[0, 1] | GpuPart = Field(
        1,
        description="GPUs per worker: 1, or 0 on CPU; 0.5, 0.25 or 0.125 for a small model that shares its card with "
        "other replicas.",
        examples=[1],
    )
    num_cpus_per_worker: Cpus = Field(1.0, description="CPUs per worker; usually 8.", examples=[8])
    placement_strategy: Literal["PACK", "STRICT_PACK", "SPREAD", "STRICT_SPREAD"] = Field(
        "PACK",
        description="Ray placement strategy of the bundles of Ray's executor; otherwise a replica is one bundle.",
        examples=["STRICT_PACK"],
    )
    resources_per_worker: dict[str, Share] = Field(
        default_factory=dict,
        description="Custom resources per worker, e.g. `accelerator_type:L4: 0.001`.",
        examples=[{"accelerator_type:L4": 0.001}],
    )
    fallback: list[Fallback] = Field(
        default_factory=list,
        description="Engine arguments on the other accelerators that a pool may fall back on; without an entry the "
        "model runs there with its own.",
        examples=[[{"accelerator": "A10G", "engine_kwargs": {"max_num_seqs": 32}}]],
    )
    pg_timeout_s: SomeSeconds = Field(600.0, description="Accepted for old files; has no effect.", examples=[600])

    @field_validator("num_gpus_per_worker", mode="before")
    @classmethod
    def one_gpu_or_none(cls, value: object) -> object:
        """Refuses more than one GPU, and names the key for more; `1.0` and `"1"` are 1, as in RayLLM.

        Parts are halves of halves: in whatever order they start, Ray's best fit leaves no room on two cards that one
        replica could use on one (`src/ray/common/scheduling/resource_instance_set.cc`, `TryAllocate`). With 0.4 and
        0.3, replicas that fit a node by their sum would fit none of its cards.
        """
        try:
            gpus = float(value) if isinstance(value, int | float | str) else None
        except ValueError:
            return value
        if gpus is None or gpus in (0, 1):
            return value if gpus is None or isinstance(value, bool) else int(gpus)
        if gpus in GPU_PARTS:
            return gpus
        if 0 < gpus < 1:
            raise ValueError(f"found {value}; allowed parts of a GPU are {', '.join(map(str, GPU_PARTS))}")
        raise ValueError(f"found {value}; a worker has one GPU (0 on {CPU}): change num_workers instead")


class ModelConfig(Section):
    """One model file."""

    deployment_config: DeploymentConfig = Field(
        default_factory=DeploymentConfig,
        description="Ray Serve options of the model.",
        examples=[{"max_ongoing_requests": 64}],
    )
    engine_config: EngineConfig = Field(
        description="Which model, and how vLLM runs it.", examples=[{"model_id": "meta-llama/Llama-2-7b-chat-hf"}]
    )
    scaling_config: ScalingConfig = Field(description="What one replica takes.", examples=[{"num_workers": 1}])
    enabled: bool = Field(True, description="false leaves the model out of every stack.", examples=[False])

    def accelerators_named(self) -> set[str]:
        """Every accelerator that the two resource maps name."""
        maps = (self.scaling_config.resources_per_worker, self.deployment_config.ray_actor_options.resources)
        return {name for one in maps for resource in one if (name := accelerator_of(resource))}

    @property
    def accelerator(self) -> str:
        """The accelerator that decides the pool; `CPU` when no GPU is asked for."""
        return min(self.accelerators_named(), default=CPU)

    def on(self, accelerator: str) -> Self:
        """The model as it runs on another accelerator: with its `fallback` arguments, and that one in its resources."""
        own = self.accelerator
        if accelerator == own:
            return self
        given = next((one.engine_kwargs for one in self.scaling_config.fallback if one.accelerator == accelerator), {})
        actor = self.deployment_config.ray_actor_options

        def renamed(resources: dict[str, float]) -> dict[str, float]:
            here = {resource_name(own): resource_name(accelerator)}
            return {here.get(name, name): amount for name, amount in resources.items()}

        parts = {
            "deployment_config": self.deployment_config.model_copy(
                update={"ray_actor_options": actor.model_copy(update={"resources": renamed(actor.resources)})}
            ),
            "engine_config": self.engine_config.model_copy(
                update={"engine_kwargs": {**self.engine_config.engine_kwargs, **given}}
            ),
            "scaling_config": self.scaling_config.model_copy(
                update={"resources_per_worker": renamed(self.scaling_config.resources_per_worker)}
            ),
        }
        return self.model_copy(update=parts)

    @property
    def model_id(self) -> str:
        """The model's public name."""
        return self.engine_config.model_id

    @property
    def slug(self) -> str:
        """The id with `/` as `--`: name of the file, the Serve application and the mirror's prefix."""
        return slug_of(self.model_id)


def slug_of(model_id: str) -> str:
    """`organization/name` → `organization--name`."""
    return model_id.replace("/", "--")
