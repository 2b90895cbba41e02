"""Repositories of the Hugging Face Hub: the files that vLLM needs, and errors with their fix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from modelfleet.serving.errors import WeightsError

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken", "tokenizer*")
OLD_PATTERNS = ("*.bin", "*.pt")
"""Weights of repositories that have no safetensors."""

NOT_NEEDED = ("original/*", "*.onnx", "onnx/*", "consolidated*", "*.gguf")


def download(repository: str, revision: str | None, folder: Path | None = None, *, needs: str = "config.json") -> Path:
    """The repository's files at `revision`, in `folder` or, without one, in the Hub's own cache on this node.

    `needs` is a file that the right repository has. Continues what an earlier call left; one download at a time per
    node. Raises `WeightsError` with the fix.
    """
    from huggingface_hub import HfApi, snapshot_download

    what = named(repository, revision)
    with hub_errors(what):
        patterns = list(PATTERNS)
        if not _offline() and not _has_safetensors(HfApi().list_repo_files(repository, revision=revision)):
            patterns += OLD_PATTERNS
        path = snapshot_download(
            repository, revision=revision, local_dir=folder, allow_patterns=patterns, ignore_patterns=list(NOT_NEEDED)
        )
    if not (Path(path) / needs).is_file():
        raise WeightsError(f"{what} has no {needs}, so vLLM cannot load it; correct the id")
    return Path(path)


def named(repository: str, revision: str | None) -> str:
    """A repository's name in messages."""
    return repository if revision is None else f"{repository}@{revision}"


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turns the Hub's errors into a `WeightsError` of one line with the fix."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise WeightsError(
            f"{what} is gated on the Hugging Face Hub and this node's token cannot read it; accept its licence on the "
            "model's page and set HF_TOKEN (`pulumi config set --secret modelfleet:huggingFaceToken`)"
        ) from None
    except RevisionNotFoundError:
        raise WeightsError(f"{what}: the repository has no such revision; correct engine_config.revision") from None
    except RepositoryNotFoundError:
        raise WeightsError(
            f"{what} is not on the Hugging Face Hub, or is private and HF_TOKEN is not set; correct hf_model_id "
            "(or model_id), or set the token"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise WeightsError(
            f"{what} is not on this node and the Hugging Face Hub cannot be reached; check the network, "
            "HF_HUB_OFFLINE and HF_ENDPOINT, or use a mirror"
        ) from None
    except (HTTPError, OSError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{what} cannot be fetched from the Hugging Face Hub: {text[:300]}") from None


def patterns_of(files: Sequence[str]) -> list[str]:
    """Patterns of the files that vLLM needs, where a repository has these; `NOT_NEEDED` takes some away again."""
    return [*PATTERNS, *(() if _has_safetensors(files) else OLD_PATTERNS)]


def _has_safetensors(files: Sequence[str]) -> bool:
    return any(name.endswith(".safetensors") for name in files)


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
