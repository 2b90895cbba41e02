"""Weights that must be signed: the real model-signing signs, and what we copy is verified by it. No stand-in."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from model_signing import hashing, signing

from modelfleet.serving.adapters import WantedAdapters
from modelfleet.serving.config.signer import SIGNATURE, Signer
from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror import Status, complete_version, fetch, fill, fill_from, status
from modelfleet.serving.mirror import __main__ as command
from modelfleet.serving.mirror.origin import Prefix
from modelfleet.serving.mirror.proof import Expected
from modelfleet.serving.mirror.signer import Signature, check_signer

URI = "s3://fleet/models/org--tiny"


def pem(key: Any) -> str:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return str(key.public_key().public_bytes(serialization.Encoding.PEM, spki).decode())


def private(key: Any, folder: Path) -> Path:
    path = folder / f"{id(key)}.key"
    plain = serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return path


class Maker:
    """Who publishes a model, with a key outside of its folder."""

    def __init__(self, folder: Path) -> None:
        self.model, self.keys = folder / "model", folder / "keys"
        self.model.mkdir()
        self.keys.mkdir()
        self.key = ec.generate_private_key(ec.SECP256R1())
        for name, body in {
            "config.json": b"{}",
            "README.md": b"words",
            "model-1.safetensors": b"1" * 3000,
            "sub/tokenizer.json": b"t" * 100,
        }.items():
            self.write(name, body)

    def write(self, name: str, body: bytes) -> None:
        (self.model / name).parent.mkdir(exist_ok=True)
        (self.model / name).write_bytes(body)

    def sign(self, hasher: hashing.Config | None = None) -> Signer:
        config = signing.Config().use_elliptic_key_signer(private_key=private(self.key, self.keys))
        own = hasher or hashing.Config().set_ignored_paths(paths=[self.model / SIGNATURE])
        config.set_hashing_config(own).sign(self.model, self.model / SIGNATURE)
        return Signer(public_key=pem(self.key))


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


def copy(maker: Maker, signer: Signer) -> None:
    fill(maker.model, URI, model_id="org/tiny", source="org/tiny", signature=Signature(signer))


def test_what_its_maker_signed_is_copied(s3: Any, maker: Maker) -> None:
    copy(maker, maker.sign())
    assert status(URI) is Status.COMPLETE


def unsigned(maker: Maker) -> None:
    (maker.model / SIGNATURE).unlink()


def tampered(maker: Maker) -> None:
    maker.write("model-1.safetensors", b"2" * 3000)


def extra(maker: Maker) -> None:
    maker.write("evil.py", b"import os")


def missing(maker: Maker) -> None:
    (maker.model / "sub" / "tokenizer.json").unlink()


def somebody_elses(maker: Maker) -> None:
    maker.key = ec.generate_private_key(ec.SECP256R1())
    maker.sign()


def no_signature(maker: Maker) -> None:
    maker.write(SIGNATURE, b'{"verificationMaterial": {}}')


def nested(maker: Maker) -> None:
    maker.write(SIGNATURE, b"[" * 100_000)


def covers_fewer(maker: Maker) -> None:
    maker.sign(hashing.Config().set_ignored_paths(paths=[maker.model / SIGNATURE, maker.model / "model-1.safetensors"]))


def in_shards(maker: Maker) -> None:
    shards = hashing.Config().use_shard_serialization(shard_size=1000)
    maker.sign(shards.set_ignored_paths(paths=[maker.model / SIGNATURE]))


REFUSED = {
    unsigned: "is not signed: it has no model.sig",
    tampered: "'model-1.safetensors' is not what was signed",
    extra: "'evil.py' is not signed",
    missing: "'sub/tokenizer.json' is signed and missing",
    somebody_elses: "model.sig is not of the signer that the stack names (Key mismatch",
    no_signature: "model.sig is not of the signer that the stack names",
    nested: "model.sig is not of the signer that the stack names",
    covers_fewer: "'model-1.safetensors' is not signed",
    in_shards: "has shards of sha256",
}


@pytest.mark.parametrize(("change", "message"), REFUSED.items(), ids=[one.__name__ for one in REFUSED])
def test_anything_else_is_refused_before_a_byte_is_copied(
    s3: Any, maker: Maker, change: Callable[[Maker], None], message: str
) -> None:
    signer = maker.sign()
    change(maker)
    with pytest.raises(MirrorError) as refused:
        copy(maker, signer)
    assert message in str(refused.value), refused.value
    assert "modelfleet:trust.signers" in str(refused.value) or change is in_shards
    assert "\n" not in str(refused.value)
    assert "Contents" not in s3.list_objects_v2(Bucket="fleet")


def test_a_payload_that_was_changed_after_signing_is_refused(s3: Any, maker: Maker) -> None:
    """The envelope names the right key, and its hashes are those of the evil file."""
    import base64
    import json

    signer = maker.sign()
    bundle = json.loads((maker.model / SIGNATURE).read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"]).decode()
    old, new = (hashlib.sha256(digit * 3000).hexdigest() for digit in (b"1", b"2"))
    assert old in payload
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload.replace(old, new).encode()).decode()
    maker.write(SIGNATURE, json.dumps(bundle).encode())
    tampered(maker)
    with pytest.raises(MirrorError, match=r"not of the signer that the stack names \(InvalidSignature\)"):
        copy(maker, signer)


def test_files_that_no_copy_takes_need_no_signature_and_may_be_missing(s3: Any, maker: Maker) -> None:
    """A repository on the Hub has a README, and a copy has none."""
    signer = maker.sign()
    (maker.model / "README.md").unlink()
    copy(maker, signer)


def test_a_bucket_is_verified_like_a_folder(s3: Any, maker: Maker) -> None:
    signer = maker.sign()
    for path in maker.model.rglob("*"):
        if path.is_file():
            s3.put_object(Bucket="fleet", Key=f"theirs/{path.relative_to(maker.model)}", Body=path.read_bytes())
    keys = {"model_id": "org/tiny", "source": "s3://fleet/theirs", "signature": Signature(signer)}
    fill_from(Prefix("s3://fleet/theirs"), URI, **keys)
    s3.put_object(Bucket="fleet", Key="theirs/evil.py", Body=b"import os")
    with pytest.raises(MirrorError, match=r"'evil.py' is not signed"):
        fill_from(Prefix("s3://fleet/theirs"), URI, **keys)


def issued(name: str, key: Any, issuer: str, by: Any, *, authority: bool) -> x509.Certificate:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(issuer)).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number())
    made = made.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=9))
    made = made.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    flags = dict.fromkeys(
        [
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ],
        False,
    )
    usage = x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **flags)
    made = made.add_extension(usage, critical=True)
    if not authority:
        made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
    return made.sign(by, hashes.SHA256())


def test_a_certificate_counts_if_it_leads_to_the_authority_that_the_stack_names(s3: Any, maker: Maker) -> None:
    authority, stranger = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = issued("root", authority, "root", authority, authority=True)
    other = issued("root", stranger, "root", stranger, authority=True)
    own = issued("maker", maker.key, "root", authority, authority=False)
    paths = {}
    for name, certificate in {"own": own, "root": root}.items():
        paths[name] = maker.keys / f"{name}.pem"
        paths[name].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    signing.Config().use_certificate_signer(
        private_key=private(maker.key, maker.keys),
        signing_certificate=paths["own"],
        certificate_chain=[paths["root"]],
    ).set_hashing_config(hashing.Config().set_ignored_paths(paths=[maker.model / SIGNATURE])).sign(
        maker.model, maker.model / SIGNATURE
    )
    texts = [one.public_bytes(serialization.Encoding.PEM).decode() for one in (root, other)]
    copy(maker, Signer(certificates=texts[0]))
    with pytest.raises(MirrorError, match="not of the signer that the stack names"):
        copy(maker, Signer(certificates=texts[1]))


def test_a_key_that_verifies_nothing_is_named(tmp_path: Path) -> None:
    check_signer(Signer(public_key=pem(ec.generate_private_key(ec.SECP384R1()))))
    with pytest.raises(MirrorError, match="no public key of an elliptic curve"):
        check_signer(Signer(public_key=pem(rsa.generate_private_key(65537, 2048))))
    with pytest.raises(MirrorError, match="no public key of an elliptic curve"):
        check_signer(Signer(public_key="-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"))
    with pytest.raises(MirrorError, match="certificates cannot be read"):
        check_signer(Signer(certificates="-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"))


def test_the_jobs_command_refuses_what_is_there_already_unsigned(
    s3: Any, maker: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stack that names a signer later may have a complete copy of what nobody signed."""
    fill_command = ["fill", URI, "--model-id", "org/tiny", "--from", str(maker.model)]
    assert command.main(fill_command) == 0
    key = pem(maker.key)
    assert command.main([*fill_command, "--signer-key", key]) == 2
    assert "has no model.sig" in capsys.readouterr().err
    maker.sign()
    assert command.main([*fill_command, "--signer-key", key]) == 0


