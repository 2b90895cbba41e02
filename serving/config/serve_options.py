"""What a model file means to Ray Serve: deployment options and the replica's placement group, as plain data.

The planner packs nodes with these bundles and the replica asks Ray for the same ones, so they cannot disagree.
RayLLM made N+1 bundles, the replica's own and then one per worker (`models/README.md`). Here a replica is one bundle
with all that those reserved, and vLLM's workers are the replica's child processes. Only where the model file asks for
Ray's executor does each worker still have a bundle of its own.
"""

from __future__ import annotations

from typing import Any

from modelfleet.serving.config.schema import POLICY_TARGETS, AutoscalingConfig, ModelConfig

Bundle = dict[str, float]

DEPLOYMENT = "vllm"
"""Name of the deployment in each application; the application's name is the model's slug."""

REPLICA_ENVIRONMENT = {
    # Serve reads it when the replica imports Serve. With 1, the default, each chunk of a stream passes from the
    # application's thread to the server's; with 0 the application writes to the server itself (Ray 2.60 `replica.py`,
    # `_direct_ingress_asgi`).
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
}
"""Environment of every replica's process."""

RAY_ENVIRONMENT = {
    # 15 by default: replicas would come last beside everything else on their node, and a starved one fails Serve's
    # health checks.
    "RAY_worker_niceness": "0",
    # vLLM's processes are children of the replica and do not notice its end (vllm#55510). The raylet ends the whole
    # process group of a worker that died, by default since ray#64407; nobody may switch it off, or GPU memory stays
    # taken.
    "RAY_process_group_cleanup_enabled": "1",
    # vLLM asks NVML about a card by its number and CUDA computes on it; by default CUDA counts the fastest card first
    # (vLLM 0.32 `vllm/platforms/cuda.py`).
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
}
"""Environment of Ray on every node, which all its processes inherit."""


GATEWAY_KEYS = ("prefix_cache_affinity", "hash_balance_factor")
"""Keys of `deployment_config` that only the gateway reads: no arguments of a replica, so a change restarts none."""

SCALING_KEYS = ("policy", "schedule", *POLICY_TARGETS.values())
"""Keys of `autoscaling_config` that Ray Serve does not have, or means otherwise."""

SHUTDOWN_S = 60.0
"""Seconds that open requests get where neither the file nor a plan says it."""

QUEUE_PER_ONGOING = 2
"""Requests that can wait for each one in progress: no client is more than two answers away from its turn."""

POLICY = "modelfleet.serving.scaling:ScalingPolicy"
"""The autoscaling policy of every model whose file does not ask for Serve's own."""

UPSCALE_S, DOWNSCALE_S, TO_ZERO_S, REPORT_S, LOOK_BACK_S = 2.0, 300.0, 600.0, 1.0, 5.0
"""Seconds for which more, less and no load must last, and between and over a replica's reports, where the file does not
say it. Serve's own policy comes down after 600 s: it would have to climb again, and one dip is enough for it."""

RETRY_AFTER_S = 5
"""Seconds after which a client can retry a request that a full queue refused."""


def workers_are_ray_actors(model: ModelConfig) -> bool:
    """Whether the file asks for Ray's executor, which takes the workers' bundles. vLLM's CPU build has none."""
    asked = model.engine_config.engine_kwargs.get("distributed_executor_backend")
    return asked == "ray" and bool(model.scaling_config.num_gpus_per_worker)


def stages_of(model: ModelConfig) -> int:
    """Nodes of one replica: the stages of its pipeline (`pipeline_parallel_size`), one a node; 1 without one."""
    asked = model.engine_config.engine_kwargs.get("pipeline_parallel_size")
    return asked if isinstance(asked, int) and asked > 1 else 1


def data_ranks_of(model: ModelConfig) -> int:
    """Data parallel ranks of one replica (`data_parallel_size`), all on its node; 1 without.

    Each has attention and a cache of its own, and all share the experts.
    """
    asked = model.engine_config.engine_kwargs.get("data_parallel_size")
    return asked if isinstance(asked, int) and asked > 1 else 1


