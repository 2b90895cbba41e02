"""What a reader hands over: facts as the layer's own part words them, or why the layer could not be read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Layer(StrEnum):
    """The layers in the order of cause: what is wrong in one shows as symptoms in those after it."""

    FILES = "files"
    STATE = "state"
    AWS = "aws"
    KUBERNETES = "kubernetes"
    RAY = "ray"
    SERVE = "serve"
    ENGINE = "engine"
    GATEWAY = "gateway"
    MONITOR = "monitor"


#: Kinds of evidence that tell what was, such as a log's lines: they count only where something is wrong now.
PAST = frozenset({"event", "log", "job-log", "raynode", "activity", "lock"})

#: The place of each layer in the order of cause.
ORDER = {layer: place for place, layer in enumerate(Layer)}


@dataclass(frozen=True)
class Evidence:
    """One fact. `kind` is what rules choose by, such as `pod` or `log`; `text` is in the words of its source.

    `models` are the slugs that it is about, none for the whole stack. `time` is as the source writes it, empty where
    it has none. `file` and `line` are set where the fact is about a place in a file.
    """

    layer: Layer
    kind: str
    object: str
    text: str
    time: str = ""
    models: tuple[str, ...] = ()
    file: str = ""
    line: int = 0


@dataclass(frozen=True)
class Reading:
    """What one layer said. `unread` says why it could not be read, wholly or in part; None when it was."""

    layer: Layer
    evidence: tuple[Evidence, ...] = ()
    unread: str | None = None