def test_a_copy_from_before_a_signer_was_named_is_refused_until_its_job_verified_it(
    s3: Any, maker: Maker, tmp_path: Path
) -> None:
    """Without a key the manifest says whose signature its maker verified; the bytes of one that says none stay."""
    signer = maker.sign()
    fill(maker.model, URI, model_id="org/tiny", source="org/tiny")
    expected = Expected.of({"mirror": URI, "signers": {URI: signer.fingerprint}})
    assert status(URI) is Status.COMPLETE and status(URI, expected=expected) is Status.DAMAGED
    for read in (lambda: fetch(URI, tmp_path / "cache", expected=expected), lambda: complete_version(URI, expected)):
        with pytest.raises(MirrorError) as refused:
            read()
        assert f"of no signer of its files, and {signer.fingerprint} must have" in str(refused.value)
    fill_command = ["fill", URI, "--model-id", "org/tiny", "--from", str(maker.model)]
    assert command.main([*fill_command, "--signer-key", pem(maker.key)]) == 0
    assert status(URI, expected=expected) is Status.COMPLETE
    assert (fetch(URI, tmp_path / "cache", expected=expected) / "config.json").is_file()
    other = Expected.of({"mirror": URI, "signers": {URI: "0" * 64}})
    with pytest.raises(MirrorError, match=f"says that {signer.fingerprint} signed its files, and 0000"):
        fetch(URI, tmp_path / "cache", expected=other)
    assert Expected.of({"mirror": URI, "signers": {"s3://fleet/models/another": signer.fingerprint}}) is None


