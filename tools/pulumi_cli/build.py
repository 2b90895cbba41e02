"""Builds the Pulumi CLI from Go modules and adds the Python scripts of the same release."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from modelfleet.serving.config.errors import SetupError
from tools.go_toolchain import go_command
from tools.gobuild import GoCommand, GoModule, build
from tools.paths import ROOT
from tools.pulumi_cli.find import BUILT, BUILT_VERSION, LANGUAGE_HOST

_FOLDER = ROOT / "tools" / "go" / "pulumi"
# Pulumi's own scripts in its SDK's module: one runs a Python program, the other serves `pulumi.dynamic` resources.
_SCRIPTS = ("cmd/pulumi-language-python-exec", "dist/pulumi-resource-pulumi-python")

PARTS = (LANGUAGE_HOST, *(script.partition("/")[2] for script in _SCRIPTS))
"""The files that a CLI we built needs in its folder."""

# In the CLI's folder, the engine takes it for the bundled host and does not warn about PATH in every run. All clones
# share the cache, so the `pulumi` command tells it which checkout it works for.
_HOST = """#!/bin/sh
# modelfleet's stand-in for Pulumi's Python language host. The CLI here was built from Go modules, which lack one.
exec "${MODELFLEET_ROOT:?run pulumi from the .venv/bin that make tools wrote}/tools/standin/bin/language/%s" "$@"
"""


def build_cli() -> Path:
    """Returns the cache's folder with `pulumi`, which is built if it does not exist. Raises `SetupError`."""
    return build(
        GoModule(
            BUILT,
            _FOLDER,
            [
                GoCommand(
                    "pulumi",
                    "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi",
                    f"-X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=v{BUILT_VERSION}",
                )
            ],
            minutes="about 3 minutes on two cores",
            needed_for="building the Pulumi CLI",
        ),
        _finish,
    )


def _finish(folder: Path) -> None:
    """Adds Pulumi's scripts from the SDK's module and the launcher of the language host's stand-in."""
    listed = subprocess.run(
        [go_command("building the Pulumi CLI"), "list", "-m", "-json", "github.com/pulumi/pulumi/sdk/v3"],
        cwd=_FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        module = Path(json.loads(listed.stdout)["Dir"])
        for script in _SCRIPTS:
            shutil.copyfile(module / "python" / script, folder / Path(script).name)
    except (ValueError, KeyError, OSError) as error:
        raise SetupError(
            f"the Go module of Pulumi's SDK lacks its Python scripts: {listed.stderr.strip() or error}"
        ) from error
    (folder / LANGUAGE_HOST).write_text(_HOST % LANGUAGE_HOST)
    for name in PARTS:
        (folder / name).chmod(0o755)
