"""Manifests that are signed with a KMS key: what a replica takes, and what it refuses of whoever can write to the bucket.

KMS is moto's, which signs with real keys; replicas verify with `cryptography` and ask it nothing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from modelfleet.infra.reading.signatures import key_findings
from modelfleet.serving import warm_up
from modelfleet.serving.adapters import WantedAdapters
from modelfleet.serving.app import build
from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror import Status, complete_version, fetch, fill, status
from modelfleet.serving.mirror import __main__ as command
from modelfleet.serving.mirror.manifest import MANIFEST, Checksum
from modelfleet.serving.mirror.node import SIGNED
from modelfleet.serving.mirror.proof import Expected, KmsKey, name_of
from modelfleet.serving.mirror.waiting import WAIT
from tests.unit.planning.builders import model as a_model
from tests.unit.planning.builders import pool, stack

URI, OTHER = "s3://fleet/models/org--tiny", "s3://fleet/models/org--other"
MIB = 2**20


@pytest.fixture
def key(s3: Any) -> KmsKey:
    return made_key()


def made_key() -> KmsKey:
    kms = boto3.client("kms")
    made = kms.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")
    return KmsKey(made["KeyMetadata"]["Arn"], kms)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"w" * 5000)
    return folder


def filled(model: Path, uri: str, key: KmsKey | None, *, revision: str | None = "a" * 40, **more: Any) -> None:
    fill(model, uri, model_id="org/tiny", source="org/tiny", source_revision=revision, key=key, **more)


def wanted(key: KmsKey, *, signer: str = "", revision: str = "a" * 40) -> Expected:
    return Expected(key.public(), signer, "org/tiny", revision)


def of(s3: Any, uri: str) -> bytes:
    body: bytes = s3.get_object(Bucket="fleet", Key=f"{uri.removeprefix('s3://fleet/')}/{MANIFEST}")["Body"].read()
    return body


def put(s3: Any, uri: str, name: str, body: bytes) -> None:
    s3.put_object(Bucket="fleet", Key=f"{uri.removeprefix('s3://fleet/')}/{name}", Body=body)


def test_a_replica_takes_what_was_signed_for_it_without_asking_kms(
    s3: Any, key: KmsKey, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(model, URI, key)
    expected = wanted(key)
    monkeypatch.setattr(boto3, "client", lambda service, **_: s3 if service == "s3" else pytest.fail(service))
    assert status(URI, expected=expected) is Status.COMPLETE
    folder = fetch(URI, tmp_path / "cache", expected=expected)
    assert (folder / "model.safetensors").read_bytes() == b"w" * 5000
    streamed = complete_version(URI, expected)
    assert streamed is not None and streamed.startswith(f"{URI}/")


def unsigned(s3: Any, key: KmsKey, model: Path) -> None:
    filled(model, URI, None)


def altered(s3: Any, key: KmsKey, model: Path) -> None:
    """The bytes of a file and all of its hashes, under the old signature and under the new manifest's name."""
    filled(model, URI, key)
    old = of(s3, URI)
    proof = s3.get_object(Bucket="fleet", Key=f"models/org--tiny/{name_of(old)}")["Body"].read()
    (model / "model.safetensors").write_bytes(b"x" * 5000)
    filled(model, URI, None)
    put(s3, URI, name_of(of(s3, URI)), proof)


def foreign(s3: Any, key: KmsKey, model: Path) -> None:
    filled(model, URI, made_key())


def of_another_model(s3: Any, key: KmsKey, model: Path) -> None:
    """A whole copy that this stack signed, in another place."""
    filled(model, OTHER, key)
    for entry in s3.list_objects_v2(Bucket="fleet", Prefix="models/org--other/")["Contents"]:
        name = entry["Key"].removeprefix("models/org--other/")
        put(s3, URI, name, s3.get_object(Bucket="fleet", Key=entry["Key"])["Body"].read())


def of_another_revision(s3: Any, key: KmsKey, model: Path) -> None:
    filled(model, URI, key, revision="b" * 40)


def nonsense(s3: Any, key: KmsKey, model: Path) -> None:
    filled(model, URI, None)
    put(s3, URI, name_of(of(s3, URI)), b"nonsense")


REFUSED = {
    unsigned: "is not signed with the stack's key",
    altered: "is signed by another key or for another place",
    foreign: "is signed by another key or for another place",
    of_another_model: "is signed by another key or for another place",
    of_another_revision: f"has org/tiny@{'b' * 40}, and the stack wants org/tiny@{'a' * 40}",
    nonsense: "is signed by another key or for another place",
}


@pytest.mark.parametrize(("forge", "message"), REFUSED.items(), ids=[one.__name__ for one in REFUSED])
def test_a_replica_refuses_any_other_manifest(
    s3: Any, key: KmsKey, model: Path, tmp_path: Path, forge: Callable[[Any, KmsKey, Path], None], message: str
) -> None:
    forge(s3, key, model)
    expected = wanted(key)
    assert status(URI) is Status.COMPLETE, "without a key nothing is wrong with it"
    assert status(URI, expected=expected) is Status.DAMAGED, "so whoever waits for the Job goes on waiting"
    for read in (lambda: fetch(URI, tmp_path / "cache", expected=expected), lambda: complete_version(URI, expected)):
        with pytest.raises(MirrorError) as refused:
            read()
        assert message in str(refused.value) and "pulumi up" in str(refused.value)


