"""The `pulumi` command in the environment's bin folder: the real CLI, set up for this checkout.

It puts stand-ins for missing parts on PATH, uses this checkout's state and passphrase if the user chose none, and
removes the lock of a killed run. Then it becomes the CLI (exec), so signals, prompts and exit codes are the CLI's own.
It imports little and adds only a few hundredths of a second.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from modelfleet.cli import pulumi_state
from tools.paths import ROOT
from tools.pulumi_cli.find import Cli, Part, find_cli, parts

ENGINE_COMMANDS = frozenset({"up", "update", "preview", "pre", "destroy", "down", "dn", "refresh", "import", "watch"})
"""Commands that run a program or its plugins: only these print which parts are stand-ins."""


def main(arguments: list[str]) -> int:
    """Becomes the CLI; returns only if there is none, or no place for the state (exit code 2)."""
    cli = find_cli()
    if cli is None:
        print("pulumi: the Pulumi CLI is not installed yet; run: make tools", file=sys.stderr)
        return 2
    environment = environment_for(cli)
    command = pulumi_state.command_of(arguments)
    if command in ENGINE_COMMANDS:
        report(cli, parts(cli))
    if is_this_project(pulumi_state.working_folder(arguments)):
        try:
            arguments = pulumi_state.prepare(cli.path, arguments, environment, ROOT, engine=command in ENGINE_COMMANDS)
        except pulumi_state.HiddenState as error:
            print(f"pulumi: {error}", file=sys.stderr)
            return 2
    os.execve(cli.path, [str(cli.path), *arguments], environment)


def report(cli: Cli, found: list[Part]) -> None:
    """Prints on stderr which parts are real and which are stand-ins, one line each."""
    for line in (cli.sentence(), *(part.sentence() for part in found)):
        print(f"pulumi: {line}", file=sys.stderr)
    sys.stderr.flush()


def environment_for(cli: Cli) -> dict[str, str]:
    """Returns the CLI's environment: the CLI is first on PATH, and the stand-ins that are needed come last."""
    environment = dict(os.environ)
    environment["MODELFLEET_ROOT"] = str(ROOT)
    environment["MODELFLEET_PYTHON"] = sys.executable
    environment.setdefault("PULUMI_SKIP_UPDATE_CHECK", "true")
    environment.setdefault("PULUMI_PYTHON_CMD", sys.executable)  # for pulumi.dynamic resources
    # The language host's stand-in is in the folder of the CLI that we built, where the engine expects a bundled one.
    standins = [str(part.standin) for part in parts(cli) if part.real is None and part.standin.name != "language"]
    inherited = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder not in standins]
    environment["PATH"] = os.pathsep.join([str(cli.path.parent), *inherited, *standins])
    return environment


def is_this_project(folder: Path) -> bool:
    """Whether the CLI works on this checkout's own Pulumi.yaml; elsewhere we choose nothing for the user."""
    for candidate in (folder, *folder.parents):
        if (candidate / "Pulumi.yaml").is_file():
            return candidate == ROOT
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
