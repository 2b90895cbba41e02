"""The model file: schema, loading and errors. Imports pydantic and a YAML reader only."""

from serving.config.document import Document
from serving.config.errors import Finding, InputErrors, ModelfleetError, SetupError, Severity
from serving.config.load import LoadedModel, Loading, load_model, load_models
from serving.config.schema import ModelConfig, slug_of

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
