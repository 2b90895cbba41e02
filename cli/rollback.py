"""`modelfleet rollback`: brings back the proved state before what the files and the mirror say now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from modelfleet.cli import output
from modelfleet.cli.changed_files import Answer, difference, nothing_proved, plan_with, write_files
from modelfleet.cli.memory import memory_of, text_of
from modelfleet.cli.promote import with_image
from modelfleet.infra.planning.proved import Proved, before_now, other_image
from modelfleet.infra.reading.code import code_artifact
from modelfleet.infra.reading.proved import Memory
from modelfleet.infra.reading.workspace import model_files
from modelfleet.infra.stack import LoadedStack, load_stack
from modelfleet.serving.config.errors import Finding, InputErrors
from modelfleet.serving.config.validation import near


def run_rollback(model_id: str | None, answer: Answer, *, stack: str) -> int:
    """Find the state, show what it changes, ask, turn the mirror back and write the files; returns the exit code."""
    root = Path.cwd()
    loaded = load_stack(root, stack)
    memory, image = memory_of(root, loaded), loaded.config.kubernetes.image
    states = memory.states()
    _refuse_unknown(states, model_id, stack)
    if model_id is None:
        _refuse_new(root, loaded, states)
    files = {one.file for state in states for one in state.models}
    now = {file: text for file in files if (text := text_of(root, file)) is not None}
    found = before_now(states, model_id, now, _versions(memory, states), image)
    if found is None:
        output.say(f"{model_id or f'stack {stack}'}: no proved state differs from what is there now")
        return answer.nothing_to_write(stack)
    state, models = found
    texts = {one.file: one.text for one in models if now.get(one.file) != one.text}
    if other := other_image(state, image):
        texts |= _image(root, stack, other, all_models=model_id is None)
    change = difference(root, plan_with(root, stack, texts))
    output.say(f"{', '.join(one.model_id for one in models) or 'image'} as stack {stack} proved it at {state.at}")
    _say_code(state)
    if not answer.agreed(change, texts, state.at):
        return 0
    # The mirror first: it refuses where any version is gone, and then no copy and no file is another one.
    copies = [] if memory.here else dict.fromkeys(copy for one in models for copy in one.copies)
    for copy, manifest in [(copy, body) for copy in copies if (body := memory.kept(copy)) is not None]:
        memory.bring_back(copy, manifest)
        output.say(f"{copy.uri} has version {copy.version} again")
    write_files(root, texts)
    output.say(f"wrote {', '.join(sorted(texts))}" if texts else "no file differs")
    return answer.then(stack)


def _refuse_unknown(states: Sequence[Proved], model_id: str | None, stack: str) -> None:
    if not states:
        raise InputErrors([Finding("--stack", 0, "", nothing_proved(stack))])
    names = {one.model_id for state in states for one in state.models}
    if model_id is not None and model_id not in names:
        message = f"found {model_id!r}, which stack {stack} never proved; {near(model_id, names)}"
        raise InputErrors([Finding("MODEL", 0, "", message)])


def _refuse_new(root: Path, stack: LoadedStack, states: Sequence[Proved]) -> None:
    """A model that came since may be what failed: the last state then still holds of all others, which stay."""
    proved = {one.file for state in states for one in state.models}
    message = (
        f"is in no state that stack {stack.name} proved, and rollback takes no file away; move it out of models/, or "
        "name the model that goes back"
    )
    files = (path.relative_to(root).as_posix() for path in model_files(root, stack)[0])
    if new := [Finding(file, 0, "", message) for file in files if file not in proved]:
        raise InputErrors(new)


def _versions(memory: Memory, states: Sequence[Proved]) -> Mapping[str, str | None]:
    """What the mirror has now of each copy. A local stack's bucket is gone with its emulator, and is filled anew."""
    uris = {copy.uri for state in states for one in state.models for copy in one.copies}
    return {} if memory.here else {uri: memory.version(uri) for uri in sorted(uris)}


def _image(root: Path, stack: str, image: str, *, all_models: bool) -> dict[str, str]:
    """The stack file with the image of then. One model alone does not take it back: it is every model's."""
    if not all_models:
        output.say(
            f"that was in {image}; `modelfleet rollback --stack {stack}` goes back to it, with all models", "yellow"
        )
        return {}
    file = f"stacks/Pulumi.{stack}.yaml"
    return {file: with_image((root / file).read_text("utf-8"), image)}


def _say_code(state: Proved) -> None:
    if state.code_sha256 != code_artifact().sha256:
        output.say(
            f"that was modelfleet {state.release} with the serving code {state.code_sha256[:12]}, which is not the one "
            f"installed here; to go back to it too: modelfleet upgrade {state.release}",
            "yellow",
        )
