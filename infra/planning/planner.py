"""`plan()`: every decision about a stack, made once."""

from __future__ import annotations

from collections.abc import Sequence

from infra.catalog import Catalog, default_catalog
from infra.planning.applications import application, bucket_plan, gateway_plan, mirror_plan
from infra.planning.cost import model_costs, pool_cost, total
from infra.planning.demand import Demand, demand_of
from infra.planning.local import local_node
from infra.planning.nodes import ray_resources
from infra.planning.packing import copies_per_node
from infra.planning.plan import CodeArtifact, ModelPlan, Plan, PoolPlan, RayClusterPlan, Replicas, Taint, WorkerGroup
from infra.planning.pools import PoolChoice, assign, pool_choice
from infra.stack import LoadedStack
from serving.config.accelerators import CPU
from serving.config.errors import Finding, InputErrors, errors_in
from serving.config.load import LoadedModel

RAY_VERSION = "2.60.0"
DEFAULT_IMAGE = f"modelfleet-serving:ray{RAY_VERSION}"
IDLE_TIMEOUT_S = 300
GPU_TAINT = Taint("nvidia.com/gpu", "true", "NoSchedule")


def plan(
    models: Sequence[LoadedModel], stack: LoadedStack, *, code: CodeArtifact, catalog: Catalog | None = None
) -> Plan:
    """The plan of a stack. Pure: files were read before, nothing is made here.

    Raises `InputErrors` with every finding, each at the line of the model or stack file that has to change.
    """
    catalog = catalog or default_catalog()
    demands = [demand_of(model) for model in sorted(models, key=lambda m: m.config.model_id)]
    by_pool, findings = assign(stack, demands)
    choices: list[PoolChoice] = []
    for index, pool in enumerate(stack.config.pools):
        choice, found = pool_choice(index, stack, by_pool[pool.name], catalog)
        findings += found
        choices += [choice] if choice is not None else []
    bucket, found = bucket_plan(stack, models)
    findings += found + _auth(stack)
    if errors := errors_in(findings):
        raise InputErrors(errors)
    pools = tuple(_pool_plan(stack, choice) for choice in choices)
    planned = tuple(_model_plan(stack, c, d, bucket.name, code) for c in choices for d in c.demands)
    return Plan(
        stack=stack.name,
        target=stack.config.target,
        region=stack.region,
        namespace=stack.config.kubernetes.namespace or f"modelfleet-{stack.name}",
        config=stack.config,
        pools=pools,
        models=tuple(sorted(planned, key=lambda m: m.model_id)),
        ray_cluster=_ray_cluster(stack, pools),
        gateway=gateway_plan(stack, models),
        bucket=bucket,
        code=code,
        cost=total([pool.cost for pool in pools]),
        prices=_prices(stack, catalog, pools),
        notices=tuple(sorted([*stack.notices, *findings])),
    )


def _auth(stack: LoadedStack) -> list[Finding]:
    if stack.config.auth == "none" or "apiKeys" in stack.secrets:
        return []
    message = "is not set, and auth is keys; run `pulumi config set --secret --path modelfleet:apiKeys.NAME KEY`, or say `modelfleet:auth: none`"
    return [stack.finding(("apiKeys",), message)]


def _labels(stack: LoadedStack, choice: PoolChoice) -> dict[str, str]:
    labels = {"modelfleet.dev/stack": stack.name, "modelfleet.dev/pool": choice.pool.name}
    if choice.node.gpus:
        labels |= {
            "k8s.amazonaws.com/accelerator": choice.pool.accelerator.lower(),
            "nvidia.com/gpu.present": "true",
            "nvidia.com/gpu.count": str(choice.node.gpus),
        }
    return labels


def _pool_plan(stack: LoadedStack, choice: PoolChoice) -> PoolPlan:
    pool = choice.pool
    min_nodes = max(choice.min_nodes, pool.min_nodes)
    return PoolPlan(
        name=pool.name,
        accelerator=pool.accelerator,
        purchase=pool.purchase,
        instance_types=choice.instance_types,
        node=choice.node,
        min_nodes=min_nodes,
        needed_nodes=choice.max_nodes,
        max_nodes=pool.max_nodes,
        floor_nodes=pool.min_nodes,
        zones=tuple(pool.zones) if pool.zones else None,
        capacity_reservation_id=pool.capacity_reservation_id,
        efa=pool.efa,
        labels=_labels(stack, choice),
        taints=() if pool.accelerator == CPU else (GPU_TAINT,),
        ray_resources=ray_resources(pool.accelerator, choice.node),
        vcpus_per_node=choice.vcpus,
        usd_per_node_hour=choice.usd_per_hour,
        cost=pool_cost(stack.config.target, choice),
    )


def _model_plan(
    stack: LoadedStack, choice: PoolChoice, demand: Demand, bucket: str | None, code: CodeArtifact
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
        replicas_per_node=copies_per_node(demand.total, choice.offer),
        bundles=demand.bundles,
        placement_strategy=demand.strategy,
        mirror=mirror,
        application=application(model, mirror, bucket, code),
        memory=None,
        cost=model_costs(choice, pool_cost(stack.config.target, choice))[model.model_id],
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
    )


def _prices(stack: LoadedStack, catalog: Catalog, pools: Sequence[PoolPlan]) -> str:
    """The notice about where prices come from."""
    if stack.config.target == "local":
        return "this machine: no price"
    dates = {
        f"{price.date}, {price.source}"
        for pool in pools
        for name in pool.instance_types
        if (price := catalog.prices.get((stack.region or "", name))) is not None
    }
    if not dates:
        return f"no price is known for {stack.region or 'this cluster'}"
    return f"EC2 on-demand Linux, {stack.region}, {'; '.join(sorted(dates))}"