def test_who_had_to_sign_the_weights_is_part_of_what_is_signed(s3: Any, key: KmsKey, model: Path) -> None:
    """A copy from before a signer was named is complete, and nobody verified it."""
    filled(model, URI, key)
    assert status(URI, expected=wanted(key, signer="0123456789abcdef")) is Status.DAMAGED


def forged(body: bytes, crc: str) -> bytes:
    """Other bytes of the same length and with the same CRC-64: a CRC is linear, so the last eight bytes decide it."""
    text = bytearray(b"evil" + body[4:])
    rows = []
    base = int(Checksum(bytes(text)).hexdigest(), 16)
    for bit in range(64):
        flipped = bytearray(text)
        flipped[-8 + bit // 8] ^= 1 << (bit % 8)
        rows.append((int(Checksum(bytes(flipped)).hexdigest(), 16) ^ base, 1 << bit))
    need, flips = int(crc, 16) ^ base, 0
    for column in reversed(range(64)):
        pivot = next((one for one in rows if one[0] >> column & 1), None)
        if pivot is None:
            continue
        rows.remove(pivot)
        rows = [(v ^ pivot[0], m ^ pivot[1]) if v >> column & 1 else (v, m) for v, m in rows]
        if need >> column & 1:
            need, flips = need ^ pivot[0], flips ^ pivot[1]
    for bit in range(64):
        if flips >> bit & 1:
            text[-8 + bit // 8] ^= 1 << (bit % 8)
    return bytes(text)


def test_bytes_with_the_right_crc_are_refused_by_their_sha256(
    s3: Any, key: KmsKey, model: Path, tmp_path: Path
) -> None:
    """Who writes to the bucket leaves the signed manifest as it is, and forges a file to its checksums."""
    filled(model, URI, key)
    (file,) = [one for one in json.loads(of(s3, URI))["files"] if one["path"] == "model.safetensors"]
    evil = forged(b"w" * 5000, file["chunks"][0])
    assert Checksum(evil).hexdigest() == file["chunks"][0] and evil != b"w" * 5000
    version = str(complete_version(URI)).removeprefix("s3://fleet/")
    s3.put_object(Bucket="fleet", Key=f"{version}/model.safetensors", Body=evil)
    unsafe = fetch(URI, tmp_path / "unsigned")
    assert (unsafe / "model.safetensors").read_bytes() == evil, "without a key the CRC is all"
    with pytest.raises(MirrorError, match="model.safetensors is not what the signed manifest names"):
        fetch(URI, tmp_path / "cache", expected=wanted(key))
    assert not list((tmp_path / "cache").glob(f"*{SIGNED}"))
    s3.put_object(Bucket="fleet", Key=f"{version}/model.safetensors", Body=b"w" * 5000)
    folder = fetch(URI, tmp_path / "cache", expected=wanted(key))
    assert (folder / "model.safetensors").read_bytes() == b"w" * 5000


def test_a_copy_that_was_not_signed_is_read_back_before_it_is(s3: Any, key: KmsKey, model: Path) -> None:
    """A manifest that nobody signed may say of forged bytes that they are what the origin has."""
    filled(model, URI, None)
    version = str(complete_version(URI)).removeprefix("s3://fleet/")
    s3.put_object(Bucket="fleet", Key=f"{version}/model.safetensors", Body=b"x" * 5000)
    filled(model, URI, key)
    assert s3.get_object(Bucket="fleet", Key=f"{version}/model.safetensors")["Body"].read() == b"w" * 5000


def test_signatures_go_with_their_manifests_but_for_the_last(s3: Any, key: KmsKey, model: Path) -> None:
    names = []
    for text in ("[1]", "[2]", "[3]"):
        (model / "config.json").write_text(text)
        filled(model, URI, key)
        names.append(name_of(of(s3, URI)))
    found = {entry["Key"].split("/")[-1] for entry in s3.list_objects_v2(Bucket="fleet")["Contents"]}
    assert {name for name in found if name.endswith(".sig")} == set(names[1:])


def test_a_copy_of_before_is_signed_without_a_byte_of_it_being_sent(s3: Any, key: KmsKey, model: Path) -> None:
    filled(model, URI, None)
    lines: list[str] = []
    filled(model, URI, key, report=lines.append)
    assert status(URI, expected=wanted(key)) is Status.COMPLETE
    assert lines and not [line for line in lines if line.startswith("uploading")]


def test_the_public_half_may_be_a_file_which_is_read_at_each_use(
    s3: Any, key: KmsKey, model: Path, tmp_path: Path
) -> None:
    """A key of the stack's own is known once it is made, and a ConfigMap's file changes while a pod lives."""
    public = tmp_path / "manifest-key" / "public"
    filled(model, URI, key)
    expected = Expected.of(
        {"manifest_key": f"file://{public}", "mirror": URI, "source": "org/tiny", "revision": "a" * 40}
    )
    with pytest.raises(MirrorError) as refused:
        fetch(URI, tmp_path / "cache", expected=expected)
    assert f"{public} has no public key" in str(refused.value) and "`pulumi up`" in str(refused.value)
    public.parent.mkdir()
    public.write_text(made_key().public())
    assert status(URI, expected=expected) is Status.DAMAGED
    public.write_text(f"{key.public()}\n")
    assert status(URI, expected=expected) is Status.COMPLETE
    assert fetch(URI, tmp_path / "cache", expected=expected).name.endswith(SIGNED)


def test_a_job_that_has_the_public_half_asks_kms_for_signatures_alone(s3: Any, key: KmsKey, model: Path) -> None:
    asked: list[str] = []

    class Kms:
        def sign(self, **request: Any) -> Any:
            asked.append("sign")
            return key._kms.sign(**request)

    own = KmsKey(key._name, Kms(), public=key.public())
    filled(model, URI, own)
    filled(model, URI, own)
    assert asked == ["sign", "sign"] and status(URI, expected=wanted(key)) is Status.COMPLETE


def test_the_jobs_command_signs_what_is_there_already(
    s3: Any, key: KmsKey, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_command = ["fill", URI, "--model-id", "org/tiny", "--from", str(model)]
    assert command.main(fill_command) == 0
    assert command.main([*fill_command, "--manifest-key", "alias/none"]) == 2
    assert "read the public key of alias/none: KMS returned NotFoundException; allow" in capsys.readouterr().err
    assert command.main([*fill_command, "--manifest-key", key._name]) == 0
    assert status(URI, expected=Expected(key.public())) is Status.COMPLETE


def test_an_empty_key_is_refused_and_never_counts_as_none() -> None:
    assert Expected.of({"mirror": URI}) is None
    with pytest.raises(MirrorError, match=f"manifest_key is empty, so nothing verifies {URI}"):
        Expected.of({"manifest_key": "", "mirror": URI}, URI)
    late = WantedAdapters([{"name": "a", "source": "org/a", "mirror": URI}], manifest_key="")
    late.fetch()
    assert "manifest_key is empty" in late.faults["a"]


def test_a_job_refuses_a_signature_that_the_stacks_public_half_does_not_verify(
    s3: Any, key: KmsKey, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = made_key().public()
    fill_command = ["fill", URI, "--model-id", "org/tiny", "--from", str(model), "--manifest-key", key._name]
    assert command.main([*fill_command, "--manifest-public-key", other]) == 2
    assert "signs with another key than the public half that replicas have" in capsys.readouterr().err
    assert status(URI) is Status.ABSENT
    assert command.main([*fill_command, "--manifest-public-key", key.public()]) == 0
    assert status(URI, expected=Expected(key.public())) is Status.COMPLETE


@pytest.mark.parametrize(
    ("key_of", "taken"),
    [
        (lambda: ec.generate_private_key(ec.SECP256R1()), True),
        (lambda: ec.generate_private_key(ec.SECP384R1()), False),
        (lambda: rsa.generate_private_key(65537, 2048), False),
        (lambda: None, False),
    ],
    ids=["P-256", "P-384", "RSA", "nonsense"],
)
def test_a_preview_takes_a_key_of_p256_alone(key_of: Callable[[], Any], taken: bool) -> None:
    made = key_of()
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    der = made.public_key().public_bytes(serialization.Encoding.DER, spki) if made else b"nonsense"
    pem = f"-----BEGIN PUBLIC KEY-----\n{base64.b64encode(der).decode()}\n-----END PUBLIC KEY-----\n"
    named = {"kms": "arn:aws:kms:us-east-1:111122223333:key/1234-abcd", "publicKey": pem}
    found = list(key_findings(stack(pool(), kubernetes={}, trust={"manifestKey": named})))
    assert [(one.path, "no public key of P-256" in one.message) for one in found] == (
        [] if taken else [("modelfleet:trust.manifestKey.publicKey", True)]
    )


def test_application_and_warm_up_wait_for_the_same_verified_copies(
    s3: Any, key: KmsKey, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unsigned copy is whole, and neither begins with it."""
    monkeypatch.setenv(WAIT, "0.001")
    monkeypatch.setattr("modelfleet.serving.mirror.waiting.POLL_S", 0.01)
    filled(model, URI, None)
    seal = f"s3://fleet/seals/org--tiny/{'0' * 16}"
    weights = {"mirror": URI, "source": "org/tiny", "revision": "a" * 40, "seal": seal, "manifest_key": key.public()}
    args = {"model": a_model("org/tiny").config.model_dump(mode="json", exclude_unset=True), "weights": weights}
    monkeypatch.setenv("ARGS", json.dumps(args))
    monkeypatch.setattr(warm_up, "seal", lambda *of: pytest.fail("it began"))
    assert warm_up.main([]) == 2
    with pytest.raises(MirrorError, match=f"{URI} is damaged after"):
        build(args)
