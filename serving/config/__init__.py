"""The model file: schema, loading and errors. Imports pydantic and a YAML reader only."""

from modelfleet.serving.config.document import Document
from modelfleet.serving.config.errors import Finding, InputErrors, ModelfleetError, SetupError, Severity
from modelfleet.serving.config.load import LoadedModel, Loading, load_model, load_models
from modelfleet.serving.config.schema import ModelConfig, slug_of

__all__ = [
    "Document",
    "Finding",
    "InputErrors",
    "LoadedModel",
    "Loading",
    "ModelConfig",
    "ModelfleetError",
    "SetupError",
    "Severity",
    "load_model",
    "load_models",
    "slug_of",
]
