"""What a stack has proved: model files, weights, code and image of a run of `up` that ended with models that answer.

Promotion copies a proved model to another stack, rollback brings one back. Both only write model files (and a stack's
image): what is wrong with them there, the plan says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict

from modelfleet.infra.planning.image import serving_repository
from modelfleet.infra.planning.plan import ModelPlan, Plan
from modelfleet.infra.planning.signers import from_hub
from modelfleet.serving.config.errors import Finding, Severity

#: Versions of a model's weights that the mirror keeps for a stack to go back to, the one in use among them.
KEPT = 3
DIGEST = "@sha256:"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Copy(_Frozen):
    """One copy of the mirror that a model loads: its weights, draft, tokenizer or an adapter.

    `version` is the manifest's, which names the files' content.
    """

    uri: str
    version: str
    source: str
    revision: str | None


class ProvedModel(_Frozen):
    """A model as it was proved: the text of its file, and what it loaded."""

    model_id: str
    file: str
    text: str
    copies: tuple[Copy, ...] = ()


class Proved(_Frozen):
    """One proved state of a stack. `at` is UTC, `20261201T013000Z`; `release` is modelfleet's version.

    `image` is None on this machine, where there is none.
    """

    version: Literal[1] = 1
    stack: str
    at: str
    release: str
    code_sha256: str
    image: str | None
    models: tuple[ProvedModel, ...]

    def model(self, model_id: str) -> ProvedModel | None:
        """The model of that id."""
        return next((one for one in self.models if one.model_id == model_id), None)

    def same_as(self, other: Proved) -> bool:
        """Whether nothing but the time differs."""
        return self.model_copy(update={"at": other.at}) == other


def versions_to_keep(records: Sequence[Proved], uri: str) -> tuple[str, ...]:
    """The last `KEPT` versions of a copy that were proved, the newest first; `records` are the oldest first."""
    found = (
        copy.version for one in reversed(records) for model in one.models for copy in model.copies if copy.uri == uri
    )
    return tuple(dict.fromkeys(found))[:KEPT]


def differs(was: ProvedModel, text: str | None, versions: Mapping[str, str | None]) -> bool:
    """Whether a model is now another than it was: its file, or a copy whose version in the mirror is known."""
    return was.text != text or any(versions.get(copy.uri, copy.version) != copy.version for copy in was.copies)


def before_now(
    records: Sequence[Proved],
    model_id: str | None,
    texts: Mapping[str, str],
    versions: Mapping[str, str | None],
    image: str | None = None,
) -> tuple[Proved, tuple[ProvedModel, ...]] | None:
    """The newest proved state that is not what the files and the mirror say now, with the models that differ.

    After a failed edit that is the last one, after a proved one that before. `texts` are the files by path, `versions`
    the mirror's by URI, `image` the one that the stack file names. The image counts where no model is named, and then
    perhaps no model differs. None where all are as now.
    """
    for one in reversed(records):
        asked = [model for model in one.models if model_id in (None, model.model_id)]
        changed = tuple(model for model in asked if differs(model, texts.get(model.file), versions))
        if changed or (model_id is None and other_image(one, image)):
            return one, changed
    return None


def other_image(was: Proved, image: str | None) -> str | None:
    """The image that a state was proved in, where the stack file names another one; None elsewhere.

    A stack that makes its image has that of its version of modelfleet.
    """
    return was.image if image and was.image and was.image != image else None


def file_for(patterns: Iterable[str], name: str) -> str | None:
    """Where a stack that serves files of these patterns would find a new `name`, below models/; None nowhere."""
    for pattern in patterns:
        parts = PurePosixPath(pattern.removesuffix(".yaml"))
        if any(mark in str(parts.parent) for mark in "*?["):
            continue
        if parts.name == "**" or fnmatchcase(name, parts.name):
            return str(PurePosixPath("models") / parts.parent / f"{name}.yaml")
    return None


def promotion_findings(proved: Proved, model: ProvedModel, after: ModelPlan, wanted: Plan) -> list[Finding]:
    """Why the stack of `wanted` would not run exactly what was proved: other code, another image, other weights."""
    again, errors = f"run `modelfleet up --stack {proved.stack}` again", []
    if wanted.code.sha256 != proved.code_sha256:
        errors.append(
            f"stack {proved.stack} proved it with the serving code {proved.code_sha256[:12]} of modelfleet "
            f"{proved.release}, and {wanted.stack} would get {wanted.code.sha256[:12]}; run `modelfleet upgrade "
            f"{proved.release}`, or with this version {again}"
        )
    errors += [
        f"its {source} came from a branch of the Hub, which may have other files now; run `modelfleet check --fix "
        f"--pin`, and {again}"
        # Also what the target loads: a stack without a mirror has no copies to tell.
        for source in dict.fromkeys(
            source
            for source, revision in (
                *((one.source, one.revision) for one in model.copies),
                *((one.source, one.revision) for one in (after.mirror, *after.others)),
            )
            if _moves(source, revision)
        )
    ]
    elsewhere = wanted.config.mirror.sources.values()
    loaded = (one for one in (after.mirror, *after.others) if one.prefix or one.source in elsewhere)
    theirs = {_named(one.source, one.revision) for one in loaded}
    ours = {_named(copy.source, copy.revision) for copy in model.copies}
    if ours and (others := sorted(theirs - ours)):
        errors.append(
            f"{wanted.stack} would load {', '.join(others)}, and {proved.stack} proved {', '.join(sorted(ours))}; make "
            "mirror.sources of both the same"
        )
    found = [Finding(model.file, 0, "", message) for message in errors]
    found += [
        Finding(
            model.file,
            0,
            "",
            f"{copy.source} may have other files by the time that {wanted.stack} copies it; {proved.stack} proved "
            f"version {copy.version}; give each version a folder of its own",
            Severity.WARNING,
        )
        for copy in model.copies
        if copy.source.startswith(("s3://", "file://"))
    ]
    if proved.image and not wanted.target.on_this_machine and DIGEST not in proved.image:
        other = wanted.ray_cluster.image != proved.image
        message = (
            f"stack {proved.stack} proved it in {proved.image}, a tag that may move; name the image by its digest "
            f"({DIGEST}…) in kubernetes.image of both stacks, and {again}"
        )
        found.append(Finding(model.file, 0, "", message, Severity.ERROR if other else Severity.WARNING))
    return [*found, *_foreign_image(proved, model, wanted)]


def _foreign_image(proved: Proved, model: ProvedModel, wanted: Plan) -> list[Finding]:
    """A repository that the other stack makes ends with it, keeps few images, and answers only its own account."""
    image = wanted.ray_cluster.image
    if image != proved.image or f"/{serving_repository(proved.stack)}@" not in image:
        return []
    account = wanted.config.account_id
    refused = account is not None and not image.startswith(f"{account}.")
    why = f"which account {account} may not pull from" if refused else "which keeps few images and goes with it"
    message = (
        f"{image} is in the repository of stack {proved.stack}, {why}; push it to a registry that both "
        f"reach, name it by its digest in kubernetes.image of both, and run `modelfleet up --stack {proved.stack}`"
    )
    return [Finding(model.file, 0, "", message, Severity.ERROR if refused else Severity.WARNING)]


def _named(source: str, revision: str | None) -> str:
    return f"{source}@{revision}" if revision else source


def _moves(source: str, revision: str | None) -> bool:
    """Whether a source may have other bytes tomorrow: the Hub without a commit."""
    return from_hub(source) and not re.fullmatch(r"[0-9a-f]{40}", revision or "")


def image_to_write(proved: Proved, target: Plan) -> str | None:
    """The image by its digest, where the target's stack file has to name it to run the same; None elsewhere."""
    if target.target.on_this_machine or proved.image is None or DIGEST not in proved.image:
        return None
    return None if target.ray_cluster.image == proved.image else proved.image
