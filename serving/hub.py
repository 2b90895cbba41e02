"""Repositories of the Hugging Face Hub: the files that vLLM needs, and errors with their fix."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from threading import Event, Thread

from modelfleet.serving.config.checkpoint_files import FILES, Kind
from modelfleet.serving.errors import WeightsError

REPORT_EVERY_S = 3.0
#: A half file that got no byte for so long is nobody's any more: huggingface_hub gives a silent connection 10 s.
LEFT_S = 600.0
Report = Callable[[str], None]


def download(
    repository: str,
    revision: str | None,
    folder: Path | None = None,
    *,
    kind: Kind = "model",
    report: Report | None = None,
) -> Path:
    """The repository's files at `revision`, in `folder` or, without one, in the Hub's own cache on this node.

    `report` hears every few seconds how much is here: a start that says nothing is taken for one that hangs.
    A connection that breaks goes on at its byte. After a killed call whole files stay; one that it had half begins anew
    (huggingface_hub 2.4 `_download_to_tmp_and_move`). Raises `WeightsError` with the fix.
    """
    from huggingface_hub import HfApi, snapshot_download

    what, files = named(repository, revision), FILES[kind]
    if folder is None:
        remove_left(_cache_of(repository) / "blobs")
    with hub_errors(what), _told(repository, folder, report):
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


@contextmanager
def _told(repository: str, folder: Path | None, report: Report | None) -> Iterator[None]:
    """Has `report` hear how much of the repository is on this node while the block runs, and how long that took."""
    place, ended, began = folder or _cache_of(repository), Event(), time.monotonic()

    def tell(hear: Report) -> None:
        while not ended.wait(REPORT_EVERY_S):
            hear(f"fetching {repository}: {_bytes_below(place) / 1e6:,.0f} MB so far")

    teller = Thread(target=tell, args=(report,), daemon=True) if report else None
    if teller:
        teller.start()
    try:
        yield
    finally:
        ended.set()
        if teller:
            teller.join()
    if report:
        report(f"fetched {repository} in {time.monotonic() - began:.0f} s")


def _cache_of(repository: str) -> Path:
    """The repository's folder in the Hub's own cache on this node."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name: str = repo_folder_name(repo_id=repository, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / name


def remove_left(blobs: Path) -> None:
    """Removes the half files of killed downloads, which nobody goes on with and nobody else removes."""
    for half in blobs.glob("*.incomplete"):
        with suppress(OSError):  # whole, and renamed meanwhile
            if time.time() - half.stat().st_mtime > LEFT_S:
                half.unlink()


def _bytes_below(place: Path) -> int:
    """Bytes of all files, half fetched ones too; a link's file is counted where it is."""
    total = 0
    for path in place.rglob("*"):
        with suppress(OSError):  # renamed meanwhile
            status = path.lstat()
            total += status.st_size if S_ISREG(status.st_mode) else 0
    return total


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
