"""`modelfleet up`: the whole way from files to an endpoint that answers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modelfleet.cli import output, pulumi_run
from modelfleet.cli.endpoint import curl_example, first_exchange, openai_example, wait_for_first_answer, why_no_way_to
from modelfleet.cli.memory import memory_of, text_of
from modelfleet.cli.plan_table import plan_table
from modelfleet.cli.release import installed_version
from modelfleet.cli.status import base_url
from modelfleet.infra.local import emulator
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.keys import key_for
from modelfleet.infra.planning.plan import ModelKind, ModelPlan
from modelfleet.infra.reading.cards import name_of_a_card
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.infra.stack.load import stack_file
from modelfleet.serving.config.errors import EXIT_ENVIRONMENT, InputErrors, ModelfleetError, SetupError, errors_in

if TYPE_CHECKING:
    from modelfleet.cli.cluster_watch import ClusterWatch

#: A new load balancer takes about three minutes, and a resolver keeps the news that a name is unknown for a while.
DOOR_OPENS_S = 300
#: Above the first answers; the first line has said it, too.
PRETENDED = "PRETENDED: vLLM's CPU build answers in place of a card; the plan is the card's, the speed a CPU's"
#: One for inside is often not to be reached from here at all.
INSIDE_S = 30


def run_up(stack: str) -> int:
    """Check and show the plan, deploy it, wait for a first answer, print examples; returns the exit code."""
    root, began = Path.cwd(), time.monotonic()
    plan = make_plan(root, stack, ask_issuer=True)
    texts = {model.file: text for model in plan.models if (text := text_of(root, model.file)) is not None}
    _say_cards(root, plan)
    output.show_findings(plan.notices)
    output.show(plan_table(plan, head=False))
    if plan.stops_up:
        raise SetupError("\n".join(plan.stops_up))
    pulumi_run.command()  # before anything starts, because without it nothing can be made
    watch = _prepare(root, plan)
    pulumi_run.make_stack(root, stack)
    done = pulumi_run.operate(root, stack, "up", "--suppress-outputs", watch=watch or (lambda: None))
    if done.interrupted:
        raise KeyboardInterrupt
    stopped = done.stopped or (watch.wait_for_rollout() if watch and not done.code else None)
    if done.code or stopped:
        why = f"stopped: {stopped}" if stopped else "`pulumi up` failed, see above"
        output.say(f"{why}. What it made is kept; run `modelfleet up --stack {stack}` to continue")
        return EXIT_ENVIRONMENT
    changed = ", ".join(f"{count} {kind}" for kind, count in sorted(done.changes.items())) or "unchanged"
    _show_endpoint(root, plan)
    _keep_what_is_proved(root, plan, texts)
    output.say(f"{stack}: {changed}, {time.monotonic() - began:.0f} s. Next: modelfleet status --stack {stack}")
    return 0


def _keep_what_is_proved(root: Path, plan: Plan, texts: Mapping[str, str]) -> None:
    """For `promote` and `rollback`. A bucket that refuses is only said: the stack itself is up."""
    try:
        made = {} if plan.target.on_this_machine else pulumi_run.outputs(root, plan.stack) or {}
        memory = memory_of(root, plan.source)
        memory.keep(plan, texts, release=installed_version(), image=made.get("image"))
    except ModelfleetError as error:
        output.say(f"promote and rollback will not know this state: {error}", "yellow")


def _prepare(root: Path, plan: Plan) -> ClusterWatch | None:
    """See to what must be there before Pulumi runs; returns what looks at the stack in its cluster meanwhile."""
    if plan.target.on_this_machine:
        start_emulator(root, plan.config.local.s3_port)
    elif not plan.target.makes_cluster:
        from modelfleet.cli.cluster_watch import ClusterWatch
        from modelfleet.infra.kubernetes.preflight import check_cluster

        check_cluster(plan)
        return ClusterWatch(plan)
    else:
        ask_aws(plan)
    return None


def _say_cards(root: Path, plan: Plan) -> None:
    """The cards that the stack serves on, before anything else; or that there is one, where it serves on CPUs."""
    if plan.cards:
        output.say(f"Cards: {plan.cards.named}")
    elif plan.target.on_this_machine and (name := name_of_a_card()):
        way = "make up STACK=gpu" if stack_file(root, "gpu").is_file() else "a pool with a GPU accelerator"
        output.say(f"This machine has {name}, and stack {plan.stack} serves on CPUs. On the card: {way}")


def ask_aws(plan: Plan) -> None:
    """The preflight, which the program repeats: here it ends in one line and an exit code of ours."""
    from modelfleet.infra.aws.facts_boto3 import run_preflight

    with output.status("Asking AWS for the account, zones, offerings and quotas"):
        found = run_preflight(plan)
    if errors := errors_in(found):
        raise InputErrors(errors)
    output.show_findings(found)


def start_emulator(root: Path, port: int) -> None:
    """Starts the S3 emulator of a local stack at `port`, unless it already runs."""
    with output.status(f"starting the S3 emulator at {emulator.endpoint(port)}"):
        emulator.start(port, root / ".modelfleet")


def _show_endpoint(root: Path, plan: Plan) -> None:
    if not plan.target.on_this_machine:
        made = pulumi_run.outputs(root, plan.stack) or {}
        output.show_json(made)
        if plan.front_door and "base_url" in made:
            _through_the_front_door(root, plan, str(made["base_url"]).removesuffix("/v1"))
        return
    if plan.cards and plan.cards.pretended:
        output.say(PRETENDED, "bold yellow", stderr=False)
    _first_answers(root, plan, base_url(plan), plan.models)


def _through_the_front_door(root: Path, plan: Plan, base: str) -> None:
    """The first answers as a client gets them, where this machine is one that may come in.

    Not of a model that sleeps: a request would buy its node.
    """
    with output.status(f"waiting for {base}"):
        why = why_no_way_to(base, seconds=DOOR_OPENS_S if plan.front_door and plan.front_door.internet else INSIDE_S)
    if why:
        output.say(f"{base} cannot be reached from here, {why}; ask from a network in gateway.allowCidrs")
        return
    awake = [model for model in plan.models if model.replicas.min]
    if awake:
        _first_answers(root, plan, base, awake)
    else:
        output.say(f"{base} is open; every model sleeps until its first request (min_replicas 0)")


def _first_answers(root: Path, plan: Plan, base: str, models: Sequence[ModelPlan]) -> None:
    """Wait for a first answer of each model, and show how to ask the first one.

    A model that no key with a secret may use now is not asked.
    """
    auth = plan.gateway.auth
    with_key = auth != "none"
    secrets = _api_keys(root, plan.stack) if auth == "keys" else {}
    unasked = (
        "no key that lives may use it (modelfleet key list)" if auth == "keys" else "only its issuer's tokens open it"
    )
    answered: list[tuple[ModelPlan, ModelKind, str | None]] = []
    for model in models:
        name = key_for(plan.gateway, model.model_id, secrets, time.time()) if with_key else None
        if with_key and name is None:
            output.say(f"{model.model_id}: not asked, because {unasked}")
            continue
        key = str(secrets[name]) if name is not None else None
        seconds, kind = wait_for_first_answer(base, model, key)
        what = "token" if kind == "text" else "answer"
        output.say(f"{model.model_id}: first {what} after {seconds:.1f} s")
        answered.append((model, kind, key))
    if answered and answered[0][1] == "text" and (exchange := first_exchange(base, answered[0][0], answered[0][2])):
        output.say(f"\n{exchange}", stderr=False)
    output.show(f"\nBase URL: {base}/v1\n")
    if plan.gateway.chat:
        output.say(f"Chat in a browser: {base}/\n", stderr=False)
    if not answered:
        return
    first, kind, _ = answered[0]
    output.say(curl_example(base, first, kind, with_key=with_key), stderr=False)
    python = openai_example(base, first, kind, with_key=with_key, root=root)
    output.say(f"\n{python}\n" if python else "", stderr=False)


def _api_keys(root: Path, stack: str) -> dict[str, str]:
    """The stack's keys by name, for the first requests; none is ever printed."""
    text = pulumi_run.ask(root, ["config", "get", "modelfleet:apiKeys", "--stack", stack])
    keys = json.loads(text) if text else {}
    if not keys:
        raise SetupError(f"stack {stack} has no readable modelfleet:apiKeys; set one, or set `modelfleet:auth: none`")
    return dict(keys)
