"""The stack's files and its plan: every error that `check` and `plan` find."""

from __future__ import annotations

from modelfleet.doctor.evidence import Evidence, Layer, Reading
from modelfleet.doctor.subject import Subject


def read(subject: Subject, seconds: float) -> Reading:  # noqa: ARG001 - the files were read when the subject was opened
    """A fact per error; none for files that make a plan."""
    by_file = {model.file: model.config.slug for model in subject.models}
    found = (
        Evidence(
            Layer.FILES,
            "finding",
            one.file,
            f"{one.path}: {one.message}" if one.path else one.message,
            models=(by_file[one.file],) if one.file in by_file else (),
            file=one.file,
            line=one.line,
        )
        for one in subject.findings
    )
    return Reading(Layer.FILES, tuple(found))
