"""`plan()`: every decision about a stack, made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from modelfleet.infra.catalog import Catalog, default_catalog
from modelfleet.infra.names import ACCELERATOR_LABEL, GPU, GPU_COUNT_LABEL, GPU_PRESENT_LABEL, POOL_LABEL, STACK_LABEL
from modelfleet.infra.planning.adapters import adapter_findings, with_adapters
from modelfleet.infra.planning.applications import (
    adapter_mirror,
    all_mirrors,
    application,
    bucket_plan,
    draft_mirror,
    gateway_plan,
    kind_of,
    mirror_plan,
    name_findings,
    served_names,
    tokenizer_mirror,
)
from modelfleet.infra.planning.batch import with_batch
from modelfleet.infra.planning.candidates import PoolChoice, on_one_node
from modelfleet.infra.planning.cards import (
    card_findings,
    card_plan,
    cards_here,
    on_cards,
    unused_card_findings,
    with_share,
)
from modelfleet.infra.planning.cost import (
    amp_costs,
    budget_findings,
    fixed_cost_range,
    fixed_costs,
    model_costs,
    pool_cost,
    prices_note,
    replica_cost,
    total,
)
from modelfleet.infra.planning.demand import Demand, demand_of
from modelfleet.infra.planning.egress import egress_findings, egress_plan
from modelfleet.infra.planning.facts import ModelFacts, catalog_facts
from modelfleet.infra.planning.fallback import cards_of, fallback_findings, on_fallbacks, without_fallbacks
from modelfleet.infra.planning.fit import default_length, draft_bytes, memory_of, setting_of
from modelfleet.infra.planning.fit_findings import fit_findings
from modelfleet.infra.planning.front_door import front_door, front_door_findings
from modelfleet.infra.planning.gap import Room, Rooms, gap_findings, gap_of
from modelfleet.infra.planning.head_storage import head_storage_findings, head_storage_plan
from modelfleet.infra.planning.host_memory import PROCESSOR, with_host_memory
from modelfleet.infra.planning.image import image_findings, image_name, image_plan, mirror_image_name, mirror_image_plan
from modelfleet.infra.planning.keys import auth_findings, key_budget_findings, key_findings, with_prices
from modelfleet.infra.planning.ladder import ladder_findings, node_group_findings, rungs
from modelfleet.infra.planning.length import length_source, sampling_of, with_length
from modelfleet.infra.planning.local import Machine, machine_missing, memory_short
from modelfleet.infra.planning.logs import log_collector_plan, log_findings, log_format, with_collector
from modelfleet.infra.planning.measured import on_measured
from modelfleet.infra.planning.mirrors import copy_findings, copy_plan, slow_copy_findings, stored_bytes
from modelfleet.infra.planning.monitoring import amp_plan, monitoring_findings, monitoring_plan, own_monitoring_plan
from modelfleet.infra.planning.network import network_findings
from modelfleet.infra.planning.nodes import ray_resources
from modelfleet.infra.planning.packing import copies
from modelfleet.infra.planning.pipeline import pipeline_findings
from modelfleet.infra.planning.plan import (
    CodeArtifact,
    CostRange,
    GatewayPlan,
    GpuMemory,
    ImageSource,
    JwtKey,
    LengthSource,
    MirrorPlan,
    ModelPlan,
    Plan,
    PoolPlan,
    RayClusterPlan,
    Replicas,
    Rung,
    Taint,
    WorkerGroup,
)
from modelfleet.infra.planning.pool_findings import (
    cpu_findings,
    shared_memory_findings,
    weights_disk_findings,
    weights_room_gb,
)
from modelfleet.infra.planning.pools import settle
from modelfleet.infra.planning.recipe_findings import bad_combinations
from modelfleet.infra.planning.release import release_plan
from modelfleet.infra.planning.replica_speed import model_speed
from modelfleet.infra.planning.schedule import schedule_findings, schedule_of, with_span
from modelfleet.infra.planning.seals import seal_findings, seal_plan
from modelfleet.infra.planning.signers import manifest_key_plan, signer_findings, streaming_findings
from modelfleet.infra.planning.slo import objectives
from modelfleet.infra.planning.slo_findings import slo_findings
from modelfleet.infra.planning.speed import SpeedEstimate
from modelfleet.infra.planning.start_up import start_up
from modelfleet.infra.planning.system_pool import system_plan
from modelfleet.infra.planning.tags import tag_findings
from modelfleet.infra.planning.traces import traces_findings
from modelfleet.infra.planning.trust import trust_findings
from modelfleet.infra.planning.use_findings import licence_findings, token_findings
from modelfleet.infra.planning.way_back import return_findings, return_plan
from modelfleet.infra.planning.week import week_plan
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.accelerators import CPU
from modelfleet.serving.config.errors import Finding, InputErrors, Severity, errors_in
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.scaling import Schedule
from modelfleet.serving.versions import PINNED

IDLE_TIMEOUT_S = 300
#: A floor: a change of `gateway.timeoutS` below it changes only the gateway, not the Ray cluster.
LEAST_LONGEST_STREAM_S = 3600
#: A label's length. https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#dns-label-names
LONGEST_NAMESPACE = 63
GPU_TAINT = Taint(GPU, "true", "NoSchedule")


def plan(
    models: Sequence[LoadedModel],
    stack: LoadedStack,
    *,
    code: CodeArtifact,
    catalog: Catalog | None = None,
    facts: Mapping[str, ModelFacts | None] | None = None,
    image: ImageSource | None = None,
    machine: Machine | None = None,
    deploying: bool = True,
    jwt_keys: Sequence[JwtKey] = (),
) -> Plan:
    """The plan of a stack. Pure: it reads no files and makes nothing.

    `facts` says by `model_id` what is known about each model; the default is what the catalog knows. `image` is what
    the serving image is made from where the stack file names none; without it none is made. `machine` is this one, for
    target `local`; without it, its memory is no limit. Without `deploying` the plan is only shown, so a secret that is
    not set yet is just a warning. Raises `InputErrors` with every finding, each at the line of the model or stack file
    that has to change. `jwt_keys` are the public keys of the issuer in `modelfleet:jwt`.
    """
    catalog = with_collector(stack, catalog or default_catalog())
    facts = catalog_facts((m.config for m in models), catalog) if facts is None else facts
    # This machine's memory is not the plan's to divide.
    reserve = not stack.config.target.on_this_machine
    gpus = machine.gpus if machine else None
    cards, catalog = card_plan(stack, gpus), on_measured(on_cards(stack, gpus, catalog))
    models = sorted(models, key=lambda model: model.config.model_id)
    findings = adapter_findings(models, facts)
    models = [replace(m, config=with_share(m.config, stack, gpus, catalog)) for m in models]
    lengths = {m.config.model_id: length_source(m.config, facts.get(m.config.model_id), catalog) for m in models}
    models = [replace(m, config=_complete(m.config, facts.get(m.config.model_id), catalog, reserve)) for m in models]
    schedules = {m.config.model_id: schedule_of(m.config, stack.config.schedule) for m in models}
    findings += schedule_findings(stack, models)
    models = [replace(m, config=with_span(m.config, schedules[m.config.model_id])) for m in models]
    demands = [demand_of(model) for model in models]
    choices, found = settle(stack, demands, catalog, cards.gpus if cards else None)
    findings += found
    for choice in choices:
        findings += [*shared_memory_findings(choice), *weights_disk_findings(choice, facts)]
    findings += [*card_findings(stack, gpus, _fewest_gpus(choices), catalog), *cpu_findings(stack, choices)]
    if cards and not any(choice.demands for choice in choices if choice.pool.accelerator != CPU):
        findings += unused_card_findings(stack, cards)
        cards = replace(cards, missing=())
    findings += [
        *fallback_findings(stack, choices, facts, catalog),
        *pipeline_findings(stack, choices, facts, catalog),
    ]
    bucket, found = bucket_plan(stack, models)
    made, made_mirror = image_plan(stack, image, catalog), mirror_image_plan(stack, image, catalog)
    findings += [
        *found,
        *name_findings(models),
        *key_findings(stack, [name for model in models for name in served_names(model.config)]),
        *_stack_findings(stack, deploying=deploying),
        *image_findings(stack, made),
        *fit_findings(models, facts, catalog, cards_here(stack, gpus)),
        *bad_combinations(models, facts),
        *slo_findings(models, facts, catalog),
        *licence_findings(stack, models, catalog),
        *token_findings(stack, models, catalog),
        *trust_findings(stack, models),
        *signer_findings(stack, [one for model in models for one in all_mirrors(stack, model.config)]),
        *streaming_findings(stack, models),
    ]
    configs = [model.config for model in models]
    short = {one.model_id: memory_short(machine, one, configs, facts) for one in configs}
    packed = Rooms(stack.config)
    nodes = [on_one_node(choices)] if choices and stack.config.target.on_this_machine else choices
    rooms = {
        demand.model_id: packed.room(choice, demand, memory_short=short[demand.model_id])
        for choice in nodes
        for demand in choice.demands
    }
    findings += [
        found for choice in choices for one in choice.demands for found in gap_findings(one, rooms[one.model_id])
    ]
    pools = tuple(_pool_plan(stack, choice, catalog) for choice in choices)
    system, found = system_plan(stack, catalog)
    findings += found
    head_storage = head_storage_plan(stack)
    fixed = (
        *fixed_costs(stack, system, head_storage, bucket, own_monitoring_plan(stack), catalog),
        *amp_costs(stack, sum(min(pool.needed_nodes, pool.max_nodes) for pool in pools), catalog),
    )
    cost = total([*(pool.cost for pool in pools), fixed_cost_range(fixed)])
    findings += budget_findings(stack, cost, pools, fixed, catalog)
    if errors := errors_in(findings):
        raise InputErrors(errors)
    memory = {m.config.model_id: memory_of(m.config, facts.get(m.config.model_id), catalog) for m in models}
    planned = [
        _model_plan(
            stack,
            choice,
            demand,
            bucket.name,
            code,
            size=stored_bytes(facts.get(demand.model_id)),
            memory=memory[demand.model_id],
            speed=model_speed(
                demand.model.config,
                facts.get(demand.model_id),
                catalog,
                replica_cost(choice, demand, choice.candidate.usd_per_hour) if stack.config.target.priced else None,
            ),
            cost=cost_of_one,
            facts=facts.get(demand.model_id),
            length_source=lengths[demand.model_id],
            catalog=catalog,
            room=rooms[demand.model_id],
            image=image_name(stack, made),
            schedule=schedules[demand.model_id],
        )
        for choice, pool in zip(choices, pools, strict=True)
        for demand, cost_of_one in model_costs(choice, pool.cost)
    ]
    gateway, found = _priced_gateway(stack, models, planned, jwt_keys, head_is_kept=bool(head_storage))
    findings += found
    mirrors = {one.prefix: one for model in planned for one in (model.mirror, *model.others) if one.prefix is not None}
    copied = list(mirrors.values())
    copies = copy_plan(stack, copied, catalog, image=mirror_image_name(stack, made, made_mirror))
    findings += slow_copy_findings(stack, copies)
    findings += node_group_findings(stack, (*pools, *((copies.pool,) if copies.pool else ())))
    return Plan(
        stack=stack.name,
        target=stack.config.target,
        region=stack.region,
        namespace=stack.config.kubernetes.namespace_of(stack.name),
        operator_namespace=stack.config.kubernetes.operator_namespace_of(stack.name),
        mirror_namespace=stack.config.kubernetes.mirror_namespace_of(stack.name),
        config=stack.config,
        source=stack,
        pools=pools,
        models=tuple(sorted(planned, key=lambda model: model.model_id)),
        ray_cluster=_ray_cluster(stack, pools, image_name(stack, made)),
        gateway=gateway,
        manifest_key=manifest_key_plan(stack),
        bucket=bucket,
        copies=copies,
        egress=egress_plan(stack, models),
        code=code,
        release=release_plan(planned, stack.config.models_at_once),
        cost=cost,
        prices=prices_note(stack, catalog, [name for pool in pools for name in pool.all_instance_types]),
        notices=tuple(sorted([*stack.notices, *findings])),
        fixed=fixed,
        system=system,
        head_storage=head_storage,
        image=made,
        mirror_image=made_mirror,
        front_door=front_door(stack),
        cards=cards,
        monitoring=monitoring_plan(stack),
        own_monitoring=own_monitoring_plan(stack),
        amp=amp_plan(stack),
        logs=log_format(stack),
        log_collector=log_collector_plan(stack, catalog),
        missing=tuple(machine_missing(machine, configs, facts)),
        week=week_plan(stack, choices, pools, schedules, fixed),
    )


def _priced_gateway(
    stack: LoadedStack,
    models: Sequence[LoadedModel],
    planned: Sequence[ModelPlan],
    jwt_keys: Sequence[JwtKey],
    *,
    head_is_kept: bool,
) -> tuple[GatewayPlan, list[Finding]]:
    """The gateway with the models' prices, and warnings; raises `InputErrors` for a budget that nobody could count."""
    config = stack.config
    prices = {one.model_id: one.speed.usd_per_million_tokens for one in planned if one.speed is not None}
    gateway = with_prices(gateway_plan(stack, models, jwt_keys), prices)
    kept = head_is_kept or config.target.on_this_machine or config.kubernetes.redis_address is not None
    findings = key_budget_findings(stack, gateway, head_is_kept=kept)
    if errors := errors_in(findings):
        raise InputErrors(errors)
    return gateway, findings


