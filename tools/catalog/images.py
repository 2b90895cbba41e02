"""Fills in the digests of `infra/catalog/images.csv`: `python -m tools.catalog.images`.

Asks each registry without credentials for what the tag names today, as the OCI distribution specification has it:
https://github.com/opencontainers/distribution-spec/blob/main/spec.md#checking-if-content-exists-in-the-registry
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path

from modelfleet.infra.catalog.images import TABLE
from modelfleet.serving.config.catalogs import csv_rows
from tools.catalog.tables import write_table

#: Docker Hub's names begin with docker.io, and its API is elsewhere.
HOSTS = {"docker.io": "registry-1.docker.io"}
#: Lists before single manifests, so that the digest is good for every processor.
ACCEPTED = (
    "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
TIMEOUT_S = 30

#: Answers a HEAD or GET of a URL with headers: status, headers, body.
Ask = Callable[[str, str, dict[str, str]], tuple[int, Message, bytes]]


def ask(method: str, url: str, headers: dict[str, str]) -> tuple[int, Message, bytes]:
    """One request; a refusal is an answer too."""
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, b""


def digest_of(image: str, tag: str, ask: Ask = ask) -> str:
    """What a tag names; raises `LookupError` where the registry does not say."""
    host, _, name = image.partition("/")
    url = f"https://{HOSTS.get(host, host)}/v2/{name}/manifests/{tag}"
    headers = {"Accept": ACCEPTED}
    status, found, _ = ask("HEAD", url, headers)
    if status == 401:
        token = _token(found.get("WWW-Authenticate", ""), name, ask)
        status, found, _ = ask("HEAD", url, {**headers, "Authorization": f"Bearer {token}"})
    digest = found.get("Docker-Content-Digest", "")
    if status != 200 or not DIGEST.fullmatch(digest):
        raise LookupError(f"{image}:{tag}: {url} answered {status} and no digest")
    return digest


def _token(challenge: str, name: str, ask: Ask) -> str:
    """A token for anybody, from the place that the registry names.

    https://distribution.github.io/distribution/spec/auth/token/
    """
    asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    query = {"service": asked.get("service", ""), "scope": asked.get("scope", f"repository:{name}:pull")}
    realm = asked.get("realm", "")
    if not realm.startswith("https://"):
        raise LookupError(f"{name}: the registry names no place for a token: {challenge!r}")
    status, _, body = ask("GET", f"{realm}?{urllib.parse.urlencode(query)}", {})
    if status != 200:
        raise LookupError(f"{name}: {realm} answered {status}")
    answer = json.loads(body)
    return str(answer.get("token") or answer["access_token"])


def renewed(table: Path = TABLE, ask: Ask = ask) -> None:
    """Write the table again with the digests of today; raises `LookupError` and leaves it as it was."""
    rows, today = list(csv_rows(table)), datetime.now(UTC).date().isoformat()
    for row in rows:
        digest = digest_of(row["image"], row["tag"], ask)
        if digest != row["digest"]:
            row.update(digest=digest, date=today, source=row["image"].partition("/")[0])
    write_table(table, rows)


if __name__ == "__main__":
    try:
        renewed()
    except (LookupError, OSError) as error:
        sys.exit(f"the digests are as they were: {error}")
    print(f"Next: git diff {TABLE}")
