"""`plan()`: every decision about a stack, made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infra.catalog import Catalog, default_catalog
from infra.planning.applications import application, bucket_plan, gateway_plan, mirror_plan, name_findings
from infra.planning.candidates import PoolChoice
from infra.planning.cost import (
    budget_findings,
    fixed_cost_range,
    fixed_costs,
    model_costs,
    pool_cost,
    prices_note,
    total,
)
from infra.planning.demand import Demand, demand_of
from infra.planning.facts import ModelFacts, catalog_facts
from infra.planning.fit import host_bytes, memory_of
from infra.planning.fit_findings import fit_findings
from infra.planning.network import network_findings
from infra.planning.nodes import ray_resources
from infra.planning.packing import copies
from infra.planning.plan import (
    CodeArtifact,
    CostRange,
    GpuMemory,
    ModelPlan,
    Plan,
    PoolPlan,
    RayClusterPlan,
    Replicas,
    Taint,
    WorkerGroup,
)
from infra.planning.pools import settle
from infra.stack import LoadedStack
from serving.config.accelerators import CPU
from serving.config.errors import Finding, InputErrors, Severity, errors_in
from serving.config.load import LoadedModel

RAY_VERSION = "2.60.0"
DEFAULT_IMAGE = f"modelfleet-serving:ray{RAY_VERSION}"
IDLE_TIMEOUT_S = 300
#: At least this, so that a shorter `gateway.timeoutS` is a change of the gateway and not of the Ray cluster.
LEAST_LONGEST_STREAM_S = 3600
GPU_TAINT = Taint("nvidia.com/gpu", "true", "NoSchedule")


def plan(
    models: Sequence[LoadedModel],
    stack: LoadedStack,
    *,
    code: CodeArtifact,
    catalog: Catalog | None = None,
    facts: Mapping[str, ModelFacts | None] | None = None,
    deploying: bool = True,
) -> Plan:
    """The plan of a stack. Pure: files were read before, nothing is made here.

    `facts` by `model_id` says what is known about each model, default what the catalog knows. Without `deploying`,
    secrets that are not set yet are a warning, for the plan is only looked at. Raises `InputErrors` with every
    finding, each at the line of the model or stack file that has to change.
    """
    catalog = catalog or default_catalog()
    facts = catalog_facts((m.config for m in models), catalog) if facts is None else facts
    models = sorted(models, key=lambda model: model.config.model_id)
    demands = [demand_of(m, host_bytes(m.config, facts.get(m.config.model_id), catalog)) for m in models]
    choices, findings = settle(stack, demands, catalog)
    bucket, found = bucket_plan(stack, models)
    findings += [
        *found,
        *name_findings(models),
        *_stack_findings(stack, deploying=deploying),
        *fit_findings(models, facts, catalog),
    ]
    pools = tuple(_pool_plan(stack, choice) for choice in choices)
    fixed = fixed_costs(stack, catalog)
    cost = total([*(pool.cost for pool in pools), fixed_cost_range(fixed)])
    findings += budget_findings(stack, cost, pools)
    if errors := errors_in(findings):
        raise InputErrors(errors)
    memory = {m.config.model_id: memory_of(m.config, facts.get(m.config.model_id), catalog) for m in models}
    planned = [
        _model_plan(stack, choice, demand, bucket.name, code, memory=memory[demand.model_id], cost=cost_of_one)
        for choice in choices
        for demand, cost_of_one in model_costs(choice, pool_cost(stack.config.target, choice))
    ]
    return Plan(
        stack=stack.name,
        target=stack.config.target,
        region=stack.region,
        namespace=stack.config.kubernetes.namespace_of(stack.name),
        operator_namespace=stack.config.kubernetes.operator_namespace_of(stack.name),
        config=stack.config,
        pools=pools,
        models=tuple(sorted(planned, key=lambda model: model.model_id)),
        ray_cluster=_ray_cluster(stack, pools),
        gateway=gateway_plan(stack, models),
        bucket=bucket,
        code=code,
        cost=cost,
        prices=prices_note(stack, catalog, [name for pool in pools for name in pool.instance_types]),
        notices=tuple(sorted([*stack.notices, *findings])),
        fixed=fixed,
    )


def _stack_findings(stack: LoadedStack, *, deploying: bool) -> list[Finding]:
    """What is wrong with the stack file whatever the models are."""
    return [
        *_auth(stack, deploying=deploying),
        *_image(stack),
        *_operator(stack),
        *_region(stack),
        *(network_findings(stack) if stack.config.target == "eks" else []),
    ]


def _image(stack: LoadedStack) -> list[Finding]:
    """No registry has our default name: pods would wait for it on nodes that are paid for."""
    if stack.config.target == "local" or stack.config.kubernetes.image:
        return []
    message = (
        f"is not set, and no registry has {DEFAULT_IMAGE}; build serving/Dockerfile, push it to a registry that the "
        "nodes reach, and name it here"
    )
    return [stack.finding(("kubernetes", "image"), message, Severity.WARNING)]


def _operator(stack: LoadedStack) -> list[Finding]:
    """A cluster that is only made by this run has no operator yet."""
    if stack.config.target != "eks" or stack.config.kubernetes.operator_namespace is None:
        return []
    message = "is for an existing cluster, and target eks makes a new one; remove it"
    return [stack.finding(("kubernetes", "operatorNamespace"), message)]


def _region(stack: LoadedStack) -> list[Finding]:
    if stack.config.target != "eks" or stack.region:
        return []
    return [stack.finding((), "aws:region is missing; run `pulumi config set aws:region us-east-1`")]


def _auth(stack: LoadedStack, *, deploying: bool) -> list[Finding]:
    if stack.config.auth == "none" or "apiKeys" in stack.secrets:
        return []
    message = (
        "is not set, and auth is keys; run `pulumi config set --secret --path modelfleet:apiKeys.NAME KEY`, "
        "or say `modelfleet:auth: none`"
    )
    return [stack.finding(("apiKeys",), message, Severity.ERROR if deploying else Severity.WARNING)]


def _labels(stack: LoadedStack, choice: PoolChoice) -> dict[str, str]:
    labels = {"modelfleet.dev/stack": stack.name, "modelfleet.dev/pool": choice.pool.name}
    if choice.candidate.node.gpus:
        labels |= {
            "k8s.amazonaws.com/accelerator": choice.pool.accelerator.lower(),
            "nvidia.com/gpu.present": "true",
            "nvidia.com/gpu.count": str(choice.candidate.node.gpus),
        }
    return labels


def _pool_plan(stack: LoadedStack, choice: PoolChoice) -> PoolPlan:
    pool = choice.pool
    min_nodes = max(choice.min_nodes, pool.min_nodes)
    return PoolPlan(
        name=pool.name,
        accelerator=pool.accelerator,
        purchase=pool.purchase,
        instance_types=choice.candidate.instance_types,
        node=choice.candidate.node,
        min_nodes=min_nodes,
        needed_nodes=choice.max_nodes,
        max_nodes=pool.max_nodes,
        floor_nodes=pool.min_nodes,
        zones=tuple(pool.zones) if pool.zones else None,
        capacity_reservation_id=pool.capacity_reservation_id,
        efa=pool.efa,
        labels=_labels(stack, choice),
        taints=() if pool.accelerator == CPU else (GPU_TAINT,),
        ray_resources=ray_resources(pool.accelerator, choice.candidate.node),
        vcpus_per_node=choice.candidate.vcpus,
        usd_per_node_hour=choice.candidate.usd_per_hour,
        cost=pool_cost(stack.config.target, choice),
    )


def _model_plan(
    stack: LoadedStack,
    choice: PoolChoice,
    demand: Demand,
    bucket: str | None,
    code: CodeArtifact,
    *,
    memory: GpuMemory | None,
    cost: CostRange,
) -> ModelPlan:
    model = demand.model.config
    mirror = mirror_plan(stack, model)
    return ModelPlan(
        model_id=model.model_id,
        slug=model.slug,
        file=demand.model.file,
        accelerator=model.accelerator,
        pool=choice.pool.name,
        workers=model.scaling_config.num_workers,
        replicas=Replicas(demand.min, demand.initial, demand.max),
        replicas_per_node=copies(demand.whole, choice.candidate.room),
        bundles=demand.bundles,
        placement_strategy=demand.strategy,
        mirror=mirror,
        application=application(model, mirror, bucket, code),
        memory=memory,
        cost=cost,
    )


def _ray_cluster(stack: LoadedStack, pools: Sequence[PoolPlan]) -> RayClusterPlan:
    """From pools, image and rollout only: nothing about models may come in here."""
    kubernetes = stack.config.kubernetes
    groups = tuple(
        WorkerGroup(
            name=pool.name,
            pool=pool.name,
            min_replicas=pool.floor_nodes,
            max_replicas=pool.max_nodes,
            ray_resources=pool.ray_resources,
            node=pool.node,
            labels=pool.labels,
            taints=pool.taints,
        )
        for pool in pools
    )
    return RayClusterPlan(
        image=kubernetes.image or DEFAULT_IMAGE,
        ray_version=RAY_VERSION,
        worker_groups=groups,
        rollout=kubernetes.rollout,
        redis_address=kubernetes.redis_address,
        idle_timeout_s=IDLE_TIMEOUT_S,
        longest_stream_s=max(LEAST_LONGEST_STREAM_S, stack.config.gateway.timeout_s),
    )
