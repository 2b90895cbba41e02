"""`modelfleet check --fix --pin`: the commit of a model's weights in place of a branch, which its owner can move."""

from __future__ import annotations

from pathlib import Path

from modelfleet.infra.planning.signers import from_hub
from modelfleet.infra.planning.trust import REVISION, is_commit
from modelfleet.infra.reading.models import Reader
from modelfleet.serving.config.document import dotted
from modelfleet.serving.config.errors import Finding, InputErrors, Severity
from modelfleet.serving.config.load import load_model
from modelfleet.serving.config.rayllm.fix import add_to_file, replace_in_file


def pin_revision(path: Path) -> list[Finding]:
    """Write the commit that the Hub has now; returns a notice if it was written.

    Raises `InputErrors` where the Hub does not say it, or the file cannot be changed.
    """
    model, _ = load_model(path)
    if model is None:
        return []  # its own faults are said
    engine = model.config.engine_config
    mirrored = engine.mirror_config is not None and engine.mirror_config.bucket_uri
    if mirrored or not from_hub(engine.weights_id) or is_commit(engine.revision):
        return []
    branch = engine.revision or "main"
    commit = Reader(Path.cwd(), network=True).commit(engine.weights_id, branch)
    if commit is None:
        message = (
            f"the Hub does not say which commit {engine.weights_id}@{branch} is; nothing was pinned. Check the name, "
            "the network and HF_TOKEN, and run again"
        )
        raise InputErrors([model.document.finding(REVISION, message)])
    if engine.revision is None:
        add_to_file(path, {REVISION: commit})
    else:
        replace_in_file(path, REVISION, commit)
    text = f"pinned: {engine.weights_id}@{branch} is {commit}"
    return [Finding(model.document.file, 0, dotted(REVISION), text, Severity.NOTICE)]
