"""What keeps a model from serving, each in one line with its fix.

    SetupError (modelfleet.serving.config.errors)
    └── ServingError     a replica cannot start or go on
        ├── MirrorError      a copy in object storage is absent, damaged, hostile or cannot be reached
        ├── WeightsError     the weights are not available where the model file says
        └── EngineError      vLLM refused to start

The line becomes the Serve deployment's status message, so it must say everything that a user needs.
"""

from __future__ import annotations

from modelfleet.serving.config.errors import SetupError


class ServingError(SetupError):
    """A replica cannot start or go on."""


class MirrorError(ServingError):
    """A copy in object storage is absent, damaged, hostile or cannot be reached."""


class WeightsError(ServingError):
    """The weights are not available where the model file says."""


class EngineError(ServingError):
    """vLLM refused to start with what the model file says."""


def died(model_id: str, why: str = "") -> str:
    """What a replica logs before it ends with its engine; `modelfleet doctor` knows it by these words."""
    because = f" with {why}" if why else ""
    return f"the engine of {model_id} died{because}; this replica ends so that Serve starts a new one"
