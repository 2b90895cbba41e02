"""`python -m tools.get` (`make tools`): the Pulumi CLI, its plugins, and the `pulumi` command in the environment.

Uses the installed parts, otherwise downloads the official ones, otherwise builds the CLI from Go modules. Prints which
parts are real and which are stand-ins. Exits with code 2 and one message if a part is missing and cannot be installed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from modelfleet.serving.config.errors import ModelfleetError, SetupError
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
    parser.add_argument("--again", action="store_true", help="try the official downloads even if they failed today")
    parser.add_argument("--build", action="store_true", help="build the CLI instead of downloading it")
    chosen = parser.parse_args(argv)
    try:
        cli = get_cli(again=chosen.again, build=chosen.build)
        get_plugins(cli, again=chosen.again)
        command = write_command()
    except ModelfleetError as error:
        print(f"tools: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tools: stopped; no half-finished files are left; to start again, run: make tools", file=sys.stderr)
        return 130
    say(cli.sentence())
    for part in parts(cli):
        say(part.sentence())
    say(f"pulumi command: {command}")
    return 0


class _Plain(argparse.RawDescriptionHelpFormatter):
    pass


def get_cli(*, again: bool = False, build: bool = False) -> Cli:
    """Finds, downloads or builds the CLI; one that does not start is made again once. Raises `SetupError`."""
    cli = find_cli()
    if cli is not None:
        fault = _does_not_start(cli)
        if fault is None:
            return cli
        if cli.origin == "installed":
            raise SetupError(f"{cli.path} does not start ({fault}); repair or remove it, then run: make tools")
        say(f"{cli.path} does not start ({fault}); making it again")
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
    """Installs the missing real plugins if the official site is reachable; otherwise stand-ins replace them."""
    missing = [part.standin.name for part in parts(cli) if part.real is None and part.standin.name != "language"]
    if not missing:
        return
    try:
        check_reachable(again=again)
    except Unreachable as reason:
        say(f"Pulumi plugins {', '.join(missing)}: no official download: {reason}")
        return
    for name in missing:
        install_plugin(cli.path, name)


def write_command(environment: Path | None = None) -> Path:
    """Writes `pulumi` into the virtual environment's bin folder. Raises `SetupError` outside one."""
    if environment is None:
        if sys.prefix == sys.base_prefix:
            raise SetupError("python -m tools.get must run in the project's virtual environment; run: make tools")
        environment = Path(sys.prefix)
    command = environment / "bin" / "pulumi"
    text = _COMMAND.format(python=environment / "bin" / "python", root=STANDINS.parents[2], mark=COMMAND_MARK)
    if command.exists() and COMMAND_MARK.encode() not in command.read_bytes()[:4096]:
        raise SetupError(
            f"{command} was not written by make tools; remove it or install the CLI elsewhere, then run: make tools"
        )
    if not command.exists() or command.read_text() != text:
        part = command.with_name(".pulumi.part")
        part.write_text(text)
        part.chmod(0o755)
        part.rename(command)
    return command


def _try_download(*, again: bool) -> None:
    release = release_for_this_machine()
    if release is None:
        say("Pulumi CLI: no official archive is pinned for this platform, so it will be built")
        return
    try:
        check_reachable(again=again)
        download_cli(release)
    except Unreachable as reason:
        say(f"Pulumi CLI: no official download: {reason}")


def _does_not_start(cli: Cli) -> str | None:
    missing = [name for name in PARTS if cli.origin == "built" and not (cli.path.parent / name).is_file()]
    if missing:
        return f"{missing[0]} is missing from its folder"
    try:
        ran = subprocess.run([str(cli.path), "version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if ran.returncode == 0 else (ran.stderr.strip() or f"exit code {ran.returncode}")


if __name__ == "__main__":
    sys.exit(main())
