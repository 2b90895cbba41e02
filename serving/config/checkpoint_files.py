"""The kinds of repositories that a model is made of, and the files of each that vLLM reads. Data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

Kind = Literal["model", "mistral", "adapter", "tokenizer"]

TEXTS: Final = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken", "tokenizer*")
NEVER: Final = ("original/*", "*.onnx", "onnx/*", "*.gguf")
MISTRAL_WEIGHTS: Final = "consolidated*"


@dataclass(frozen=True)
class Files:
    """`needs` is a file that the right repository has; without `old` files only where it has no safetensors."""

    needs: str | None
    patterns: tuple[str, ...]
    ignored: tuple[str, ...]
    old: tuple[str, ...] = ()

    def wanted(self, names: Sequence[str]) -> list[str]:
        """Patterns of the files that vLLM needs, where a repository has these; `ignored` takes some away again."""
        return [*self.patterns, *(() if any(name.endswith(".safetensors") for name in names) else self.old)]


FILES: Final[Mapping[Kind, Files]] = {
    "model": Files("config.json", ("*.safetensors", *TEXTS), (*NEVER, MISTRAL_WEIGHTS), old=("*.bin", "*.pt")),
    # Repositories of Mistral often have both layouts, each with all weights (vLLM 0.32 `default_loader.py` reads
    # `consolidated*.safetensors` with `load_format: mistral`, and `params.json` with `config_format: mistral`).
    "mistral": Files("params.json", (f"{MISTRAL_WEIGHTS}.safetensors", *TEXTS), (*NEVER, "model*.safetensors*")),
    "adapter": Files("adapter_config.json", ("*.safetensors", *TEXTS), NEVER, old=("*.bin", "*.pt")),
    "tokenizer": Files(None, TEXTS, NEVER),
}


def weights_kind(engine_kwargs: Mapping[str, Any]) -> Kind:
    """The layout of a model's repository: Mistral's own where its arguments ask for it."""
    asked = "mistral" in (engine_kwargs.get("load_format"), engine_kwargs.get("config_format"))
    return "mistral" if asked else "model"
