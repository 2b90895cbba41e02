"""Google Cloud Storage, read over its JSON API with google-auth: no further client library in the image.

Credentials come from the environment (workload identity, GOOGLE_APPLICATION_CREDENTIALS); `STORAGE_EMULATOR_HOST`
points to an emulator, which is asked without any. API: https://cloud.google.com/storage/docs/json_api/v1
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from serving.errors import MirrorError
from serving.mirror.store import PIECE_BYTES, StoredObject, too_large

ENDPOINT = "https://storage.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
TIMEOUT_S = (10, 60)


class GcsStore:
    """A bucket of Google Cloud Storage."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        emulator = os.environ.get("STORAGE_EMULATOR_HOST")
        self.endpoint = (emulator if not emulator or "://" in emulator else f"http://{emulator}") or ENDPOINT
        self.session = _session(anonymous=bool(emulator))

    def list(self, prefix: str) -> dict[str, StoredObject]:
        """See `Store`."""
        found: dict[str, StoredObject] = {}
        page: str | None = ""
        while page is not None:
            query = {"prefix": prefix, "fields": "items(name,size,generation),nextPageToken"}
            data = self._get(self._url(), query | ({"pageToken": page} if page else {})).json()
            for item in data.get("items", ()):
                found[item["name"]] = StoredObject(int(item["size"]), str(item["generation"]))
            page = data.get("nextPageToken")
        return found

    def read(self, key: str, at_most_bytes: int) -> bytes | None:
        """See `Store`."""
        answer = self._get(self._url(key), {"alt": "media"}, missing_is_none=True, stream=True)
        if answer is None:
            return None
        with answer:
            data = b"".join(answer.iter_content(PIECE_BYTES)) if _size(answer) <= at_most_bytes else None
        if data is None or len(data) > at_most_bytes:
            raise too_large(f"gs://{self.bucket}/{key}", _size(answer))
        return data

    def stream(self, key: str, offset: int, length: int, tag: str | None = None) -> Iterator[bytes]:
        """See `Store`; the tag is the object's generation."""
        query = {"alt": "media"} | ({"generation": tag} if tag else {})
        wanted = {"Range": f"bytes={offset}-{offset + length - 1}"}
        with self._get(self._url(key), query, headers=wanted, stream=True) as answer:
            yield from answer.iter_content(PIECE_BYTES)

    def _url(self, key: str | None = None) -> str:
        objects = f"{self.endpoint}/storage/v1/b/{quote(self.bucket, safe='')}/o"
        return objects if key is None else f"{objects}/{quote(key, safe='')}"

    def _get(self, url: str, query: dict[str, str], *, missing_is_none: bool = False, **options: Any) -> Any:
        import google.auth.exceptions
        import requests

        what = f"read gs://{self.bucket}"
        try:
            answer = self.session.get(url, params=query, timeout=TIMEOUT_S, **options)
        except google.auth.exceptions.GoogleAuthError as error:
            raise MirrorError(f"{what}: {error}; give the node a service account that may read the bucket") from None
        except requests.RequestException as error:
            raise MirrorError(f"{what}: {type(error).__name__}; check the network and STORAGE_EMULATOR_HOST") from None
        if answer.status_code == 404 and missing_is_none:
            return None
        if answer.status_code >= 300:
            raise MirrorError(f"{what}: it answered {answer.status_code}; {_WAY_OUT.get(answer.status_code, _LOOK)}")
        return answer


_LOOK = "look at the bucket"
_WAY_OUT = {
    401: "give the node a service account that may read the bucket",
    403: "let the node's service account read the bucket",
    404: "correct the bucket's name, or fill it",
}


def _size(answer: Any) -> int:
    return int(answer.headers.get("Content-Length", 0))


def _session(*, anonymous: bool) -> Any:
    import google.auth
    import google.auth.exceptions
    import requests
    from google.auth.transport.requests import AuthorizedSession

    if anonymous:
        return requests.Session()
    try:
        credentials, _ = google.auth.default(scopes=[SCOPE])
    except google.auth.exceptions.DefaultCredentialsError:
        raise MirrorError(
            "no Google credentials on this node; give it a service account (workload identity), "
            "or set GOOGLE_APPLICATION_CREDENTIALS"
        ) from None
    return AuthorizedSession(credentials)
