"""Signed repositories of the Hub: a preview refuses what the mirror Job would refuse, and reads no weights for it.

The Hub is the one of `test_hub_origin.py`; model-signing is the real one on both sides.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from modelfleet.infra.kubernetes.manifests.mirror import mirror_job
from modelfleet.infra.kubernetes.scripts import mirror_job as program
from modelfleet.infra.planning import Plan
from modelfleet.infra.reading.signatures import key_findings, signature_findings
from modelfleet.serving.config.errors import Severity
from modelfleet.serving.config.signer import SIGNATURE
from modelfleet.serving.mirror import Status, status
from tests.unit.planning.builders import model, planned, pool, stack
from tests.unit.serving.test_hub_origin import Hub, hub
from tests.unit.serving.test_signer import Maker, pem

__all__ = ["hub"]
OTHER = ec.generate_private_key(ec.SECP256R1())


def published(hub: Hub, folder: Path) -> Maker:
    """A maker who signs what is on the Hub, and puts the signature there."""
    folder.mkdir(exist_ok=True)
    maker = Maker(folder)
    for path in maker.model.rglob("*"):
        if path.is_file():
            path.unlink()
    for name, body in hub.files.items():
        maker.write(name, body)
    maker.sign()
    hub.files[SIGNATURE] = (maker.model / SIGNATURE).read_bytes()
    return maker


def plan_of(key: str, source: str = "org/tiny") -> Plan:
    trusting = stack(
        pool(),
        trust={"signers": [{"weights": ["org/*"], "publicKey": key}]},
        mirror={"bucket": "fleet", "image": "registry.example/mirror:1", "sources": {"org/tiny": source}},
    )
    return planned([model("org/tiny", revision="main")], trusting)


def asked(plan: Plan, *, network: bool = True) -> list[tuple[Severity, str]]:
    return [(one.severity, one.message) for one in signature_findings(plan, network=network)]


def test_a_preview_says_nothing_of_what_is_signed_and_reads_no_weights(hub: Hub, tmp_path: Path) -> None:
    maker = published(hub, tmp_path)
    assert asked(plan_of(pem(maker.key))) == []
    assert hub.cdn == []


def test_a_preview_refuses_what_is_not(hub: Hub, tmp_path: Path) -> None:
    key = pem(published(hub, tmp_path).key)
    signature = hub.files[SIGNATURE]

    def refused(message: str, **files: bytes | None) -> None:
        before = dict(hub.files)
        hub.files |= {name: body for name, body in files.items() if body is not None}
        for name in (name for name, body in files.items() if body is None):
            del hub.files[name]
        ((severity, found),) = asked(plan_of(key))
        hub.files = before
        assert severity is Severity.ERROR and message in found, found

    refused("has no model.sig", **{SIGNATURE: None})
    refused("'config.json' is not what was signed", **{"config.json": b'{"evil": 1}'})
    refused("'model-2.safetensors' is not what was signed", **{"model-2.safetensors": os.urandom(1000)})
    refused("'evil.py' is not signed", **{"evil.py": b"import os"})
    refused("'model-1.safetensors' is signed and missing", **{"model-1.safetensors": None})
    ((severity, found),) = asked(plan_of(pem(OTHER)))
    assert severity is Severity.ERROR and "not of the signer that the stack names" in found
    assert hub.files[SIGNATURE] == signature and hub.cdn == []


def test_what_a_preview_cannot_know_it_says(hub: Hub, tmp_path: Path) -> None:
    key = pem(published(hub, tmp_path).key)
    ((severity, offline),) = asked(plan_of(key), network=False)
    assert severity is Severity.NOTICE and "verified when it is copied" in offline
    ((severity, bucket),) = asked(plan_of(key, "s3://theirs/tiny"))
    assert severity is Severity.NOTICE and "does not read s3://theirs/tiny" in bucket
    for server in hub.servers:
        server.shutdown()
        server.server_close()
    ((severity, away),) = asked(plan_of(key))
    assert severity is Severity.WARNING and "now it cannot be" in away


def test_a_key_of_no_curve_is_an_error_at_its_line() -> None:
    (found,) = key_findings(plan_of("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----").source)
    assert found.path == "modelfleet:trust.signers[0].publicKey" and found.line and "no public key" in found.message


def run_job(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> int:
    """The Job's own program, with the environment that its manifest gives it; the code is this checkout's."""
    (container,) = mirror_job(plan, plan.models[0])["spec"]["template"]["spec"]["containers"]
    for one in container["env"]:
        if "value" in one and one["name"] != "HOME":
            monkeypatch.setenv(one["name"], one["value"])
    monkeypatch.setenv("CODE", "s3://fleet/code.zip")
    monkeypatch.setattr(program, "load_code", lambda uri: None)
    return program.main()


def test_a_job_copies_what_is_signed_and_refuses_the_rest(
    s3: Any, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(pem(published(hub, tmp_path).key))
    hub.files["evil.py"] = b"import os"
    assert run_job(plan, monkeypatch) == 2
    assert "'evil.py' is not signed" in capsys.readouterr().err
    assert status("s3://fleet/models/org--tiny") is Status.ABSENT
    del hub.files["evil.py"]
    assert run_job(plan, monkeypatch) == 0
    assert status("s3://fleet/models/org--tiny") is Status.COMPLETE


def test_weights_that_are_not_what_the_hub_says_are_not_copied_though_the_hub_names_signed_hashes(
    s3: Any, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of files has the signed SHA-256, and other bytes come."""
    plan = plan_of(pem(published(hub, tmp_path).key))
    hub.lied["model-1.safetensors"] = hashlib.sha256(hub.files["model-1.safetensors"]).hexdigest()
    hub.files["model-1.safetensors"] = os.urandom(len(hub.files["model-1.safetensors"]))
    assert asked(plan) == [], "only who reads the bytes can know"
    assert run_job(plan, monkeypatch) == 2
    assert status("s3://fleet/models/org--tiny") is Status.ABSENT


def test_the_local_target_reads_the_signature_from_the_hub(
    s3: Any, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download has only what vLLM reads."""
    from modelfleet.infra.local.provider import objects
    from modelfleet.infra.provider import Refused

    maker = published(hub, tmp_path)
    for name in (SIGNATURE, "README.md", "old.bin"):
        (maker.model / name).unlink()
    monkeypatch.setattr(objects, "_materialize", lambda inputs, progress: maker.model)
    monkeypatch.setattr(objects, "client", lambda inputs: s3)

    class Call:
        def step(self, line: str) -> None:
            """Shows nothing."""

    def create(key: str) -> None:
        inputs = {"endpoint": "", "bucket": "fleet", "prefix": "models/x", "source": "org/tiny", "revision": "main"}
        objects.create_weights(Call(), {**inputs, "modelId": "org/tiny", "signerKey": key})  # type: ignore[arg-type]

    with pytest.raises(Refused, match="not of the signer"):
        create(pem(OTHER))
    assert status("s3://fleet/models/x") is Status.ABSENT
    create(pem(maker.key))
    assert status("s3://fleet/models/x") is Status.COMPLETE
