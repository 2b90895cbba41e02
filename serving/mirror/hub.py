"""A repository of the Hugging Face Hub as the origin of a copy, streamed without a disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelfleet.serving.config.checkpoint_files import FILES, Kind
from modelfleet.serving.errors import WeightsError
from modelfleet.serving.hub import hub_errors, named
from modelfleet.serving.mirror.origin import OriginFile
from modelfleet.serving.mirror.store import PIECE_BYTES

if TYPE_CHECKING:
    from httpx2 import Response

REQUEST_BYTES = 2**30
"""Most bytes of one request. The Hub serves files above 50 GB in ranges only (huggingface_hub
`constants.MAX_HTTP_DOWNLOAD_SIZE`), and each request gets a freshly signed address, which lives for an hour."""

ATTEMPTS, PAUSE_S = 6, 2.0
"""Requests in a row that may bring nothing before a copy gives up, and the pause between them in seconds."""


class Repository:
    """A repository as the origin of a mirror (`origin.py`), read in ranges without a disk.

    All requests name the commit that the revision had at first, so that no file comes from another one.
    """

    def __init__(self, repository: str, revision: str | None, kind: Kind = "model") -> None:
        from huggingface_hub import HfApi

        self._repository, self._what, self._files = repository, named(repository, revision), FILES[kind]
        with hub_errors(self._what):
            self._commit = HfApi().model_info(repository, revision=revision).sha
        self._found: dict[str, OriginFile] = {}

    def __str__(self) -> str:
        return self._what

    def files(self) -> list[OriginFile]:
        """What vLLM needs. Files in LFS, which all weights are, come with their SHA-256; the others are small."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile
        from huggingface_hub.utils import filter_repo_objects

        with hub_errors(self._what):
            tree = HfApi().list_repo_tree(self._repository, recursive=True, revision=self._commit)
            entries = [entry for entry in tree if isinstance(entry, RepoFile)]
        found = {one.path: OriginFile(one.path, one.size, one.lfs.sha256 if one.lfs else None) for one in entries}
        self._found = found
        allowed = self._files.wanted(list(found))
        names = filter_repo_objects(found, allow_patterns=allowed, ignore_patterns=list(self._files.ignored))
        return [found[name] for name in names]

    def find(self, path: str) -> OriginFile | None:
        """See `Origin`."""
        return self._found.get(path)

    def stream(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        """See `Origin`. A broken connection goes on where it stopped."""
        from httpx2 import TransportError

        end, left = offset + length, ATTEMPTS
        with hub_errors(f"{path} of {self._what}"):
            while offset < end:
                before, reason = offset, "it ended early"
                try:
                    for piece in self._request(path, offset, min(end, offset + REQUEST_BYTES)):
                        offset += len(piece)
                        yield piece
                except TransportError as error:
                    reason = type(error).__name__
                left = ATTEMPTS if offset > before else left - 1
                if not left:
                    raise WeightsError(
                        f"{path} of {self._what}: the Hub sent nothing from byte {offset} on in {ATTEMPTS} requests "
                        f"({reason}); check the network and HF_ENDPOINT"
                    )
                if left < ATTEMPTS:
                    time.sleep(PAUSE_S)

    def _request(self, path: str, first: int, end: int) -> Iterator[bytes]:
        """The bytes from `first` to before `end`; fewer if the connection breaks, never more."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        url = hf_hub_url(self._repository, path, revision=self._commit, endpoint=constants.ENDPOINT)
        # Compressed, a small text would come whole: a range counts the bytes that travel.
        wanted = {"Range": f"bytes={first}-{end - 1}", "Accept-Encoding": "identity"}
        headers = {**build_hf_headers(), **wanted}
        # A redirect to the CDN is followed without the token: the client drops it at another host.
        waiting = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with http_stream_backoff("GET", url, headers=headers, timeout=waiting, retry_on_exceptions=()) as answer:
            hf_raise_for_status(answer)
            self._right_range(answer, path, first)
            for piece in answer.iter_bytes(chunk_size=PIECE_BYTES):
                yield piece[: end - first]
                first += len(piece)
                if first >= end:
                    break

    def _right_range(self, answer: Response, path: str, first: int) -> None:
        """Raises `WeightsError` for an answer that does not begin at byte `first`."""
        at = answer.headers.get("Content-Range", "bytes 0-").removeprefix("bytes ").partition("-")[0]
        if at != str(first):
            raise WeightsError(
                f"{path} of {self._what}: asked for byte {first}, the Hub's answer begins at {at}; a proxy or mirror "
                "behind HF_ENDPOINT ignores ranges; use another"
            )
