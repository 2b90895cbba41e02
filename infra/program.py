"""The Pulumi program of a fleet: read, plan, build, export. One stack file in, one fleet out."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import pulumi
from packaging.version import Version

from modelfleet.infra.component import Fleet
from modelfleet.infra.gateway import with_rotated
from modelfleet.infra.planning.monitoring import ALERT_WEBHOOK
from modelfleet.serving.config.errors import ModelfleetError, SetupError

#: Tells the language host that the error is reported: a `pulumi.RunError` adds "exited with non-zero exit code".
REPORTED = 32
#: The stack output with the version that deployed it.
VERSION = "modelfleet_version"
#: What the engine says of a state that is being written, and how long to wait before the next try.
UNREADABLE = "failed to load checkpoint"
READ_AGAIN_S = (0.1, 0.3, 1.0)


def deploy_stack() -> None:
    """Deploy the selected stack of the fleet in Pulumi's root folder: its stack file and the model files it names.

    Prints errors in these files as Pulumi diagnostics and ends the program; nothing is made then.
    """
    config = pulumi.Config("modelfleet")
    try:
        _refuse_a_newer_stack()
        fleet = Fleet(
            pulumi.get_stack(),
            huggingface_token=config.get_secret("huggingFaceToken"),
            api_keys=_api_keys(config),
            alert_webhook=config.get_secret(ALERT_WEBHOOK),
        )
    except (ModelfleetError, pulumi.RunError) as error:
        pulumi.log.error(str(error))
        sys.exit(REPORTED)
    pulumi.export(VERSION, version("modelfleet"))
    pulumi.export("models", [model.model_id for model in fleet.plan.models])
    pulumi.export("max_usd_per_hour", fleet.plan.cost.max_usd_per_hour)
    for name, value in fleet.outputs.items():
        pulumi.export(name, value)


def _api_keys(config: pulumi.Config) -> pulumi.Output[dict[str, str]] | None:
    """The keys, with the old secrets of rotated ones that are still valid."""
    keys, rotated = config.get_secret_object("apiKeys"), config.get_secret_object("rotatedKeys")
    if keys is None or rotated is None:
        return keys
    both: pulumi.Output[dict[str, str]] = pulumi.Output.all(keys, rotated).apply(lambda two: with_rotated(*two))
    return pulumi.Output.secret(both)


def _refuse_a_newer_stack() -> None:
    """Raise `SetupError` if a newer version made this stack: an older one would undo what it does not know."""
    name = f"{pulumi.get_organization()}/{pulumi.get_project()}/{pulumi.get_stack()}"
    made_by, ours = _outputs(name).get(VERSION), version("modelfleet")
    if made_by and Version(made_by) > Version(ours):
        raise SetupError(
            f"stack {pulumi.get_stack()} was deployed by modelfleet {made_by}, and this is {ours}; "
            f"install {made_by} or newer, or destroy the stack with {made_by} first"
        )


def _outputs(name: str) -> Mapping[str, Any]:
    """The stack's outputs after its last update.

    Where the state is a folder, the engine may be writing it now, and one of its files is empty for a moment
    (`.attrs` of gocloud.dev's `fileblob`, which is not written in one step): so the read has several tries.
    """
    for wait_s in READ_AGAIN_S:
        try:
            return _read(name)
        except Exception as error:  # what the SDK raises for any error of the engine
            if UNREADABLE not in str(error):
                raise
            time.sleep(wait_s)
    return _read(name)


def _read(name: str) -> Mapping[str, Any]:
    answer = pulumi.runtime.invoke("pulumi:pulumi:readStackOutputs", {"name": name})
    outputs: Mapping[str, Any] = answer.value["outputs"]
    return outputs