def _fewest_gpus(choices: Sequence[PoolChoice]) -> float:
    """The GPUs of all models at their fewest replicas; parts are eighths, which add up exactly."""
    return sum(one.min * one.total.get("GPU", 0.0) for choice in choices for one in choice.demands)


def _complete(config: ModelConfig, facts: ModelFacts | None, catalog: Catalog, reserve: bool) -> ModelConfig:
    """The model with what its file leaves to the plan, and `reserve` of the node's memory."""
    config = with_length(with_adapters(config, facts), facts, catalog)
    return with_host_memory(config, facts, reserve=reserve)


def _others(stack: LoadedStack, model: ModelConfig, facts: ModelFacts | None) -> tuple[MirrorPlan, ...]:
    """What the stack copies beside a model's weights."""
    size = draft_bytes(facts, setting_of(model, facts, PROCESSOR)) if facts is not None else 0.0
    found = (
        draft_mirror(stack, model, round(size) or None),
        tokenizer_mirror(stack, model),
        *(adapter_mirror(stack, adapter) for adapter in model.engine_config.lora),
    )
    return tuple(one for one in found if one is not None and one.prefix is not None)


def _stack_findings(stack: LoadedStack, *, deploying: bool) -> list[Finding]:
    """Findings about the stack file that do not depend on the models."""
    return [
        *_auth(stack, deploying=deploying),
        *_operator(stack),
        *_namespace(stack),
        *_ray_tls(stack),
        *_mirror_namespace(stack),
        *_region(stack),
        *_release(stack),
        *tag_findings(stack),
        *copy_findings(stack),
        *head_storage_findings(stack),
        *ladder_findings(stack),
        *seal_findings(stack),
        *return_findings(stack),
        *front_door_findings(stack),
        *egress_findings(stack),
        *monitoring_findings(stack),
        *log_findings(stack),
        *traces_findings(stack),
        *(network_findings(stack) if stack.config.target.makes_cluster else []),
    ]


