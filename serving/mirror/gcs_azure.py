"""Google Cloud Storage and Azure Blob Storage, read through obstore: one Rust client for both.

Credentials come from the environment. google-auth finds Google's: it supports workload identity federation, which a
pod on AWS needs and obstore lacks (apache/arrow-rs-object-store#258). `STORAGE_EMULATOR_HOST` names an emulator, which
needs none. Azure's are obstore's: `AZURE_STORAGE_ACCOUNT_NAME`, and a key
(`AZURE_STORAGE_ACCOUNT_KEY`), a SAS token (`AZURE_STORAGE_SAS_TOKEN`), workload identity or managed identity.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from obstore.exceptions import BaseError

from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror.store import PIECE_BYTES, StoredObject, too_large

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
#: `timeout` is for a whole response: enough for a chunk at 55 kB/s.
LIMITS: ClientConfig = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "600s"}
RETRIES: RetryConfig = {"max_retries": 5}
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_FIX = {
    401: "correct the credentials in the environment",
    403: "allow this node's identity to list and read the bucket",
    404: "correct the bucket's name, or fill it",
}


class ObstoreStore:
    """One bucket, through an obstore client; `where` names it in messages."""

    def __init__(self, where: str, client: Any) -> None:
        self.where, self.client = where, client

    def list(self, prefix: str) -> dict[str, StoredObject]:
        """See `Store`. obstore lists only folders, and drops the trailing `/` of an object that represents one."""
        with self._plain_errors():
            pages = self.client.list(prefix.rpartition("/")[0])
            listed = [entry for page in pages for entry in page if entry["path"].startswith(prefix)]
        folders = {str(parent) for entry in listed for parent in PurePosixPath(entry["path"]).parents}
        return {
            entry["path"]: StoredObject(entry["size"], _tag(entry))
            for entry in listed
            if entry["size"] or entry["path"] not in folders
        }

    def read(self, key: str, at_most_bytes: int) -> bytes | None:
        """See `Store`."""
        with self._plain_errors():
            try:
                answer = self.client.get(key)
            except FileNotFoundError:
                return None
            if answer.meta["size"] > at_most_bytes:
                raise too_large(f"{self.where}/{key}", answer.meta["size"])
            return bytes(answer.bytes())

    def stream(self, key: str, offset: int, length: int, tag: str | None = None) -> Iterator[bytes]:
        """See `Store`; compares `tag` with the one that comes with the bytes."""
        with self._plain_errors():
            answer = self.client.get(key, options={"range": (offset, offset + length)})
            if tag is not None and _tag(answer.meta) != tag:
                raise MirrorError(f"{self.where}/{key} changed during the download; start the replica again")
            yield from answer.stream(min_chunk_size=PIECE_BYTES)

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            if status := _STATUS.search(str(error)):
                found, code = f"it returned {status[1]}", int(status[1])
                raise MirrorError(f"{self.where}: {found}; {_FIX.get(code, 'check the bucket')}") from None
            raise MirrorError(f"{self.where}: {_first_line(error)}; check the network and the credentials") from None


def _tag(entry: Any) -> str:
    return str(entry["e_tag"]).strip('"')


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def google(bucket: str) -> ObstoreStore:
    """A bucket of Google Cloud Storage; raises `MirrorError` without credentials."""
    from obstore.store import GCSStore

    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator:
        url = emulator if "://" in emulator else f"http://{emulator}"
        access: dict[str, Any] = {"base_url": url, "skip_signature": True, "client_options": {"allow_http": True}}
    else:
        access = {"credential_provider": _google_credentials(), "client_options": LIMITS}
    return ObstoreStore(f"gs://{bucket}", GCSStore(bucket, retry_config=RETRIES, **access))


def _google_credentials() -> Any:
    import google.auth
    import google.auth.exceptions
    from obstore.auth.google import GoogleCredentialProvider

    try:
        credentials, _ = google.auth.default(scopes=[SCOPE])
    except google.auth.exceptions.GoogleAuthError as error:
        raise MirrorError(
            f"no Google credentials on this node ({_first_line(error)}); give it a service account "
            "(workload identity) or set GOOGLE_APPLICATION_CREDENTIALS"
        ) from None
    return GoogleCredentialProvider(credentials)


def azure(container: str) -> ObstoreStore:
    """A container of Azure Blob Storage, in the account that the environment names; raises `MirrorError` if none."""
    from obstore.store import AzureStore

    endpoint = os.environ.get("AZURE_STORAGE_ENDPOINT", "")
    options: ClientConfig = {**LIMITS, "allow_http": endpoint.startswith("http://")}
    try:
        client = AzureStore(container, client_options=options, retry_config=RETRIES)
    except BaseError as error:
        fix = "set AZURE_STORAGE_ACCOUNT_NAME and credentials for it"
        raise MirrorError(f"az://{container}: {_first_line(error)}; {fix}") from None
    return ObstoreStore(f"az://{container}", client)
