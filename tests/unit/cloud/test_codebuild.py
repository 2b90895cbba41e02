"""The serving image is built on the emulated cloud: the real buildspec, role and waiting, and a log that says why not."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra import image_build
from modelfleet.infra.aws import policies
from modelfleet.infra.aws.documents import image_documents
from modelfleet.infra.aws.image import KEPT_IMAGES
from modelfleet.infra.aws.site import Site, image_log_group, image_project, site_of
from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.image_build import IMAGE_BUILD
from modelfleet.infra.planning.image import image_plan, mirror_image_plan
from modelfleet.infra.planning.plan import ImagePlan
from modelfleet.infra.provider import Call, Refused
from modelfleet.infra.reading.code import zipped
from modelfleet.infra.reading.image import FILES, build_image_zip, image_source
from tests.unit.aws.builders import ACCOUNT, facts, planned
from tests.unit.cloud.conftest import BUCKET, REGION
from tests.unit.cloud.test_judge import refused
from tools.cloud.answers import Error
from tools.cloud.app import MISHAPS
from tools.cloud.server import Listening

Documents = dict[str, policies.Document]


@dataclass
class Place:
    """An account with everything that a build needs; `inputs` are those of the resource."""

    cloud: Listening
    site: Site
    plan: ImagePlan
    said: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> dict[str, Any]:
        return {
            "account": ACCOUNT,
            "project": image_project(self.site.cluster_name),
            "region": REGION,
            "repository": self.plan.repository,
            "tag": self.plan.tag,
            "compute": self.plan.compute_type,
            "variables": {
                "REPOSITORY": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/{self.plan.repository}",
                "BASE_IMAGE": self.plan.base,
                "DOCKERFILE": self.plan.dockerfile,
            },
        }

    def build(self) -> Any:
        """What the resource does in `pulumi up`."""
        return IMAGE_BUILD.create(self.call(), self.inputs)

    def call(self) -> Call[Any]:
        return Call({}, "urn", "image", IMAGE_BUILD.token, 0, note=self.said.append, step=self.said.append)

    def builds(self) -> list[str]:
        project = image_project(self.site.cluster_name)
        return list(self.cloud.client("codebuild").list_builds_for_project(projectName=project)["ids"])

    def happens(self, **mishaps: str | float) -> None:
        """What happens to commands: `docker_build="…"` is printed before it fails; a number is seconds."""
        body = json.dumps({name.replace("_", " "): wish for name, wish in mishaps.items()}).encode()
        urllib.request.urlopen(urllib.request.Request(self.cloud.url + MISHAPS, data=body, method="PUT"), timeout=60)


@pytest.fixture
def place(account: Listening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Place:
    for name, value in account.environment(
        {"aws_access_key_id": "AKIAADMINISTRATOR000", "aws_secret_access_key": "s"}
    ).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(image_build, "POLL_S", 0.05)
    plan, stack = planned(tmp_path, mirror={"bucket": BUCKET})
    plans = {"serving": image_plan, "mirror": mirror_image_plan}
    image = plans[getattr(request, "param", "serving")](stack, image_source(), default_catalog())
    assert image is not None
    made = Place(account, site_of(plan, facts()), image)
    made.happens()
    prepare(made)
    return made


def prepare(place: Place, change: Callable[[Documents], None] = lambda _: None, source: bytes | None = None) -> None:
    """Makes what `infra/aws/image.py` makes before the build, with the documents that it makes it with."""
    iam, s3, kms = (place.cloud.client(service) for service in ("iam", "s3", "kms"))
    documents = image_documents(place.site, [place.plan], BUCKET)
    change(documents)
    policy = json.dumps(policies.account_key(partition="aws", account=ACCOUNT))
    key = kms.create_key(Policy=policy)["KeyMetadata"]["Arn"]
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
    rules = [{"ApplyServerSideEncryptionByDefault": default, "BucketKeyEnabled": True}]
    s3.put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration={"Rules": rules})
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policies.tls_only(BUCKET, partition="aws")))
    s3.put_object(Bucket=BUCKET, Key=place.plan.source.key, Body=source or build_image_zip())
    documents["key"] = policies.document(policies.use_key(key, write=False, region=REGION))
    role = iam.create_role(RoleName="image-build", AssumeRolePolicyDocument=json.dumps(documents.pop("trust")))["Role"]
    for name, document in documents.items():
        iam.put_role_policy(RoleName="image-build", PolicyName=name, PolicyDocument=json.dumps(document))
    place.cloud.client("logs").create_log_group(logGroupName=image_log_group(place.site.cluster_name))
    place.cloud.client("ecr").create_repository(repositoryName=place.plan.repository, imageTagMutability="IMMUTABLE")
    place.cloud.client("codebuild").create_project(**project(place, role["Arn"]))


def project(place: Place, role: str, *, privileged: bool = True) -> dict[str, Any]:
    return {
        "name": image_project(place.site.cluster_name),
        "serviceRole": role,
        "source": {"type": "S3", "location": f"{BUCKET}/{place.plan.source.key}"},
        "artifacts": {"type": "NO_ARTIFACTS"},
        "environment": {
            "type": "LINUX_CONTAINER",
            "computeType": "BUILD_GENERAL1_LARGE",
            "image": "aws/codebuild/amazonlinux-x86_64-standard:5.0",
            "privilegedMode": privileged,
        },
    }


@pytest.mark.parametrize("place", ["serving", "mirror"], indirect=True)
def test_the_image_is_built_with_the_builds_own_role_and_known_by_its_digest(place: Place) -> None:
    made = place.build()
    (image,) = place.cloud.client("ecr").describe_images(repositoryName=place.plan.repository)["imageDetails"]
    assert (image["imageTags"], image["imageDigest"]) == ([place.plan.tag], made.outputs["digest"])
    assert any("build: " in line for line in place.said), "a run of half an hour must say what it waits for"
    used, granted = place.cloud.cloud.judge.trail.actions("image-build"), set[str]()
    for document in image_documents(place.site, [place.plan], BUCKET).values():
        for statement in document["Statement"]:
            granted |= set(statement["Action"]) if isinstance(statement["Action"], list) else set()
    unused = granted - used
    assert unused == {"ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"}, "a push asks these of layers that exist"


def test_an_image_that_is_there_is_not_built_again(place: Place) -> None:
    first = place.build()
    assert place.build() == first
    assert len(place.builds()) == 1


def test_a_run_that_was_stopped_leaves_a_build_and_the_next_run_waits_for_it(place: Place) -> None:
    """Two builds of one tag: the second push of half an hour would be refused, because the tag is there."""
    place.happens(docker_build=1.5)
    stopped = Call[Any]({}, "urn", "image", IMAGE_BUILD.token, 0, note=print, step=stop)
    with pytest.raises(Refused, match="stopped"):
        IMAGE_BUILD.create(stopped, place.inputs)
    assert place.build().outputs["digest"].startswith("sha256:")
    assert len(place.builds()) == 1


def stop(line: str) -> None:
    raise Refused(f"stopped at: {line}")


def test_a_build_that_fails_shows_what_its_log_says(place: Place) -> None:
    said = "toomanyrequests: You have reached your unauthenticated pull rate limit."
    place.happens(docker_build=said)
    with pytest.raises(Refused) as error:
        place.build()
    text = str(error.value)
    assert (
        "ended with FAILED: BUILD: Error while executing command: BUILDX_NO_DEFAULT_ATTESTATIONS=1 docker build" in text
    )
    assert f"  {said}" in text
    assert "https://console.aws.amazon.com/" in text
    assert "no node was started" in text
    place.happens()
    assert place.build().outputs["digest"], "the next run builds again"


def test_an_image_that_the_lifecycle_or_a_person_removed_is_built_again(place: Place) -> None:
    state = {**place.inputs, **place.build().outputs}
    assert IMAGE_BUILD.read(place.call(), "id", state) == state
    ecr = place.cloud.client("ecr")
    ecr.batch_delete_image(repositoryName=place.plan.repository, imageIds=[{"imageTag": place.plan.tag}])
    assert IMAGE_BUILD.read(place.call(), "id", state) is None


def test_a_new_account_that_may_run_no_build_hears_which_quota_to_request(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "Cannot have more than 0 builds in queue for the account"

    def refuse(*_: Any) -> Any:
        raise Error(400, "AccountLimitExceededException", said)

    monkeypatch.setattr(place.cloud.cloud.backends.codebuild, "_start", refuse)
    with pytest.raises(Refused, match=f"{said}.*Concurrently running builds for Linux/Large environment"):
        place.build()


LACKS = {
    "s3:GetObject": "AccessDenied: User: .* is not authorized to perform: s3:GetObject",
    "ecr:GetAuthorizationToken": "is not authorized to perform: ecr:GetAuthorizationToken",
    "ecr:UploadLayerPart": "denied: .*is not authorized to perform: ecr:UploadLayerPart",
}


@pytest.mark.parametrize("action", LACKS)
def test_a_build_without_a_right_fails_and_says_which(place: Place, action: str) -> None:
    iam = place.cloud.client("iam")
    text = json.dumps(image_documents(place.site, [place.plan], BUCKET)["access"])
    iam.put_role_policy(
        RoleName="image-build", PolicyName="access", PolicyDocument=text.replace(f'"{action}"', '"s3:ListBucket"')
    )
    with pytest.raises(Refused, match=LACKS[action]):
        place.build()


def test_only_this_project_of_this_account_may_use_the_role(place: Place) -> None:
    codebuild = place.cloud.client("codebuild")
    other = {**project(place, f"arn:aws:iam::{ACCOUNT}:role/image-build"), "name": "another"}
    status, code, message = refused(codebuild.create_project, **other)
    assert (status, code) == (400, "InvalidInputException")
    assert "CodeBuild is not authorized to perform: sts:AssumeRole on service role" in message


def test_a_machine_that_codebuild_has_not_is_refused(place: Place) -> None:
    start = place.cloud.client("codebuild").start_build
    refusal = refused(start, projectName=place.inputs["project"], computeTypeOverride="BUILD_GENERAL1_TINY")
    assert refusal[:2] == (400, "ValidationException")


def test_each_image_is_built_on_its_own_machine(place: Place) -> None:
    """An account counts each size apart, so the small build waits for no place among the large ones."""
    place.build()
    (build,) = place.cloud.client("codebuild").batch_get_builds(ids=place.builds())["builds"]
    assert build["environment"]["computeType"] == place.plan.compute_type == "BUILD_GENERAL1_LARGE"


def test_a_build_without_privileges_has_no_docker(place: Place) -> None:
    role = f"arn:aws:iam::{ACCOUNT}:role/image-build"
    place.cloud.client("codebuild").update_project(**project(place, role, privileged=False))
    with pytest.raises(Refused, match="Is the docker daemon running"):
        place.build()


FAULTS: Mapping[str, tuple[Callable[[dict[str, bytes]], Any], str]] = {
    "no-requirements": (lambda files: files.pop("requirements/cluster.txt"), "failed to read requirements/cluster.txt"),
    "no-buildspec": (lambda files: files.pop("buildspec.yml"), "buildspec.yml: no such file or directory"),
    "a-misspelt-phase": (
        lambda files: files.update({"buildspec.yml": files["buildspec.yml"].replace(b"pre_build:", b"prebuild:")}),
        "buildspec: unknown prebuild",
    ),
    "no-base": (
        lambda files: files.update({"buildspec.yml": files["buildspec.yml"].replace(b"$BASE_IMAGE", b"$BASE")}),
        r"base name \(\$\{BASE_IMAGE\}\) should not be blank",
    ),
    "no-login": (
        lambda files: files.update({"buildspec.yml": files["buildspec.yml"].replace(b"docker login", b"cat #")}),
        "no basic auth credentials",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_source_that_cannot_be_built_fails_the_build(place: Place, fault: str) -> None:
    change, said = FAULTS[fault]
    files = {name: path.read_bytes() for name, path in FILES.items()}
    change(files)
    place.cloud.client("s3").put_object(Bucket=BUCKET, Key=place.plan.source.key, Body=zipped(sorted(files.items())))
    with pytest.raises(Refused, match=said):
        place.build()


def test_the_same_files_have_the_same_name_and_other_files_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_image_zip() == build_image_zip()
    monkeypatch.setitem(FILES, "requirements/cluster.txt", FILES["serving/Dockerfile"])
    changed = build_image_zip()
    monkeypatch.undo()
    assert changed != build_image_zip()
    assert KEPT_IMAGES > 1, "a rollback wants the image before"
