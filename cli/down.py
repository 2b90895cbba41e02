"""`modelfleet down`: removes what `up` made, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

from modelfleet.cli import output, pulumi_run
from modelfleet.cli.up import start_emulator
from modelfleet.infra.local import emulator
from modelfleet.infra.names import STACK_LABEL, local_folder
from modelfleet.infra.stack import LoadedStack, load_stack
from modelfleet.infra.stack.schema import StackConfig
from modelfleet.serving.config.errors import EXIT_ENVIRONMENT, SetupError


def run_down(stack: str) -> int:
    """Remove the stack's resources, then the emulator that `up` started; returns the exit code."""
    root = Path.cwd()
    loaded = load_stack(root, stack)
    config = loaded.config
    if pulumi_run.outputs(root, stack) is None:
        output.say(f"{stack}: there is nothing to remove")
        _show_leftovers(loaded)
        return 0
    if config.target.on_this_machine:
        start_emulator(root, config.local.s3_port)  # Pulumi reads and empties its bucket
    else:
        _release(root, config, stack)
    done = pulumi_run.operate(root, stack, "destroy")
    if done.interrupted:
        raise KeyboardInterrupt
    if done.code:
        output.say(f"`pulumi destroy` failed, see above; run `modelfleet down --stack {stack}` to continue")
        return EXIT_ENVIRONMENT
    if config.target.on_this_machine:
        emulator.stop(config.local.s3_port, root / ".modelfleet")
        shutil.rmtree(local_folder(root, stack), ignore_errors=True)
    output.say(f"{stack}: removed. Next: modelfleet up --stack {stack}")
    _show_leftovers(loaded)
    return 0


def _show_leftovers(stack: LoadedStack) -> None:
    """For a stack on AWS, what its region still holds with the stack's tag, whoever made it."""
    if not stack.config.target.makes_cluster or not stack.region:
        return
    from modelfleet.infra.aws.leftovers import leftovers

    tag = f"{STACK_LABEL}={stack.name}"
    try:
        found = leftovers(stack.name, stack.region, stack.profile)
    except SetupError as error:
        ask = f"aws resourcegroupstaggingapi get-resources --region {stack.region}"
        output.say(f"{error}; look yourself: {ask} --tag-filters Key={STACK_LABEL},Values={stack.name}", "yellow")
        return
    said = f"AWS holds {output.counted(len(found), 'resource')} with the tag {tag} in {stack.region}"
    output.say(f"{said}{':' if found else '.'}")
    for one in found:
        output.say(f"  {one.arn}: {one.note}" if one.note else f"  {one.arn}", "" if one.note else "yellow")


def _release(root: Path, config: StackConfig, stack: str) -> None:
    """Releases Ray objects whose operator is gone, for which Pulumi would wait forever."""
    from modelfleet.infra.kubernetes.teardown import release_orphans

    kubeconfig = None
    if config.target.makes_cluster:
        kubeconfig = pulumi_run.ask(root, ["stack", "output", "kubeconfig", "--show-secrets", "--stack", stack])
        if not kubeconfig:
            return  # the cluster was never made
    try:
        released = release_orphans(config.kubernetes, stack, kubeconfig=kubeconfig)
    except SetupError as error:
        if not config.target.makes_cluster:
            raise
        output.say(f"{error}; continuing, because an earlier run may have removed the cluster")
        return
    for name in released:
        output.say(f"{name}: its operator is gone, so its finalizers were removed")
