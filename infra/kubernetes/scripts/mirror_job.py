"""What a mirror Job runs: copy a model's files from the Hub or another bucket into the stack's, without a disk.

Mounted from a ConfigMap, run by the image's Python. The serving package, which does the work, comes from the stack's
code artifact; its address is in a ConfigMap of its own, so that new code does not change (and so repeat) a Job.
A Job that starts again goes on where it stopped: the bucket keeps what has arrived.

    SOURCE    Hub id or s3://bucket/prefix       REVISION   commit, tag or branch, may be empty
    KIND      what the Hub's repository holds, may be empty (`serving/config/checkpoint_files.py`)
    MIRROR    s3://bucket/models/<slug>          MODEL_ID   the model's public name      CODE   s3://bucket/code/….zip
    SIGNER_KEY or SIGNER_CERTIFICATES            PEM of who must have signed it (`trust.signers`), may be missing
    MANIFEST_KEY                                 KMS key that signs the manifest (`trust.manifestKey`), may be missing
    MANIFEST_PUBLIC_KEY                          its public half; what the key signs must verify by it
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path

SCRATCH = Path(os.environ.get("SCRATCH", "/var/lib/modelfleet"))


def main() -> int:
    """Fill the mirror; the exit code decides whether Kubernetes tries again."""
    load_code(os.environ["CODE"])
    from modelfleet.serving.mirror.__main__ import main as mirror

    source, revision = os.environ["SOURCE"], os.environ.get("REVISION")
    origin = ["--from" if "://" in source else "--hub", source]
    named = ["--revision", revision] if revision else []
    named += ["--kind", kind] if (kind := os.environ.get("KIND")) else []
    for option in ("--signer-key", "--signer-certificates", "--manifest-key", "--manifest-public-key"):
        named += [option, pem] if (pem := os.environ.get(option.strip("-").replace("-", "_").upper())) else []
    code: int = mirror(["fill", os.environ["MIRROR"], "--model-id", os.environ["MODEL_ID"], *origin, *named])
    return code


def load_code(uri: str) -> None:
    """Put the serving package on the path."""
    import boto3

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    data = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    target = SCRATCH / "code"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(target)
    sys.path.insert(0, str(target))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # an image may keep Python from looking there by itself
    from json_lines import take_over_output  # type: ignore[import-not-found]

    take_over_output("mirror", Path(__file__).parent)
    sys.exit(main())
