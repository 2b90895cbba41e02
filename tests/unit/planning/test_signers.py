"""`trust.signers`: what a plan refuses before it asks anybody, and what mirror Jobs get."""

from __future__ import annotations

from typing import Any

import pytest

from modelfleet.infra.aws.documents import pod_access, site_without_account
from modelfleet.infra.kubernetes.manifests.mirror import job_name, mirror_job
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.plan import ImageSource
from modelfleet.infra.stack import LoadedStack
from modelfleet.infra.stack.schema import TrustedSigner
from modelfleet.serving.app import AppArgs
from modelfleet.serving.config.errors import InputErrors, Severity
from tests.unit.planning.builders import model, planned, pool, stack

KEY = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n"
CERTIFICATES = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n" * 2


def signed(*signers: dict[str, Any], **keys: Any) -> LoadedStack:
    own = {"kubernetes": {}, **keys}
    return stack(pool(), trust={"signers": list(signers)}, **own)


def plan_of(made: LoadedStack, **engine: Any) -> Plan:
    return planned([model("org/model", **engine)], made, image=ImageSource("a" * 64, "b" * 64, "c" * 64))


def test_the_first_entry_that_matches_the_weights_counts() -> None:
    made = signed(
        {"weights": ["org/mod*"], "publicKey": KEY},
        {"weights": ["org/*"], "certificates": CERTIFICATES},
    )
    drafting = {"speculative_config": {"method": "draft_model", "model": "org/draft", "num_speculative_tokens": 2}}
    (one,) = plan_of(made, engine_kwargs=drafting).models
    assert one.mirror.signer == TrustedSigner.model_validate({"weights": ["x"], "publicKey": KEY}).signer
    assert [(other.name, other.signer and other.signer.certificates) for other in one.others] == [
        ("org/draft", CERTIFICATES)
    ]


def test_a_job_gets_the_signer_and_runs_again_for_another() -> None:
    names, environments = [], []
    for signers in ((), ({"weights": ["*"], "publicKey": KEY},), ({"weights": ["*"], "certificates": CERTIFICATES},)):
        plan = plan_of(signed(*signers))
        job = mirror_job(plan, plan.models[0])
        (container,) = job["spec"]["template"]["spec"]["containers"]
        environments.append({one["name"]: one.get("value") for one in container["env"]})
        names.append(job_name(plan, plan.models[0]))
    assert len(set(names)) == 3
    assert [one.get("SIGNER_KEY") for one in environments] == [None, KEY, None]
    assert [one.get("SIGNER_CERTIFICATES") for one in environments] == [None, None, CERTIFICATES]


def test_weights_that_nobody_copies_are_refused_because_nobody_verifies_them() -> None:
    everything = {"weights": ["*"], "publicKey": KEY}
    for made, engine in (
        (signed(everything, mirror={"create": False, "bucket": "theirs"}), {}),
        (signed(everything), {"s3_mirror_config": {"bucket_uri": "s3://theirs/model"}}),
    ):
        with pytest.raises(InputErrors) as refused:
            plan_of(made, **engine)
        (found,) = refused.value.findings
        assert found.path == "modelfleet:trust.signers[0]" and found.line
        assert "wants org/model signed" in found.message and "nobody verifies" in found.message


def test_jobs_in_the_serving_image_are_refused_because_it_cannot_verify() -> None:
    everything = {"weights": ["*"], "publicKey": KEY}
    serving = {"image": "registry.example/serving:1"}
    with pytest.raises(InputErrors) as refused:
        plan_of(signed(everything, kubernetes=serving))
    assert [one.path for one in refused.value.findings] == ["modelfleet:trust.signers"]
    plan_of(signed(everything, kubernetes=serving, mirror={"image": "registry.example/mirror:1"}))


def test_an_entry_for_no_model_is_a_warning() -> None:
    plan = plan_of(signed({"weights": ["other/*"], "publicKey": KEY}))
    (found,) = [one for one in plan.notices if one.path.startswith("modelfleet:trust")]
    assert found.severity is Severity.WARNING and "no model of this stack loads it" in found.message


@pytest.mark.parametrize(
    "entry",
    [
        {"weights": ["*"]},
        {"weights": ["*"], "publicKey": KEY, "certificates": CERTIFICATES},
        {"weights": [], "publicKey": KEY},
        {"weights": ["*"], "publicKey": "keys/maker.pub"},
        {"weights": ["*"], "publicKey": KEY.replace("PUBLIC", "PRIVATE")},
    ],
    ids=["nobody", "both", "for nothing", "a path", "a private key"],
)
def test_a_signer_is_one_key_or_certificates_as_pem(entry: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="signers"):
        signed(entry)


MANIFEST_KEY = {"kms": "arn:aws:kms:us-east-1:111122223333:key/1234-abcd", "publicKey": KEY}
DER = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE"


def with_manifest_key(**keys: Any) -> LoadedStack:
    own = {"kubernetes": {}, **keys}
    return stack(pool(), trust={"manifestKey": MANIFEST_KEY, **own.pop("trust", {})}, **own)


def test_the_key_of_manifests_is_in_the_job_and_its_public_half_in_the_applications_args() -> None:
    plain, plan = (
        plan_of(signed()),
        plan_of(with_manifest_key(trust={"signers": [{"weights": ["*"], "publicKey": KEY}]})),
    )
    (one,) = plan.models
    assert AppArgs.model_validate(one.application.args).weights.manifest_key == DER
    assert one.mirror.signer is not None
    assert one.application.args["weights"]["signers"] == {
        f"s3://{plan.bucket.name}/models/org--model": one.mirror.signer.fingerprint
    }
    assert not {"manifest_key", "signers"} & set(plain.models[0].application.args["weights"])
    (container,) = mirror_job(plan, one)["spec"]["template"]["spec"]["containers"]
    assert {"name": "MANIFEST_KEY", "value": MANIFEST_KEY["kms"]} in container["env"]
    assert job_name(plan, one) != job_name(plain, plain.models[0])


def test_only_mirror_jobs_may_sign() -> None:
    plan = plan_of(with_manifest_key())
    signing = {
        access.service_account
        for access in pod_access(site_without_account(plan), plan)
        for statement in access.statements
        if "kms:Sign" in statement["Action"] and statement["Resource"] == MANIFEST_KEY["kms"]
    }
    assert signing == {"mirror"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [({"mirror": {"create": False, "bucket": "theirs"}}, "mirror.create is false"), ({"target": "local"}, "has none")],
    ids=["nothing is copied", "this machine"],
)
def test_a_key_that_nothing_signs_with_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(InputErrors) as refused:
        planned([model("org/model")], with_manifest_key(**keys))
    assert [said in one.message for one in refused.value.findings if one.path == "modelfleet:trust.manifestKey"] == [
        True
    ]