def _release(stack: LoadedStack) -> list[Finding]:
    """EKS refuses a release of another minor version (eksctl-io/eksctl#7976), at the first node group."""
    cluster = stack.config.cluster
    if cluster.node_release is None or cluster.node_release.startswith(f"{cluster.version}."):
        return []
    message = (
        f"found '{cluster.node_release}', which is not a release of version {cluster.version}; raise both together, or "
        "take nodeRelease out for the newest"
    )
    return [stack.finding(("cluster", "nodeRelease"), message)]


def _operator(stack: LoadedStack) -> list[Finding]:
    """A cluster that this run makes has no operator yet."""
    if not stack.config.target.makes_cluster or stack.config.kubernetes.operator_namespace is None:
        return []
    message = "is for an existing cluster, but target eks makes a new one; remove it"
    return [stack.finding(("kubernetes", "operatorNamespace"), message)]


def _namespace(stack: LoadedStack) -> list[Finding]:
    """A cluster that this run makes has no namespace yet."""
    if not stack.config.target.makes_cluster or stack.config.kubernetes.create_namespace:
        return []
    message = "found false, which is for an existing cluster, but target eks makes a new one; remove it"
    return [stack.finding(("kubernetes", "createNamespace"), message)]


def _ray_tls(stack: LoadedStack) -> list[Finding]:
    """On this machine Ray listens on loopback."""
    if not stack.config.target.on_this_machine or not stack.config.kubernetes.ray_tls:
        return []
    message = "found true, but target local has no network between Ray's processes; remove it, or serve in a cluster"
    return [stack.finding(("kubernetes", "rayTls"), message)]


