"""The mirror by hand and in a Kubernetes Job.

    python -m modelfleet.serving.mirror fill s3://bucket/models/slug --model-id org/name --from /folder
    python -m modelfleet.serving.mirror fill s3://bucket/models/slug --model-id org/name --from s3://other/prefix
    python -m modelfleet.serving.mirror fill s3://bucket/models/slug --model-id org/name --hub org/name [--revision REV]
    python -m modelfleet.serving.mirror status s3://bucket/models/slug
    python -m modelfleet.serving.mirror fetch s3://bucket/models/slug --cache /folder

`--kind` says what a repository holds where it is not a model in Hugging Face layout.
`fill` from the Hub does nothing if the mirror already has this revision, so a Job may run at every `pulumi up`.
It streams: nothing is written to a disk.
Results go to stdout, progress to stderr. Exit 1 for wrong arguments or an incomplete mirror, 2 for other errors.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from modelfleet.serving.config.checkpoint_files import FILES
from modelfleet.serving.config.errors import EXIT_INPUT, ModelfleetError
from modelfleet.serving.config.signer import Signer
from modelfleet.serving.mirror.hub import Repository
from modelfleet.serving.mirror.node import fetch
from modelfleet.serving.mirror.origin import Folder, Origin, Prefix
from modelfleet.serving.mirror.proof import Expected, KmsKey
from modelfleet.serving.mirror.read import Status, read_manifest, status
from modelfleet.serving.mirror.signer import Signature
from modelfleet.serving.mirror.store import S3Store, parse_uri, plain_errors
from modelfleet.serving.mirror.upload import fill_from


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except ModelfleetError as error:
        _report(str(error))
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m modelfleet.serving.mirror", description="Mirrors of models in S3.")
    commands = parser.add_subparsers(required=True, metavar="command")
    filling = commands.add_parser("fill", help="upload a model, or resume an interrupted upload")
    filling.add_argument("uri", metavar="s3://bucket/prefix")
    filling.add_argument("--model-id", required=True, help="the model's public name")
    origin = filling.add_mutually_exclusive_group(required=True)
    origin.add_argument("--from", dest="place", help="a folder in Hugging Face layout, or s3://bucket/prefix")
    origin.add_argument("--hub", help="a Hugging Face id")
    filling.add_argument("--revision", help="commit, tag or branch on the Hub")
    filling.add_argument("--kind", choices=list(FILES), default="model", help="what the Hub's repository holds")
    filling.add_argument(
        "--signer-key", metavar="PEM", help="a public key; the files must be signed with its private one"
    )
    filling.add_argument("--signer-certificates", metavar="PEM", help="certificates that the signer's own must lead to")
    filling.add_argument(
        "--manifest-key", metavar="KMS", help="a KMS key that signs the manifest: alias/name or its ARN"
    )
    filling.add_argument("--manifest-public-key", metavar="DER", help="its public half, base64; default: ask KMS")
    filling.set_defaults(run=_fill)
    looking = commands.add_parser("status", help="absent, complete or damaged")
    looking.add_argument("uri", metavar="s3://bucket/prefix")
    looking.set_defaults(run=_status)
    fetching = commands.add_parser("fetch", help="download a verified copy")
    fetching.add_argument("uri", metavar="s3://bucket/prefix")
    fetching.add_argument("--cache", type=Path, required=True, help="folder that holds this node's copies")
    fetching.set_defaults(run=_fetch)
    return parser


def _fill(parsed: argparse.Namespace) -> int:
    signer = Signer(parsed.signer_key, parsed.signer_certificates)
    signature = Signature(signer, parsed.kind) if signer != Signer() else None
    key = KmsKey(parsed.manifest_key, public=parsed.manifest_public_key) if parsed.manifest_key else None
    if parsed.hub is not None and _holds(parsed, signature, key):
        _report(f"{parsed.uri} already has {parsed.hub} at {parsed.revision}")
        return 0
    origin, source = _origin(parsed)
    manifest = fill_from(
        origin,
        parsed.uri,
        model_id=parsed.model_id,
        source=source,
        source_revision=parsed.revision,
        report=_report,
        signature=signature,
        key=key,
    )
    print(manifest.version)
    return 0


def _origin(parsed: argparse.Namespace) -> tuple[Origin, str]:
    """What to copy, and its name in the manifest."""
    if parsed.hub is not None:
        return Repository(parsed.hub, parsed.revision, parsed.kind), parsed.hub
    if "://" in parsed.place:
        return Prefix(parsed.place), parsed.place
    folder = Path(parsed.place).resolve()
    return Folder(folder), f"file://{folder}"


def _holds(parsed: argparse.Namespace, signature: Signature | None, key: KmsKey | None) -> bool:
    """Whether the mirror is complete and from this source and revision, after this signer, and signed with `key`.

    Never without a revision.
    """
    uri, source, revision = parsed.uri, parsed.hub, parsed.revision
    if revision is None:
        return False
    if key is not None or signature is not None:
        signer = signature.signer.fingerprint if signature is not None else ""
        expected = Expected(key.public() if key is not None else "", signer, source, revision)
        return status(uri, expected=expected) is Status.COMPLETE
    if status(uri) is not Status.COMPLETE:
        return False
    location = parse_uri(uri)
    with plain_errors(f"look at {uri}"):
        manifest = read_manifest(S3Store(location.bucket), location)
    return manifest is not None and (manifest.source, manifest.source_revision) == (source, revision)


def _status(parsed: argparse.Namespace) -> int:
    found = status(parsed.uri)
    print(found)
    return 0 if found is Status.COMPLETE else EXIT_INPUT


def _fetch(parsed: argparse.Namespace) -> int:
    print(fetch(parsed.uri, parsed.cache, report=_report))
    return 0


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
