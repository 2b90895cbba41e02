"""Keeps the proved states of a stack, and tells the mirror which versions of weights not to delete.

    s3://<bucket>/proved/<stack>/<time>.json                  a state; on this machine .modelfleet/proved/<stack>/…
    s3://<bucket>/<prefix>/proved/<stack>/<version>.json      the manifest of a version that stays (`upload.py`)

The emulator of a local stack forgets its bucket, so the states of one are files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from pydantic import ValidationError

from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.applications import bucket_plan
from modelfleet.infra.planning.plan import ModelPlan
from modelfleet.infra.planning.proved import Copy, Proved, ProvedModel, versions_to_keep
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.errors import SetupError
from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror.manifest import MANIFEST, MAX_MANIFEST_BYTES, PROVED, parse_manifest
from modelfleet.serving.mirror.read import missing_files, read_manifest
from modelfleet.serving.mirror.store import Location, S3Store, parse_uri, plain_errors

MAX_RECORD_BYTES = 16 * 2**20
#: States that are kept; older ones go.
STATES = 20


class Records(Protocol):
    """The proved states of one stack, by name in the order of their time."""

    def names(self) -> list[str]:
        """The oldest first."""

    def get(self, name: str) -> bytes | None:
        """One of them."""

    def put(self, name: str, body: bytes) -> None:
        """Keep one."""

    def drop(self, name: str) -> None:
        """Forget one."""


@dataclass(frozen=True)
class InFolder:
    """On this machine."""

    folder: Path

    def names(self) -> list[str]:
        """See `Records`."""
        return sorted(path.name for path in self.folder.glob("*.json"))

    def get(self, name: str) -> bytes | None:
        """See `Records`."""
        return (self.folder / name).read_bytes()

    def put(self, name: str, body: bytes) -> None:
        """See `Records`; whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{name}.part").write_bytes(body)
        (self.folder / f"{name}.part").rename(self.folder / name)

    def drop(self, name: str) -> None:
        """See `Records`."""
        (self.folder / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class InBucket:
    """In the stack's bucket."""

    store: S3Store
    prefix: str

    def names(self) -> list[str]:
        """See `Records`."""
        return sorted(key.removeprefix(self.prefix) for key in self.store.list(self.prefix) if key.endswith(".json"))

    def get(self, name: str) -> bytes | None:
        """See `Records`."""
        return self.store.read(self.prefix + name, MAX_RECORD_BYTES)

    def put(self, name: str, body: bytes) -> None:
        """See `Records`."""
        self.store.s3.put_object(Bucket=self.store.bucket, Key=self.prefix + name, Body=body)

    def drop(self, name: str) -> None:
        """See `Records`."""
        self.store.s3.delete_object(Bucket=self.store.bucket, Key=self.prefix + name)


def _is_model_file(name: str) -> bool:
    path = PurePosixPath(name)
    return path.parts[:1] == ("models",) and ".." not in path.parts and path.suffix == ".yaml"


class Memory:
    """The proved states of one stack, and its mirror. Raises `MirrorError` where its bucket refuses."""

    def __init__(self, root: Path, stack: LoadedStack, s3: Any) -> None:
        """`s3` is a client for the stack's bucket. Raises `SetupError` for a stack without a bucket."""
        self.stack, self.here = stack.name, stack.config.target.on_this_machine
        bucket = bucket_plan(stack, ())[0].name
        if bucket is None:
            raise SetupError(f"stack {stack.name} has no bucket, where what it proved would be; name mirror.bucket")
        self._store = S3Store(bucket, s3)
        self._records: Records = (
            InFolder(root / ".modelfleet" / PROVED / stack.name)
            if self.here
            else InBucket(self._store, f"{PROVED}/{stack.name}/")
        )

    def states(self) -> list[Proved]:
        """The oldest first. Raises `SetupError` for one that another version of modelfleet wrote, or a stranger."""
        found = []
        with plain_errors(f"read what stack {self.stack} proved"):
            for name in self._records.names():
                try:
                    state = Proved.model_validate_json(self._records.get(name) or b"")
                except ValidationError:
                    message = f"{PROVED}/{self.stack}/{name} is of another version of modelfleet; upgrade, or delete it"
                    raise SetupError(message) from None
                # `rollback` writes these files. Who writes to the bucket must not choose others.
                if strange := [one.file for one in state.models if not _is_model_file(one.file)]:
                    message = f"names {strange[0]!r}, which is no model file; see who wrote that, and delete it"
                    raise SetupError(f"{PROVED}/{self.stack}/{name} {message}")
                found.append(state)
        return found

    def keep(self, plan: Plan, texts: Mapping[str, str], *, release: str, image: str | None) -> Proved | None:
        """Keep what `plan` has proved, with the texts of its model files by path; None where the last state says it.

        Then the mirror keeps the versions of the last states, and no older ones.
        """
        with plain_errors(f"keep what stack {self.stack} proved"):
            states = self.states()
            models = tuple(self._proved(model, plan, texts[model.file]) for model in plan.models if model.file in texts)
            now = Proved(
                stack=self.stack,
                at=datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"),
                release=release,
                code_sha256=plan.code.sha256,
                image=None if plan.target.on_this_machine else image or plan.ray_cluster.image,
                models=models,
            )
            if states and states[-1].same_as(now):
                return None
            # First: what fails here is done again by the next run, which finds no such state.
            self._hold([*states, now], models)
            self._records.put(f"{now.at}.json", now.model_dump_json(indent=1).encode())
            for name in self._records.names()[:-STATES]:
                self._records.drop(name)
        return now

    def _proved(self, model: ModelPlan, plan: Plan, text: str) -> ProvedModel:
        mirrors = [one for one in (model.mirror, *model.others) if one.prefix is not None]
        uris = {f"s3://{plan.bucket.name}/{one.prefix}": one for one in mirrors}
        copies = tuple(
            Copy(uri=uri, version=version, source=one.source, revision=one.revision)
            for uri, one in uris.items()
            if (version := self.version(uri)) is not None
        )
        return ProvedModel(model_id=model.model_id, file=model.file, text=text, copies=copies)

    def version(self, uri: str) -> str | None:
        """The version that the mirror has now; None for none. Raises `MirrorError`."""
        with plain_errors(f"look at {uri}"):
            try:
                manifest = read_manifest(self._store, parse_uri(uri))
            except self._store.s3.exceptions.NoSuchBucket:  # an emulator that has just been started
                return None
        return None if manifest is None else manifest.version

    def _hold(self, states: Sequence[Proved], models: Sequence[ProvedModel]) -> None:
        """Mark the versions that have to stay, and unmark what nobody goes back to."""
        for uri in {copy.uri for model in models for copy in model.copies}:
            location = parse_uri(uri)
            wanted = {self._marker(location, version) for version in versions_to_keep(states, uri)}
            there = set(self._store.list(location.key(PROVED, self.stack, "")))
            body = self._store.read(location.key(MANIFEST), MAX_MANIFEST_BYTES)
            for marker in wanted - there:
                if body is not None and marker == self._marker(location, parse_manifest(body, uri).version):
                    self._store.s3.put_object(Bucket=self._store.bucket, Key=marker, Body=body)
            for marker in there - wanted:
                self._store.s3.delete_object(Bucket=self._store.bucket, Key=marker)

    def _marker(self, location: Location, version: str) -> str:
        return location.key(PROVED, self.stack, f"{version}.json")

    def kept(self, copy: Copy) -> bytes | None:
        """The manifest of a proved version of a copy; None where the mirror has that version now.

        Raises `MirrorError` where the mirror does not hold it whole.
        """
        location = parse_uri(copy.uri)
        with plain_errors(f"bring {copy.uri} back"):
            if self.version(copy.uri) == copy.version:
                return None
            body = self._store.read(self._marker(location, copy.version), MAX_MANIFEST_BYTES)
            manifest = parse_manifest(body, copy.uri) if body is not None else None
            if body is None or manifest is None or (gone := missing_files(self._store, location, manifest)):
                why = f"{len(gone)} of its files are gone" if manifest is not None else "nobody kept it"
                raise MirrorError(f"{copy.uri} no longer has version {copy.version}: {why}; deploy the older revision")
        return body

    def bring_back(self, copy: Copy, manifest: bytes) -> None:
        """Make a version that is `kept` the mirror's again: replicas that start from now on load it."""
        key = parse_uri(copy.uri).key(MANIFEST)
        with plain_errors(f"bring {copy.uri} back"):
            put = self._store.s3.put_object
            put(Bucket=self._store.bucket, Key=key, Body=manifest, ContentType="application/json")