def _mirror_namespace(stack: LoadedStack) -> list[Finding]:
    """A namespace for mirror Jobs is made with the stack's own, or exists beside one that exists."""
    kubernetes = stack.config.kubernetes
    path = ("kubernetes", "mirrorNamespace")
    name = kubernetes.mirror_namespace_of(stack.name)
    if len(name) > LONGEST_NAMESPACE:
        message = (
            f"is missing, and its default '{name}' has {len(name)} characters, of which Kubernetes takes "
            f"{LONGEST_NAMESPACE}; name it, or choose a shorter namespace"
        )
        return [stack.finding(path, message)]
    if kubernetes.mirror_namespace == kubernetes.namespace_of(stack.name) and kubernetes.create_namespace:
        message = f"found '{name}', where the replicas are; name another, or leave it out for '{name}-mirror'"
        return [stack.finding(path, message)]
    return []


def _region(stack: LoadedStack) -> list[Finding]:
    if not stack.config.target.makes_cluster or stack.region:
        return []
    return [stack.finding((), "aws:region is missing; run `pulumi config set aws:region us-east-1`")]


def _auth(stack: LoadedStack, *, deploying: bool) -> list[Finding]:
    if stack.config.auth == "jwt":
        return auth_findings(stack)
    if stack.config.auth == "none" or "apiKeys" in stack.secrets:
        return []
    message = (
        f"is not set, but auth is keys; run `modelfleet key add NAME --stack {stack.name}`, or set "
        "`modelfleet:auth: none`"
    )
    return [stack.finding(("apiKeys",), message, Severity.ERROR if deploying else Severity.WARNING)]


