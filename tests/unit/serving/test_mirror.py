"""The mirror protocol on moto's S3: complete or absent, resumable, verified, and safe against hostile manifests."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.serving.errors import MirrorError, WeightsError
from modelfleet.serving.mirror import Status, fetch, fill, status
from modelfleet.serving.mirror import __main__ as command
from modelfleet.serving.mirror import download as download_module
from modelfleet.serving.mirror import upload as upload_module
from modelfleet.serving.mirror.manifest import Checksum, parse_manifest
from modelfleet.serving.mirror.prefix import fetch_extra_file, fetch_prefix
from modelfleet.serving.mirror.store import PIECE_BYTES
from tests.examples import examples

URI = "s3://fleet/models/org--tiny"
MIB = 2**20
"""Chunks are 5 MiB here, the smallest part that S3 takes, so even a small file has several."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "empty.txt").touch()
    (folder / "sub" / "tokenizer.json").write_bytes(b"t" * 1000)
    (folder / "model.safetensors").write_bytes(os.urandom(12 * MIB))
    return folder


def filled(folder: Path, **options: Any) -> Any:
    return fill(folder, URI, model_id="org/tiny", source="org/tiny", chunk_bytes=5 * MIB, **options)


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_filled_mirror_is_complete_and_gives_back_the_same_files(s3: Any, model: Path, tmp_path: Path) -> None:
    assert status(URI) is Status.ABSENT
    filled(model)
    assert status(URI) is Status.COMPLETE
    folder = fetch(URI, tmp_path / "cache")
    assert files(folder) == files(model)


def test_a_mirror_without_a_manifest_counts_as_absent(s3: Any, model: Path, tmp_path: Path) -> None:
    filled(model)
    s3.delete_object(Bucket="fleet", Key="models/org--tiny/manifest.json")
    assert status(URI) is Status.ABSENT
    with pytest.raises(MirrorError, match="has no manifest"):
        fetch(URI, tmp_path / "cache")


def test_a_mirror_that_lost_a_file_is_damaged_and_the_next_fill_repairs_it(s3: Any, model: Path) -> None:
    version = filled(model).version
    s3.delete_object(Bucket="fleet", Key=f"models/org--tiny/{version}/sub/tokenizer.json")
    assert status(URI) is Status.DAMAGED
    filled(model)
    assert status(URI) is Status.COMPLETE


def test_a_missing_bucket_is_absent_and_filling_it_says_what_to_do(s3: Any, model: Path) -> None:
    assert status("s3://nowhere/models/x") is Status.ABSENT
    with pytest.raises(MirrorError, match="NoSuchBucket; create the bucket"):
        fill(model, "s3://nowhere/models/x", model_id="org/tiny", source="x")


class Killed(BaseException):
    """Plays SIGKILL: nothing in the code under test catches it."""


def test_a_killed_upload_resumes_with_only_the_missing_parts(
    s3: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    real = boto3.client

    def watched(*args: Any, **kwargs: Any) -> Any:
        client = real(*args, **kwargs)
        upload_part = client.upload_part

        def dies_at_the_third(**part: Any) -> Any:
            if dies and len(sent) == 2:
                raise Killed
            sent.append(part["PartNumber"])
            return upload_part(**part)

        client.upload_part = dies_at_the_third
        return client

    monkeypatch.setattr(upload_module, "PARALLEL", 1)
    monkeypatch.setattr("modelfleet.serving.mirror.store.boto3.client", watched)
    dies = True
    with pytest.raises(Killed):
        filled(model)
    assert status(URI) is Status.ABSENT, "the manifest comes last"
    dies = False
    filled(model)
    assert sent == [1, 2, 3], "nothing is sent twice"
    assert status(URI) is Status.COMPLETE


def test_files_in_the_mirror_are_not_sent_again(s3: Any, model: Path) -> None:
    filled(model)
    lines: list[str] = []
    filled(model, report=lines.append)
    assert not [line for line in lines if line.startswith("uploading")]


def test_a_changed_model_keeps_the_previous_version_for_readers_and_drops_the_one_before(s3: Any, model: Path) -> None:
    versions = []
    for text in ("{}", '{"a": 1}', '{"a": 2}'):
        (model / "config.json").write_text(text)
        versions.append(filled(model).version)
    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket="fleet")["Contents"]]
    assert {key.split("/")[2] for key in keys} == {"manifest.json", versions[1], versions[2]}


