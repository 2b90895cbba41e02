"""`modelfleet down`: removes what `up` made, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

from modelfleet.cli import output, pulumi_run
from modelfleet.cli.up import start_emulator
from modelfleet.infra.local import emulator
from modelfleet.infra.stack import load_stack
from modelfleet.infra.stack.schema import StackConfig
from modelfleet.serving.config.errors import EXIT_ENVIRONMENT, SetupError


def run_down(stack: str) -> int:
    """Remove the stack's resources, then the emulator that `up` started; returns the exit code."""
    root = Path.cwd()
    config = load_stack(root, stack).config
    if pulumi_run.outputs(root, stack) is None:
        output.say(f"{stack}: there is nothing to remove")
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
        shutil.rmtree(root / ".modelfleet" / "local" / stack, ignore_errors=True)
    output.say(f"{stack}: removed. Next: modelfleet up --stack {stack}")
    return 0


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
