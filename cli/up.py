"""`modelfleet up`, `down` and `status`: the whole way from files to an endpoint that answers, and back."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from cli import output, pulumi_run
from cli.endpoint import curl_example, openai_example, wait_for_first_token
from cli.plan_table import plan_table
from infra.kubernetes.preflight import check_cluster
from infra.kubernetes.teardown import release_orphans
from infra.planning import Plan
from infra.stack import load_stack
from infra.stack.schema import StackConfig
from infra.workspace import make_plan
from serving.config.errors import EXIT_ENVIRONMENT, SetupError
from tools import emulator


def run_up(stack: str) -> int:
    """Check and show the plan, deploy it, wait for a first token, print how to ask; returns the exit code."""
    root, began = Path.cwd(), time.monotonic()
    plan = make_plan(root, stack)
    output.show_findings(plan.notices)
    output.show(plan_table(plan))
    if plan.target == "local":
        emulator.start(plan.config.local.s3_port)
    elif plan.target == "kubernetes":
        check_cluster(plan)
    pulumi_run.make_stack(root, stack)
    done = pulumi_run.operate(root, stack, "up", "--suppress-outputs")
    if done.interrupted:
        raise KeyboardInterrupt
    if done.code:
        output.say(f"`pulumi up` failed, see above. What it made is kept; run `modelfleet up --stack {stack}` to go on")
        return EXIT_ENVIRONMENT
    changed = ", ".join(f"{count} {kind}" for kind, count in sorted(done.changes.items())) or "unchanged"
    _show_endpoint(root, plan)
    output.say(f"{stack}: {changed}, {time.monotonic() - began:.0f} s. Next: modelfleet status --stack {stack}")
    return 0


def run_down(stack: str) -> int:
    """Take away the stack's resources, then the emulator that `up` started; returns the exit code."""
    root = Path.cwd()
    config = load_stack(root, stack).config
    if pulumi_run.outputs(root, stack) is None:
        output.say(f"{stack}: there is nothing to take away")
        return 0
    if config.target == "local":
        emulator.start(config.local.s3_port)  # its bucket is asked about and emptied
    else:
        _release(root, config, stack)
    done = pulumi_run.operate(root, stack, "destroy")
    if done.interrupted:
        raise KeyboardInterrupt
    if done.code:
        output.say(f"`pulumi destroy` failed, see above; run `modelfleet down --stack {stack}` to go on")
        return EXIT_ENVIRONMENT
    if config.target == "local":
        emulator.stop(config.local.s3_port)
        shutil.rmtree(root / ".modelfleet" / "local" / stack, ignore_errors=True)
    output.say(f"{stack}: taken away. Next: modelfleet up --stack {stack}")
    return 0


def _release(root: Path, config: StackConfig, stack: str) -> None:
    """Ray objects whose operator is gone would be waited for without end."""
    kubeconfig = None
    if config.target == "eks":
        kubeconfig = pulumi_run.ask(root, ["stack", "output", "kubeconfig", "--show-secrets", "--stack", stack])
        if not kubeconfig:
            return  # the cluster was never made
    try:
        released = release_orphans(config.kubernetes, stack, kubeconfig=kubeconfig)
    except SetupError as error:
        if config.target != "eks":
            raise
        output.say(f"{error}; going on, for an earlier run may have taken the cluster away")
        return
    for name in released:
        output.say(f"{name}: its operator is gone, so its finalizers were removed")


def run_status(stack: str, *, as_json: bool = False) -> int:
    """What runs; returns the exit code."""
    from cli.status import rows, status_table

    root = Path.cwd()
    plan = make_plan(root, stack)
    found = rows(plan)
    if as_json:
        output.show_json({"stack": stack, "base_url": _base_url(plan), "models": found})
    else:
        output.show(status_table(plan.stack, found))
        running = sum(row["status"] == "RUNNING" for row in found)
        output.say(f"{running} of {len(found)} models answer at {_base_url(plan)}")
    return 0


def _show_endpoint(root: Path, plan: Plan) -> None:
    if plan.target != "local":
        made = pulumi_run.outputs(root, plan.stack) or {}
        output.show_json(made)
        return
    base_url, with_key = _base_url(plan), plan.gateway.auth == "keys"
    key = _api_key(root, plan.stack) if with_key else None
    for model in plan.models:
        seconds = wait_for_first_token(base_url, model.model_id, key)
        output.say(f"{model.model_id}: first token after {seconds:.1f} s")
    first = plan.models[0].model_id
    output.show(f"\nBase URL: {base_url}/v1\n")
    output.say(curl_example(base_url, first, with_key=with_key), stderr=False)
    output.say("\n" + openai_example(base_url, first, with_key=with_key, root=root) + "\n", stderr=False)


def _base_url(plan: Plan) -> str:
    return f"http://127.0.0.1:{plan.config.local.gateway_port}"


def _api_key(root: Path, stack: str) -> str:
    """One of the stack's keys, to ask for a first token with; it is never printed."""
    text = pulumi_run.ask(root, ["config", "get", "modelfleet:apiKeys", "--stack", stack])
    keys = json.loads(text) if text else {}
    if not keys:
        raise SetupError(
            f"stack {stack} has no modelfleet:apiKeys that could be read; set one, or `modelfleet:auth: none`"
        )
    return str(next(iter(keys.values())))
