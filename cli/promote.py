"""`modelfleet promote`: copies a model that one stack has proved to another stack, exactly."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfleet.cli import output
from modelfleet.cli.changed_files import Answer, difference, nothing_proved, plan_with, write_files
from modelfleet.cli.memory import memory_of, text_of
from modelfleet.cli.plan_pin import round_trip
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.proved import Proved, ProvedModel, file_for, image_to_write, promotion_findings
from modelfleet.infra.reading.workspace import read_workspace
from modelfleet.infra.stack import load_stack
from modelfleet.serving.config.errors import Finding, InputErrors, errors_in
from modelfleet.serving.config.schema import slug_of
from modelfleet.serving.config.validation import near

KUBERNETES = "modelfleet:kubernetes"


@dataclass(frozen=True)
class Promotion:
    """What was proved, where it goes, and the files to write, by path."""

    proved: Proved
    model: ProvedModel
    texts: dict[str, str]
    after: Plan


def run_promote(model_id: str, answer: Answer, *, source: str, target: str) -> int:
    """Check the promotion, show what it changes, ask, write the files; returns the exit code."""
    root = Path.cwd()
    made = promotion(root, model_id, source, target)
    said = f"{model_id} as stack {source} proved it at {made.proved.at}"
    if not made.texts:
        output.say(f"stack {target} has {said} already")
        return answer.nothing_to_write(target)
    for copy in made.model.copies:
        output.say(f"weights {copy.source}{f'@{copy.revision}' if copy.revision else ''}: version {copy.version}")
    if not answer.agreed(difference(root, made.after), made.texts, made.proved.at):
        return 0
    write_files(root, made.texts)
    output.say(f"wrote {', '.join(sorted(made.texts))}: {said}")
    return answer.then(target)


def promotion(root: Path, model_id: str, source: str, target: str) -> Promotion:
    """Raises `InputErrors` with all that keeps the target from running exactly what the source has proved."""
    if source == target:
        raise InputErrors([Finding("--to", 0, "", f"found {target}, which is --from; name another stack")])
    proved, model = _proved(root, model_id, source)
    file = _file(root, model, source, target)
    texts = {} if text_of(root, file) == model.text else {file: model.text}
    after = plan_with(root, target, texts)
    if (image := image_to_write(proved, after)) is not None:
        path = f"stacks/Pulumi.{target}.yaml"
        texts[path] = with_image((root / path).read_text("utf-8"), image)
        after = plan_with(root, target, texts)
    planned = next(one for one in after.models if one.model_id == model_id)
    refused = promotion_findings(proved, model, planned, after)
    if errors := errors_in(refused):
        raise InputErrors(errors)
    output.show_findings([*refused, *(one for one in after.notices if one.file in texts)])
    if after.target.makes_cluster:
        _ask_aws(after)
    return Promotion(proved, model, texts, after)


def _proved(root: Path, model_id: str, source: str) -> tuple[Proved, ProvedModel]:
    states = memory_of(root, load_stack(root, source)).states()
    if not states:
        raise InputErrors([Finding("--from", 0, "", nothing_proved(source))])
    model = states[-1].model(model_id)
    if model is None:
        names = [one.model_id for one in states[-1].models]
        message = f"found {model_id!r}, which stack {source} did not have at {states[-1].at}; {near(model_id, names)}"
        raise InputErrors([Finding("MODEL", 0, "", message)])
    return states[-1], model


def _file(root: Path, model: ProvedModel, source: str, target: str) -> str:
    """The file of the target that has, or will have, the model. Raises `InputErrors` where both stacks read it."""
    workspace = read_workspace(root, target)
    there = next((one.file for one in workspace.models if one.config.model_id == model.model_id), None)
    patterns = workspace.stack.config.models
    file = there or file_for(patterns, slug_of(model.model_id))
    if file is None:
        name = f"{slug_of(model.model_id)}.yaml"
        message = f"none of {', '.join(patterns)} would find a new {name}; add one such as {target}/*"
        raise InputErrors([workspace.stack.finding(("models",), message)])
    if file == model.file and text_of(root, file) != model.text:
        message = (
            f"is read by {target} and by {source}, and differs from what {source} proved; give {target} a folder of "
            f"its own in `models`, or prove the edit: `modelfleet up --stack {source}`"
        )
        raise InputErrors([Finding(file, 0, "", message)])
    return file


def _ask_aws(plan: Plan) -> None:
    """Quotas and offerings; raises `InputErrors` with what AWS would refuse."""
    from modelfleet.cli.up import ask_aws

    ask_aws(plan)


def with_image(text: str, image: str) -> str:
    """A stack file with `kubernetes.image`; its comments stay."""
    yaml = round_trip(text)
    document: Any = yaml.load(text)
    document["config"].setdefault(KUBERNETES, {})["image"] = image
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()
