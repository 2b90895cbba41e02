"""`trust.signers`: what a plan refuses before it asks anybody, and what mirror Jobs get."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from modelfleet.infra.aws.documents import iam_documents, pod_access, site_without_account
from modelfleet.infra.kubernetes.manifests.everything import ray
from modelfleet.infra.kubernetes.manifests.manifest_key import manifest_key
from modelfleet.infra.kubernetes.manifests.mirror import job_name, mirror_job
from modelfleet.infra.names import MANIFEST_KEY_FILE
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.plan import ImageSource
from modelfleet.infra.stack import LoadedStack
from modelfleet.infra.stack.schema import TrustedSigner
from modelfleet.serving.app import AppArgs
from modelfleet.serving.config.errors import InputErrors, Severity
from modelfleet.serving.mirror.proof import Expected
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
        {"weights": ["*"], "publicKey": KEY * 2},
    ],
    ids=["nobody", "both", "for nothing", "a path", "a private key", "two keys"],
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


def test_the_key_that_the_stack_makes_is_a_file_in_its_pods_and_names_in_their_jobs() -> None:
    plan = plan_of(signed(target="eks", kubernetes={}))
    own = plan_of(stack(pool(), target="eks", trust={"manifestKey": {"kms": "own"}}))
    (one,) = own.models
    named = AppArgs.model_validate(one.application.args).weights.manifest_key
    assert named == f"file://{MANIFEST_KEY_FILE}" and not any("arn:" in text for text in strings(ray(own)))
    (container,) = mirror_job(own, one)["spec"]["template"]["spec"]["containers"]
    asked = {e["name"]: e["valueFrom"]["configMapKeyRef"] for e in container["env"] if "KEY" in e["name"]}
    maps = manifest_key(own, "the arn", "the public half")
    data = {(m["metadata"]["name"], m["metadata"]["namespace"]): m["data"] for m in maps}
    assert set(data) == {("manifest-key", own.namespace), ("manifest-key", own.mirror_namespace)}
    jobs = data["manifest-key", own.mirror_namespace]
    found = {name: jobs[ref["key"]] for name, ref in asked.items()}
    assert found == {"MANIFEST_KEY": "the arn", "MANIFEST_PUBLIC_KEY": "the public half"}
    cluster = ray(own)[-1]["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        (volume,) = (v for v in spec["volumes"] if v["name"] == "manifest-key")
        (mount,) = (m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "manifest-key")
        (item,) = volume["configMap"]["items"]
        assert f"{mount['mountPath']}/{item['path']}" == MANIFEST_KEY_FILE
        assert data["manifest-key", own.namespace][item["key"]] == "the public half"
    assert job_name(own, one) != job_name(plan, plan.models[0])
    assert manifest_key(plan, "", "") == [] and "manifest-key" not in str(ray(plan))


def strings(of: Any) -> Iterator[str]:
    """Every string in it."""
    if isinstance(of, str):
        yield of
    for part in of.values() if isinstance(of, dict) else of if isinstance(of, list) else ():
        yield from strings(part)


def test_the_key_that_the_stack_makes_has_a_price_and_a_notice_says_what_becomes_of_copies() -> None:
    without = plan_of(stack(pool(), target="eks"))
    plan = plan_of(stack(pool(), target="eks", trust={"manifestKey": {"kms": "own"}}))
    keys = [one for plan in (without, plan) for one in plan.fixed if one.name == "KMS keys"]
    assert [round((one.usd_per_hour or 0) * 730) for one in keys] == [2, 3], "cluster and bucket have one, too"
    (notice,) = [one for one in plan.notices if one.path == "modelfleet:trust.manifestKey"]
    assert notice.severity is Severity.NOTICE and "a copy of before is not made again" in notice.message
    assert plan_of(signed(target="eks")).manifest_key is None


def test_the_key_that_the_stack_makes_is_as_protected_as_its_bucket() -> None:
    for protect in (True, False):
        keys = {"trust": {"manifestKey": {"kms": "own"}}, "cluster": {"deletionProtection": protect}}
        plan = plan_of(stack(pool(), target="eks", **keys))
        assert plan.manifest_key is not None and plan.manifest_key.protect == plan.bucket.protect == protect


def test_only_mirror_jobs_may_sign_with_the_key_that_the_stack_makes() -> None:
    plan = plan_of(stack(pool(), target="eks", trust={"manifestKey": {"kms": "own"}}))
    site = site_without_account(plan)
    assert {access.service_account for access in pod_access(site, plan) if access.signs} == {"mirror"}
    documents = iam_documents(plan, site)
    assert "kms:Sign" in str(documents["mirror-signs"])
    (deny,) = [one for one in documents["manifest-key"]["Statement"] if one["Effect"] == "Deny"]
    assert deny["Condition"]["ArnNotLike"]["aws:PrincipalArn"].endswith(f":role/{plan.stack}-mirror-*")
    assert "kms:GetPublicKey" in str([text for name, text in documents.items() if name.startswith("operator")])
    without = iam_documents(plan_of(signed(target="eks")), site)
    assert not {"mirror-signs", "manifest-key"} & set(without) and "kms:GetPublicKey" not in str(without)


def test_a_signer_is_demanded_without_a_key_too_and_its_job_runs_once_more() -> None:
    plan = plan_of(signed({"weights": ["*"], "publicKey": KEY}))
    (one,) = plan.models
    signer = one.mirror.signer
    assert signer is not None
    weights = one.application.args["weights"]
    assert weights["signers"] == {weights["mirror"]: signer.fingerprint} and "manifest_key" not in weights
    expected = Expected.of(AppArgs.model_validate(one.application.args).weights.model_dump())
    assert expected == Expected(signer=signer.fingerprint)


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


def test_a_cluster_that_is_not_ours_makes_no_key() -> None:
    with pytest.raises(InputErrors) as refused:
        plan_of(
            stack(
                pool(),
                target="kubernetes",
                kubernetes={"image": "r.example/s:1"},
                trust={"manifestKey": {"kms": "own"}},
            )
        )
    (found,) = [one for one in refused.value.findings if one.path == "modelfleet:trust.manifestKey"]
    assert "target eks makes" in found.message and "`kms` its ARN" in found.message


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"kms": "own", "publicKey": KEY}, "reads the publicKey of its own key"),
        ({"kms": MANIFEST_KEY["kms"]}, "name publicKey"),
        ({"kms": "alias/mine", "publicKey": KEY}, "`own`, or the ARN"),
        ({"kms": MANIFEST_KEY["kms"], "publicKey": f"{KEY}and more"}, "one key as PEM"),
        ({"kms": MANIFEST_KEY["kms"], "publicKey": KEY * 2}, "one key as PEM"),
        ({"kms": MANIFEST_KEY["kms"], "publicKey": KEY.replace(DER, " \n")}, "one key as PEM"),
    ],
    ids=["own and named", "without its public half", "an alias", "text after it", "two keys", "an empty one"],
)
def test_a_key_of_manifests_is_the_stacks_own_or_known_by_both_halves(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        stack(pool(), trust={"manifestKey": entry})


@pytest.mark.parametrize(
    "pem",
    [KEY, KEY.replace("\n", " "), KEY.replace("\n", ""), KEY.replace("\n", "\r\n"), KEY.replace("QYI", "QYI\n\t")],
    ids=["lines", "folded", "one line", "CRLF", "short lines"],
)
def test_the_public_half_is_the_same_however_its_pem_is_written(pem: str) -> None:
    """A folded one gave replicas an empty key, with which they verified nothing."""
    (one,) = plan_of(with_manifest_key(trust={"manifestKey": {**MANIFEST_KEY, "publicKey": pem}})).models
    weights = AppArgs.model_validate(one.application.args).weights
    expected = Expected.of(weights.model_dump())
    assert expected is not None and expected.key == weights.manifest_key == DER


def test_the_job_gets_the_public_half_that_its_signatures_must_verify_by() -> None:
    plan = plan_of(with_manifest_key())
    (container,) = mirror_job(plan, plan.models[0])["spec"]["template"]["spec"]["containers"]
    assert {"name": "MANIFEST_PUBLIC_KEY", "value": DER} in container["env"]


def test_a_key_of_another_region_is_refused() -> None:
    elsewhere = {**MANIFEST_KEY, "kms": MANIFEST_KEY["kms"].replace("us-east-1", "eu-west-1")}
    with pytest.raises(InputErrors) as refused:
        plan_of(with_manifest_key(trust={"manifestKey": elsewhere}))
    (found,) = [one for one in refused.value.findings if one.path == "modelfleet:trust.manifestKey.kms"]
    assert "a key of eu-west-1" in found.message and "us-east-1 (aws:region)" in found.message


@pytest.mark.parametrize(("trust", "warned"), [({"manifestKey": MANIFEST_KEY}, 1), ({}, 0)], ids=["signed", "not"])
def test_a_model_that_streams_what_is_signed_is_warned_of(trust: dict[str, Any], warned: int) -> None:
    made = stack(pool(), kubernetes={}, trust=trust)
    plan = plan_of(made, engine_kwargs={"load_format": "runai_streamer"})
    found = [one for one in plan.notices if one.path == "engine_config.engine_kwargs.load_format"]
    assert [(one.severity, "not the files' SHA-256" in one.message) for one in found] == [
        (Severity.WARNING, True)
    ] * warned


def test_on_this_machines_cards_the_fix_is_a_folder_because_nothing_copies_from_the_hub() -> None:
    everything = {"weights": ["*"], "publicKey": KEY}
    local = {"target": "local", "kubernetes": {}}
    with pytest.raises(InputErrors) as refused:
        plan_of(signed(everything, **local))
    (found,) = [one for one in refused.value.findings if one.path == "modelfleet:trust.signers[0]"]
    assert "org/model: file:///FOLDER" in found.message and "bucket_uri" not in found.message
    plan = plan_of(signed(everything, **local, mirror={"sources": {"org/model": "file:///srv/model"}}))
    assert plan.models[0].mirror.prefix is not None
