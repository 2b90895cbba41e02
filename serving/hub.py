"""Repositories of the Hugging Face Hub: the files that vLLM needs, and errors with their fix."""

from __future__ import annotations

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
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = repository if revision is None else f"{repository}@{revision}"
    try:
        patterns = list(PATTERNS)
        if not _offline() and not _has_safetensors(HfApi().list_repo_files(repository, revision=revision)):
            patterns += OLD_PATTERNS
        path = snapshot_download(
            repository, revision=revision, local_dir=folder, allow_patterns=patterns, ignore_patterns=list(NOT_NEEDED)
        )
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
    except (HfHubHTTPError, OSError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{what} cannot be fetched from the Hugging Face Hub: {text[:300]}") from None
    if not (Path(path) / needs).is_file():
        raise WeightsError(f"{what} has no {needs}, so vLLM cannot load it; correct the id")
    return Path(path)


def _has_safetensors(files: list[str]) -> bool:
    return any(name.endswith(".safetensors") for name in files)


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