def _labels(stack: LoadedStack, choice: PoolChoice) -> dict[str, str]:
    labels = {STACK_LABEL: stack.name, POOL_LABEL: choice.pool.name}
    if choice.candidate.node.gpus:
        labels |= {
            ACCELERATOR_LABEL: choice.pool.accelerator.lower(),
            GPU_PRESENT_LABEL: "true",
            GPU_COUNT_LABEL: str(choice.candidate.node.gpus),
        }
    return labels


def _own_card(stack: LoadedStack, ladder: Sequence[Rung]) -> dict[str, str]:
    """An existing cluster's nodes need no label of their card, so there none is asked for."""
    several = len({rung.accelerator for rung in ladder}) > 1
    return (
        {ACCELERATOR_LABEL: ladder[0].labels[ACCELERATOR_LABEL]}
        if several and stack.config.target.makes_cluster
        else {}
    )


def _pool_plan(stack: LoadedStack, choice: PoolChoice, catalog: Catalog) -> PoolPlan:
    pool, labels = choice.pool, _labels(stack, choice)
    ladder = rungs(stack, choice, labels, catalog)
    returns = return_plan(stack, pool, ladder)
    card = catalog.accelerators.get(pool.accelerator)  # `on_cards` has put this machine's own there
    return PoolPlan(
        name=pool.name,
        accelerator=pool.accelerator,
        instance_types=choice.candidate.instance_types,
        node=choice.candidate.node,
        min_nodes=choice.least,
        needed_nodes=choice.need_at_max,
        max_nodes=pool.max_nodes,
        floor_nodes=pool.min_nodes,
        zones=tuple(pool.zones) if pool.zones else None,
        labels=labels,
        taints=() if pool.accelerator == CPU else (GPU_TAINT,),
        ray_resources=ray_resources(pool.accelerator, choice.candidate.node),
        vcpus_per_node=choice.candidate.vcpus,
        usd_per_node_hour=choice.candidate.dearest_usd_per_hour,
        cost=pool_cost(stack.config.target, choice, returns),
        rungs=ladder,
        returns=returns,
        sealed=pool.sealed_caches,
        own_card=_own_card(stack, ladder),
        card_here=card.name if card and card.name != pool.accelerator else None,
    )


