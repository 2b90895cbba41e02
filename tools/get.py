"""`python -m tools.get` (`make tools`): the Pulumi CLI, its plugins, and the `pulumi` command in the environment.

Finds what is installed; else downloads the official parts; else builds the CLI from Go modules. Says what is real and
what is a stand-in. Exit code 2 with one message when something is missing that cannot be got.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from serving.config.errors import ModelfleetError, SetupError
from tools.cache import forget
from tools.paths import STANDINS
from tools.progress import say
from tools.pulumi_cli.build import PARTS, build_cli
from tools.pulumi_cli.find import BUILT, COMMAND_MARK, Cli, find_cli, parts
from tools.pulumi_cli.official import (
    Unreachable,
    check_reachable,
    download_cli,
    install_plugin,
    release_for_this_machine,
)

_COMMAND = """#!/bin/sh
# Written by python -m tools.get: the real Pulumi CLI, with what this checkout needs around it.
exec "{python}" "{root}/{mark}" "$@"
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.get", description=__doc__, formatter_class=_Plain)
    parser.add_argument("--again", action="store_true", help="ask for official downloads even if they failed today")
    parser.add_argument("--build", action="store_true", help="build the CLI, do not try to download it")
    chosen = parser.parse_args(argv)
    try:
        cli = get_cli(again=chosen.again, build=chosen.build)
        get_plugins(cli, again=chosen.again)
        command = write_command()
    except ModelfleetError as error:
        print(f"tools: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tools: stopped; nothing half-made is left, run: make tools", file=sys.stderr)
        return 130
    say(cli.sentence())
    for part in parts(cli):
        say(part.sentence())
    say(f"pulumi command: {command}")
    return 0


class _Plain(argparse.RawDescriptionHelpFormatter):
    pass


def get_cli(*, again: bool = False, build: bool = False) -> Cli:
    """The CLI: found, downloaded or built; one that does not start is made anew once. Raises `SetupError`."""
    cli = find_cli()
    if cli is not None:
        fault = _does_not_start(cli)
        if fault is None:
            return cli
        if cli.origin == "installed":
            raise SetupError(f"{cli.path} does not start ({fault}); repair or remove it, then run: make tools")
        say(f"{cli.path} does not start ({fault}); it is made anew")
        forget(cli.path.parent.name)
    if not build:
        _try_download(again=again)
    cli = find_cli()
    if cli is None or cli.origin == "built":
        folder = build_cli()
        cli = Cli(folder / "pulumi", "built")
    fault = _does_not_start(cli)
    if fault is not None:
        forget(BUILT)
        raise SetupError(f"{cli.path} does not start ({fault}); run: make tools")
    return cli


def get_plugins(cli: Cli, *, again: bool = False) -> None:
    """Installs the real plugins that a stand-in would have to replace, where the official site can be reached."""
    missing = [part.standin.name for part in parts(cli) if part.real is None and part.standin.name != "language"]
    if not missing:
        return
    try:
        check_reachable(again=again)
    except Unreachable as reason:
        say(f"Pulumi plugins {', '.join(missing)}: no official download, {reason}")
        return
    for name in missing:
        install_plugin(cli.path, name)


def write_command(environment: Path | None = None) -> Path:
    """Writes `pulumi` into the virtual environment's bin folder. Raises `SetupError` outside of one."""
    if environment is None:
        if sys.prefix == sys.base_prefix:
            raise SetupError("python -m tools.get belongs into the project's environment; run: make tools")
        environment = Path(sys.prefix)
    command = environment / "bin" / "pulumi"
    text = _COMMAND.format(python=environment / "bin" / "python", root=STANDINS.parents[2], mark=COMMAND_MARK)
    if command.exists() and COMMAND_MARK.encode() not in command.read_bytes()[:4096]:
        raise SetupError(f"{command} is not ours; remove it or install the CLI elsewhere, then run: make tools")
    if not command.exists() or command.read_text() != text:
        part = command.with_name(".pulumi.part")
        part.write_text(text)
        part.chmod(0o755)
        part.rename(command)
    return command


def _try_download(*, again: bool) -> None:
    release = release_for_this_machine()
    if release is None:
        say("Pulumi CLI: no hash of an official archive is pinned for this platform, so it is built")
        return
    try:
        check_reachable(again=again)
        download_cli(release)
    except Unreachable as reason:
        say(f"Pulumi CLI: no official download, {reason}")


def _does_not_start(cli: Cli) -> str | None:
    missing = [name for name in PARTS if cli.origin == "built" and not (cli.path.parent / name).is_file()]
    if missing:
        return f"{missing[0]} is missing beside it"
    try:
        ran = subprocess.run([str(cli.path), "version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if ran.returncode == 0 else (ran.stderr.strip() or f"exit code {ran.returncode}")


if __name__ == "__main__":
    sys.exit(main())