def tensor_ranks_of(model: ModelConfig) -> int:
    """Workers that share each layer's attention: those of one stage and one data parallel rank."""
    return model.scaling_config.num_workers // (stages_of(model) * data_ranks_of(model))


def placement_strategy(model: ModelConfig) -> str:
    """Ray's strategy for the bundles: each stage of a pipeline is on a node of its own."""
    return "STRICT_SPREAD" if stages_of(model) > 1 else model.scaling_config.placement_strategy


def placement_bundles(model: ModelConfig) -> list[Bundle]:
    """Ray placement-group bundles of one replica; zero entries are dropped.

    One bundle with the replica's and its workers' resources; of a pipeline one for each stage with its workers, the
    first with the replica too; with Ray's executor the replica's own and one per worker.
    """
    scaling = model.scaling_config
    replica = _replica_bundle(model)
    worker: Bundle = {
        "CPU": scaling.num_cpus_per_worker,
        "GPU": float(scaling.num_gpus_per_worker),
        **scaling.resources_per_worker,
    }
    if (stages := stages_of(model)) > 1:
        share: Bundle = {"memory": replica["memory"] / stages}
        inside = [worker] * (scaling.num_workers // stages) + [share]
        return [_without_zeros(_sum([replica | share, *inside[:-1]])), *[_without_zeros(_sum(inside))] * (stages - 1)]
    bundles = [replica] + [worker] * scaling.num_workers
    if not workers_are_ray_actors(model):
        return [_without_zeros(_sum(bundles))]
    return [b for b in map(_without_zeros, bundles) if b]


def _replica_bundle(model: ModelConfig) -> Bundle:
    actor = model.deployment_config.ray_actor_options
    return {
        "CPU": 1.0 if actor.num_cpus is None else actor.num_cpus,
        "GPU": actor.num_gpus or 0.0,
        "memory": float(actor.memory or 0),
        **actor.resources,
    }


def actor_options(model: ModelConfig) -> dict[str, Any]:
    """Ray Serve's `ray_actor_options` of the replica: its part of the first bundle, and the runtime environment.

    Serve refuses an actor whose resources are not in bundle 0. A replica takes the whole bundle, because its workers
    live in it, but with GPUs only its own share of the CPUs: Ray sets OMP_NUM_THREADS from `num_cpus` (Ray 2.60
    `ray/_private/utils.py`, `set_omp_num_threads_if_unset`), and beside a GPU more threads only spin. The rest of the
    bundle's CPUs stays reserved for the workers. The replica gets `engine_config.runtime_env` too, because vLLM's
    workers inherit it.
    """
    replica = _replica_bundle(model)
    own = replica if workers_are_ray_actors(model) else dict(placement_bundles(model)[0])
    if model.scaling_config.num_gpus_per_worker:
        own["CPU"] = replica["CPU"]
    options: dict[str, Any] = {"num_cpus": own.get("CPU", 0.0), "num_gpus": own.get("GPU", 0.0)}
    if own.get("memory"):
        options["memory"] = own["memory"]
    if resources := {name: amount for name, amount in own.items() if name not in ("CPU", "GPU", "memory")}:
        options["resources"] = resources
    options["runtime_env"] = _runtime_env(model)
    return options


def _runtime_env(model: ModelConfig) -> dict[str, Any]:
    """The engine's runtime environment, which the replica's own overrides; the variables of both, and Serve's."""
    engine, actor = model.engine_config.runtime_env, model.deployment_config.ray_actor_options.runtime_env
    merged = {**engine, **actor}
    merged["env_vars"] = {**REPLICA_ENVIRONMENT, **engine.get("env_vars", {}), **actor.get("env_vars", {})}
    return merged


def deployment_options(
    model: ModelConfig, *, own_policy: bool = True, schedule: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Keyword arguments of Ray Serve's `Deployment.options`, without the placement group.

    Without `own_policy` Serve scales by its own. `schedule` is `scaling.Schedule` as JSON; then the model's own bounds
    are those of its whole week.
    """
    config = model.deployment_config
    options: dict[str, Any] = config.model_dump(
        include={
            "max_ongoing_requests",
            "health_check_period_s",
            "health_check_timeout_s",
            "graceful_shutdown_wait_loop_s",
        }
    )
    shutdown_s = config.graceful_shutdown_timeout_s
    options["graceful_shutdown_timeout_s"] = SHUTDOWN_S if shutdown_s is None else shutdown_s
    options["max_surge_percent"] = config.max_surge_percent or 0
    queue = queue_per_replica(model)
    options["max_queued_requests"] = -1 if queue is None else queue
    options["backpressure_config"] = {"status_code": 503, "retry_after_s": RETRY_AFTER_S}
    if config.autoscaling_config is None:
        options["num_replicas"] = config.num_replicas or 1
    else:
        options["autoscaling_config"] = autoscaling_options(
            config.autoscaling_config, config.max_ongoing_requests, own_policy=own_policy, schedule=schedule
        )
    return options


def queue_per_replica(model: ModelConfig) -> int | None:
    """Requests that may wait for each replica; None means no limit.

    Serve's own default is no limit, but every waiting request holds its body and a connection.
    """
    config = model.deployment_config
    if config.max_queued_requests is None:
        return QUEUE_PER_ONGOING * config.max_ongoing_requests
    return None if config.max_queued_requests < 0 else config.max_queued_requests


def autoscaling_options(
    config: AutoscalingConfig, places: int, *, own_policy: bool = True, schedule: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Ray Serve's `autoscaling_config`, for replicas with `places` of requests at a time.

    All policies but Serve's own are `ScalingPolicy`. Its delays are windows of what it has seen, so Serve adds none of
    its own to them: those must last without a break, and one dip among 600 s of load would be enough to lose
    replicas.
    """
    options = config.model_dump(exclude_none=True, exclude=set(SCALING_KEYS))
    if config.policy == "ray_serve" or not own_policy:
        return options
    asked_s, last_s = config.downscale_delay_s, config.downscale_to_zero_delay_s
    up_s = UPSCALE_S if config.upscale_delay_s is None else config.upscale_delay_s
    target = POLICY_TARGETS.get(config.policy)
    aim: dict[str, Any] = {
        "follows": config.policy,
        "requests": config.target_ongoing_requests,
        "places": places,
        "target": getattr(config, target) if target else 0.0,
        "up_s": up_s,
        "down_s": DOWNSCALE_S if asked_s is None else asked_s,
        "to_zero_s": next(one for one in (last_s, asked_s, TO_ZERO_S) if one is not None),
    }
    if schedule is not None:
        aim["schedule"] = schedule
    return {
        "metrics_interval_s": REPORT_S,
        "look_back_period_s": LOOK_BACK_S,
        **options,
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "downscale_to_zero_delay_s": 0.0,
        "policy": {"policy_function": POLICY, "policy_kwargs": aim},
    }


def replica_bounds(model: ModelConfig) -> tuple[int, int, int]:
    """Minimum, initial and maximum number of replicas."""
    scaling = model.deployment_config.autoscaling_config
    if scaling is None:
        fixed = model.deployment_config.num_replicas or 1
        return fixed, fixed, fixed
    initial = scaling.min_replicas if scaling.initial_replicas is None else scaling.initial_replicas
    return scaling.min_replicas, initial, scaling.max_replicas


def _sum(bundles: list[Bundle]) -> Bundle:
    total: Bundle = {}
    for bundle in bundles:
        for resource, amount in bundle.items():
            total[resource] = total.get(resource, 0.0) + amount
    return total


def _without_zeros(bundle: Bundle) -> Bundle:
    return {resource: amount for resource, amount in bundle.items() if amount}