def test_older_weights_that_s3_does_not_delete_are_named(s3: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeleteObjects answers 200 also when it deletes nothing, and old weights would pile up unseen."""
    filled(model)
    (model / "config.json").write_text('{"a": 1}')
    filled(model)
    (model / "config.json").write_text('{"a": 2}')
    refused = {"Key": "models/org--tiny/old/x", "Code": "AccessDenied", "Message": "Access Denied"}
    monkeypatch.setattr(s3, "delete_objects", lambda **call: {"Errors": [refused]})
    lines: list[str] = []
    filled(model, report=lines.append, s3=s3)
    (line,) = [line for line in lines if "stay" in line]
    assert line == (
        "1 files of older versions stay and cost storage, first models/org--tiny/old/x: AccessDenied Access Denied; "
        "allow s3:DeleteObject there, or delete them by hand"
    )
    assert status(URI) is Status.COMPLETE, "the new copy is whole all the same"


def test_a_copy_of_another_bucket_is_verified_and_needs_no_disk(s3: Any, model: Path, tmp_path: Path) -> None:
    for path in (path for path in model.rglob("*") if path.is_file()):
        s3.put_object(Bucket="fleet", Key=f"w/{path.relative_to(model).as_posix()}", Body=path.read_bytes())
    assert command.main(["fill", URI, "--model-id", "org/tiny", "--from", "s3://fleet/w"]) == 0
    assert files(fetch(URI, tmp_path / "cache")) == files(model)
    assert command.main(["fill", "s3://fleet/second", "--model-id", "org/tiny", "--from", URI]) == 0
    assert files(fetch("s3://fleet/second", tmp_path / "cache")) == files(model), "a mirror is copied by its manifest"


def test_an_object_that_changes_during_a_copy_is_refused(s3: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelfleet.serving.mirror.origin import Prefix
    from modelfleet.serving.mirror.upload import fill_from

    s3.put_object(Bucket="fleet", Key="w/config.json", Body=b"{}")
    origin = Prefix("s3://fleet/w")
    found = origin.files()
    monkeypatch.setattr(origin, "files", lambda: found)
    s3.put_object(Bucket="fleet", Key="w/config.json", Body=b"[]")
    with pytest.raises(MirrorError, match="read s3://fleet/w: S3 returned PreconditionFailed"):
        fill_from(origin, URI, model_id="org/tiny", source="x")


def test_a_killed_download_resumes_and_completes(
    s3: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(model)
    monkeypatch.setattr(download_module, "READERS", 1)
    reads: list[int] = []
    from modelfleet.serving.mirror.store import S3Store

    stream = S3Store.stream

    def dies_in_the_fourth(self: Any, key: str, offset: int, length: int, tag: Any = None) -> Iterator[bytes]:
        reads.append(offset)
        for number, piece in enumerate(stream(self, key, offset, length, tag)):
            if len(reads) == 4 and number == 1:
                raise Killed
            yield piece

    monkeypatch.setattr(S3Store, "stream", dies_in_the_fourth)
    with pytest.raises(Killed):
        fetch(URI, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix not in (".lock", ".partial")]
    again: list[tuple[str, int]] = []

    def counts(self: Any, key: str, offset: int, length: int, tag: Any = None) -> Iterator[bytes]:
        again.append((key.rsplit("/", maxsplit=1)[-1], offset))
        return stream(self, key, offset, length, tag)

    monkeypatch.setattr(S3Store, "stream", counts)
    assert files(fetch(URI, tmp_path / "cache")) == files(model)
    assert len(reads) + len(again) == 6, f"5 chunks, one of them twice: {reads} {again}"


def test_replicas_that_start_together_on_a_node_read_the_mirror_once(
    s3: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(model)
    from modelfleet.serving.mirror.store import S3Store

    stream, reads = S3Store.stream, []

    def counts(self: Any, key: str, offset: int, length: int, tag: Any = None) -> Iterator[bytes]:
        reads.append((key, offset))
        return stream(self, key, offset, length, tag)

    monkeypatch.setattr(S3Store, "stream", counts)
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: fetch(URI, tmp_path / "cache"), range(3)))
    assert len(set(folders)) == 1 and files(folders[0]) == files(model)
    assert len(reads) == len(set(reads)) == 5, "every chunk of every file is read once"


def test_a_fetch_takes_little_memory_however_large_the_file(tmp_path: Path) -> None:
    """A node fetches while other models run on it; eight whole chunks of 32 MiB would take a quarter of a GiB."""

    class Zeros:
        def stream(self, key: str, offset: int, length: int, tag: str | None = None) -> Iterator[bytes]:
            for _ in range(length // PIECE_BYTES):
                yield bytes(PIECE_BYTES)

    wanted = [download_module.Wanted("model.safetensors", "key", 512 * MIB, "tag", None)]
    job = download_module.Download(Zeros(), "s3://b/p", wanted, tmp_path / "model", lambda line: None)  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        job.run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "model" / "model.safetensors").stat().st_size == 512 * MIB
    assert peak < 48 * MIB, f"{peak / MIB:.0f} MiB"


def test_a_byte_changed_in_the_bucket_is_found(s3: Any, model: Path, tmp_path: Path) -> None:
    version = filled(model).version
    key = f"models/org--tiny/{version}/sub/tokenizer.json"
    s3.put_object(Bucket="fleet", Key=key, Body=b"T" + b"t" * 999)
    with pytest.raises(MirrorError, match=r"sub/tokenizer.json is damaged at byte 0; fill the mirror again"):
        fetch(URI, tmp_path / "cache")


def test_a_full_disk_is_reported_before_a_byte_is_read(
    s3: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(model)
    monkeypatch.setattr(download_module, "SPARE_BYTES", 2**62)
    with pytest.raises(WeightsError, match="set MODELFLEET_MODEL_CACHE"):
        fetch(URI, tmp_path / "cache")


def test_a_checksum_is_the_published_crc_64_nvme_however_the_bytes_come() -> None:
    checksum = Checksum()
    for piece in (b"12345", b"", b"6789"):
        checksum.update(piece)
    assert checksum.hexdigest() == Checksum(b"123456789").hexdigest() == "ae8b14860a799888"


def good_manifest(**changes: Any) -> dict[str, Any]:
    whole = {name: changes.pop(name) for name in ("schema", "chunk_bytes") if name in changes}
    one = {"path": "config.json", "size": 2, "sha256": "0" * 64, "chunks": ["0" * 16]}
    return {
        "schema": 2, "model_id": "m", "source": "s", "source_revision": None, "chunk_bytes": 32 * MIB,
        "files": [one | changes],
    } | whole  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "../config.json"},
        {"path": "/etc/passwd"},
        {"path": "a/../../b"},
        {"path": "a//b"},
        {"path": "a\\b"},
        {"path": "a\nb"},
        {"path": ""},
        {"path": "."},
        {"path": "manifest.json"},
        {"path": "x" * 600},
        {"size": -1},
        {"size": 2**60},
        {"chunk_bytes": 1},
        {"size": 2.5},
        {"chunks": []},
        {"chunks": ["0" * 16, "0" * 16]},
        {"chunks": ["zz"]},
        {"schema": 1},
        {"sha256": "short"},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_hostile_manifest_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MirrorError, match="fill the mirror again"):
        parse_manifest(json.dumps(good_manifest(**changes)).encode(), "s3://b/p")


def test_a_good_manifest_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_manifest(json.dumps(good_manifest()).encode(), "s3://b/p").files[0].path == "config.json"


def test_a_path_that_is_both_file_and_folder_is_refused() -> None:
    data = good_manifest()
    data["files"] += [data["files"][0] | {"path": "config.json/x"}]
    with pytest.raises(MirrorError, match="file and a folder"):
        parse_manifest(json.dumps(data).encode(), "s3://b/p")


@settings(max_examples=examples(200), deadline=None)
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    with pytest.raises(MirrorError):
        parse_manifest(data, "s3://b/p")


def test_a_foreign_prefix_is_fetched_unchanged(s3: Any, tmp_path: Path) -> None:
    for key, body in {"w/config.json": b"{}", "w/sub/a.bin": b"a" * (6 * MIB), "w/folder/": b"", "wx/no": b"n"}.items():
        s3.put_object(Bucket="fleet", Key=key, Body=body)
    folder = fetch_prefix("s3://fleet/w/", tmp_path / "cache")
    assert sorted(files(folder)) == ["config.json", "sub/a.bin"]
    assert fetch_prefix("s3://fleet/w", tmp_path / "cache") == folder
    s3.put_object(Bucket="fleet", Key="w/config.json", Body=b"[]")
    assert fetch_prefix("s3://fleet/w", tmp_path / "cache") != folder, "a changed object makes another version"


def test_an_empty_prefix_is_an_error_without_a_fallback(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(MirrorError, match=r"has 0 objects \(allowed: 1 to 10000\); correct bucket_uri"):
        fetch_prefix("s3://fleet/none", tmp_path / "cache")


def test_extra_files_are_one_object_or_a_prefix(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="fleet", Key="x/one.txt", Body=b"1")
    s3.put_object(Bucket="fleet", Key="x/deep/two.txt", Body=b"2")
    fetch_extra_file("s3://fleet/x/one.txt", tmp_path / "a" / "named.txt")
    fetch_extra_file("s3://fleet/x", tmp_path / "b")
    assert (tmp_path / "a" / "named.txt").read_bytes() == b"1"
    assert sorted(files(tmp_path / "b")) == ["deep/two.txt", "one.txt"]


def test_the_command_fills_reports_and_fetches(
    s3: Any, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["status", URI]) == 1
    assert command.main(["fill", URI, "--model-id", "org/tiny", "--from", str(model)]) == 0
    assert command.main(["status", URI]) == 0
    assert command.main(["fetch", URI, "--cache", str(tmp_path / "c")]) == 0
    absent, version, complete, folder = capsys.readouterr().out.split()
    assert (absent, complete) == ("absent", "complete")
    assert Path(folder).name.endswith(version)
    assert command.main(["fetch", "s3://fleet/none", "--cache", str(tmp_path / "c")]) == 2
    assert "has no manifest" in capsys.readouterr().err