def test_an_adapters_signer_is_demanded_too(
    s3: Any, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELFLEET_MODEL_CACHE", str(tmp_path / "cache"))
    maker.write("adapter_config.json", b"{}")
    signer = maker.sign()
    own = {"name": "a", "source": "org/a", "mirror": URI, "signer": signer.fingerprint}
    fill(maker.model, URI, model_id="org/a", source="org/a")
    before = WantedAdapters([own])
    before.fetch()
    assert "of no signer" in before.faults["a"]
    fill(maker.model, URI, model_id="org/a", source="org/a", signature=Signature(signer))
    after = WantedAdapters([own])
    after.fetch()
    assert not after.faults and (after.folders["a"] / "adapter_config.json").is_file()


@pytest.mark.parametrize("ignore", [True, False], ids=["model-signing's default", "signed too"])
def test_what_git_keeps_beside_a_model_is_neither_copied_nor_demanded(s3: Any, maker: Maker, ignore: bool) -> None:
    for name in (".gitattributes", ".gitignore", ".github/labels.json", ".git/config.json"):
        maker.write(name, b"*.safetensors filter=lfs")
    own = hashing.Config().set_ignored_paths(paths=[maker.model / SIGNATURE], ignore_git_paths=ignore)
    signer = maker.sign(own)
    copy(maker, signer)
    for path in (path for path in maker.model.rglob("*") if path.is_file()):
        s3.put_object(Bucket="fleet", Key=f"theirs/{path.relative_to(maker.model)}", Body=path.read_bytes())
    keys = {"model_id": "org/tiny", "source": "s3://fleet/theirs", "signature": Signature(signer)}
    made = fill_from(Prefix("s3://fleet/theirs"), "s3://fleet/models/org--from-bucket", **keys)
    assert not [file.path for file in made.files if file.path.startswith(".git")]
    assert not [
        one["Key"] for one in s3.list_objects_v2(Bucket="fleet", Prefix="models/")["Contents"] if ".git" in one["Key"]
    ]
    maker.write("sub/.gitattributes", b"words")
    with pytest.raises(MirrorError, match=r"'sub/.gitattributes' is not signed"):
        copy(maker, signer)
