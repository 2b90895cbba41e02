"""What a mirror Job runs: fetch a model's files into the pod's volume, then fill the mirror with them.

Mounted from a ConfigMap. The serving package comes from the stack's code artifact, whose address is in a ConfigMap of
its own, so that new code does not change (and so repeat) a Job. Everything resumes: the volume outlives the
container, and the mirror keeps what it has.

    SOURCE    Hub id or s3://bucket/prefix       REVISION   commit, tag or branch, may be empty
    MIRROR    s3://bucket/models/<slug>          MODEL_ID   the model's public name      CODE   s3://bucket/code/….zip
"""

from __future__ import annotations

import io
import os
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

SCRATCH = Path(os.environ.get("SCRATCH", "/var/lib/modelfleet"))
#: Formats of the same weights that vLLM does not load.
NOT_NEEDED = ["*.msgpack", "*.h5", "*.onnx", "*.tflite", "*.ot", "original/*", "*.pth"]


def main() -> int:
    """Fill the mirror; the exit code decides whether Kubernetes tries again."""
    source, mirror = os.environ["SOURCE"], os.environ["MIRROR"]
    load_code(os.environ["CODE"])
    from serving.errors import MirrorError
    from serving.mirror import Status, fill, status

    try:
        if status(mirror) is Status.COMPLETE:
            print(f"{mirror} is complete")
            return 0
        revision = os.environ.get("REVISION") or None
        folder = from_s3(source) if source.startswith("s3://") else from_hub(source, revision)
        fill(folder, mirror, model_id=os.environ["MODEL_ID"], source=source, source_revision=revision, report=say)
    except MirrorError as error:
        print(f"mirror: {error}", file=sys.stderr)
        return 1
    return 0


def load_code(uri: str) -> None:
    """Put the serving package on the path."""
    import boto3

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    data = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    target = SCRATCH / "code"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(target)
    sys.path.insert(0, str(target))


def from_hub(source: str, revision: str | None) -> Path:
    """The repository's files; parallel, resumed after a restart, a few MB of memory per file."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    say(f"fetching {source} at {revision or 'its newest revision'}")
    try:
        snapshot_download(source, revision=revision, local_dir=SCRATCH / "model", ignore_patterns=NOT_NEEDED)
    except (GatedRepoError, RepositoryNotFoundError) as error:
        sys.exit(f"mirror: {source} is not there or this token may not read it: {_first_line(error)}")
    except RevisionNotFoundError:
        sys.exit(f"mirror: {source} has no revision {revision!r}; correct engine_config.revision")
    return SCRATCH / "model"


def from_s3(source: str) -> Path:
    """The files below another bucket's prefix; those that are here in their size are not fetched again."""
    import boto3

    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    s3: Any = boto3.client("s3")
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", []):
            path = SCRATCH / "model" / entry["Key"].removeprefix(prefix)
            if not path.resolve().is_relative_to(SCRATCH / "model") or entry["Key"].endswith("/"):
                continue
            if not path.is_file() or path.stat().st_size != entry["Size"]:
                path.parent.mkdir(parents=True, exist_ok=True)
                s3.download_file(bucket, entry["Key"], str(path))
                say(f"fetched {entry['Key']}, {entry['Size'] / 1e6:.0f} MB")
    return SCRATCH / "model"


def say(line: str) -> None:
    """One line of progress with the time, so that `kubectl logs -f` shows the speed."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
