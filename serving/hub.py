"""Repositories of the Hugging Face Hub: the files that vLLM needs, and errors with their fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelfleet.serving.config.checkpoint_files import FILES, Kind
from modelfleet.serving.errors import WeightsError


def download(repository: str, revision: str | None, folder: Path | None = None, *, kind: Kind = "model") -> Path:
    """The repository's files at `revision`, in `folder` or, without one, in the Hub's own cache on this node.

    Continues what an earlier call left; one download at a time per node. Raises `WeightsError` with the fix.
    """
    from huggingface_hub import HfApi, snapshot_download

    what, files = named(repository, revision), FILES[kind]
    with hub_errors(what):
        names = ["offline.safetensors"] if _offline() else HfApi().list_repo_files(repository, revision=revision)
        path = snapshot_download(
            repository,
            revision=revision,
            local_dir=folder,
            allow_patterns=files.wanted(names),
            ignore_patterns=list(files.ignored),
        )
    if files.needs and not (Path(path) / files.needs).is_file():
        raise WeightsError(f"{what} has no {files.needs}, so vLLM cannot load it; correct the id")
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


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
