"""The `pulumi` command in the environment's bin folder: the real CLI with what it needs around it.

It puts stand-ins on PATH for the parts that are missing, chooses state and passphrase of this checkout where the user
chose none, takes away the lock of a killed run, and then becomes the CLI (exec): signals, prompts and exit codes are
the CLI's own. Standard library only, so that it adds a few hundredths of a second.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.paths import ROOT
from tools.pulumi_cli import local_state
from tools.pulumi_cli.find import Cli, Part, find_cli, parts

ENGINE_COMMANDS = frozenset({"up", "update", "preview", "pre", "destroy", "down", "dn", "refresh", "import", "watch"})
"""Commands that run a program or its plugins: only they say which parts are stand-ins."""


def main(arguments: list[str]) -> int:
    """Becomes the CLI; returns only when there is none (exit code 2)."""
    cli = find_cli()
    if cli is None:
        print("pulumi: the Pulumi CLI is not here yet; run: make tools", file=sys.stderr)
        return 2
    environment = environment_for(cli)
    command = local_state.command_of(arguments)
    if command in ENGINE_COMMANDS:
        report(cli, parts(cli))
    if is_this_project(local_state.working_folder(arguments)):
        arguments = local_state.prepare(cli.path, arguments, environment, engine=command in ENGINE_COMMANDS)
    os.execve(cli.path, [str(cli.path), *arguments], environment)


def report(cli: Cli, found: list[Part]) -> None:
    """What is real and what is not, one line each, on stderr."""
    for line in (cli.sentence(), *(part.sentence() for part in found)):
        print(f"pulumi: {line}", file=sys.stderr)
    sys.stderr.flush()


def environment_for(cli: Cli) -> dict[str, str]:
    """The environment of the CLI: itself first on PATH, stand-ins last and only those that are needed."""
    environment = dict(os.environ)
    environment["MODELFLEET_ROOT"] = str(ROOT)
    environment["MODELFLEET_PYTHON"] = sys.executable
    environment.setdefault("PULUMI_SKIP_UPDATE_CHECK", "true")
    environment.setdefault("PULUMI_PYTHON_CMD", sys.executable)  # for pulumi.dynamic resources
    # The language host's stand-in lies beside the CLI that we built, where the engine expects a bundled one.
    standins = [str(part.standin) for part in parts(cli) if part.real is None and part.standin.name != "language"]
    inherited = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder not in standins]
    environment["PATH"] = os.pathsep.join([str(cli.path.parent), *inherited, *standins])
    return environment


def is_this_project(folder: Path) -> bool:
    """Whether the CLI works on this checkout's own Pulumi.yaml; elsewhere nothing is chosen for the user."""
    for candidate in (folder, *folder.parents):
        if (candidate / "Pulumi.yaml").is_file():
            return candidate == ROOT
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