def _model_plan(
    stack: LoadedStack,
    choice: PoolChoice,
    demand: Demand,
    bucket: str | None,
    code: CodeArtifact,
    *,
    size: int | None,
    memory: GpuMemory | None,
    speed: SpeedEstimate | None,
    cost: CostRange,
    facts: ModelFacts | None,
    length_source: LengthSource,
    catalog: Catalog,
    room: Room,
    image: str,
    schedule: Schedule | None,
) -> ModelPlan:
    model = demand.model.config
    mirror = mirror_plan(stack, model, size)
    fallbacks = on_fallbacks(choice, demand, facts, catalog, priced=stack.config.target.priced)
    served = without_fallbacks(with_batch(model, facts, catalog))
    cards = cards_of(served, fallbacks, catalog)
    memory_mib, target = choice.candidate.node.memory_mib, stack.config.target
    cold = start_up(model, facts, target, size, memory_mib)
    seal = seal_plan(stack, choice, served, image=image, start=cold)
    sealed = seal is not None and seal.has_job
    start = start_up(model, facts, target, size, memory_mib, sealed=sealed)
    gap = gap_of(demand, room, stack.config, start=start)
    return ModelPlan(
        model_id=model.model_id,
        kind=kind_of(model.engine_config),
        slug=model.slug,
        file=demand.model.file,
        accelerator=model.accelerator,
        pool=choice.pool.name,
        workers=model.scaling_config.num_workers,
        replicas=Replicas(demand.min, demand.initial, demand.max),
        replicas_per_node=0 if demand.spreads(choice.candidate.room) else copies(demand.whole, choice.candidate.room),
        bundles=demand.bundles,
        placement_strategy=demand.strategy,
        mirror=mirror,
        others=_others(stack, model, facts),
        application=application(
            stack, served, cards, mirror, bucket, code, gap, weights_room_gb(choice, model), seal, schedule
        ),
        memory=memory,
        speed=speed,
        cost=cost,
        gap=gap,
        length=model.engine_config.length or (default_length(facts) if facts is not None else None),
        length_source=length_source,
        sampling=sampling_of(model),
        shape_source=facts.source if facts is not None else "",
        start=start,
        seal=seal,
        fallbacks=fallbacks,
        slo=objectives(model),
        schedule=schedule,
    )


def _ray_cluster(stack: LoadedStack, pools: Sequence[PoolPlan], image: str) -> RayClusterPlan:
    """Made from pools, image and rollout only; it must not depend on models."""
    kubernetes = stack.config.kubernetes
    groups = tuple(
        WorkerGroup(
            name=pool.name,
            pool=pool.name,
            min_replicas=pool.floor_nodes,
            # A worker that drains still counts, and its successor has a place where its node group or labels keep the
            # limit. On EKS each zone's group may hold the whole pool, so only this keeps it.
            max_replicas=pool.max_nodes + (not stack.config.target.makes_cluster),
            ray_resources=pool.ray_resources,
            node=pool.node,
            labels=pool.labels,
            taints=pool.taints,
        )
        for pool in pools
    )
    return RayClusterPlan(
        image=image,
        ray_version=PINNED["ray"],
        worker_groups=groups,
        rollout=kubernetes.rollout,
        redis_address=kubernetes.redis_address,
        authority=f"ray-authority-{kubernetes.ray_authority}" if kubernetes.ray_tls else None,
        idle_timeout_s=IDLE_TIMEOUT_S,
        longest_stream_s=max(LEAST_LONGEST_STREAM_S, stack.config.gateway.timeout_s),
    )
