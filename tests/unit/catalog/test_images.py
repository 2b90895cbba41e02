"""Others' images: by digest where one is known, from a registry of the company's own, and how digests are renewed."""

from __future__ import annotations

import json
import os
import re
import subprocess
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from modelfleet.cli.images import image_rows
from modelfleet.infra.aws.documents import image_documents
from modelfleet.infra.aws.site import site_of
from modelfleet.infra.catalog import default_catalog, images
from modelfleet.infra.catalog.images import OthersImage, reference
from modelfleet.infra.planning.image import image_plan
from modelfleet.infra.planning.plan import ImageSource
from modelfleet.serving.config.errors import InputErrors
from tests.unit.aws.builders import ACCOUNT, REGION, facts, planned
from tools.catalog.images import digest_of, renewed

ROOT = Path(__file__).parents[3]
DIGEST = f"sha256:{'a' * 64}"
OWN = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"


class Registry:
    """A registry as Docker Hub is: nothing without a token, which another host gives to anybody."""

    def __init__(self, digest: str = DIGEST) -> None:
        self.digest, self.asked = digest, list[tuple[str, str]]()

    def __call__(self, method: str, url: str, headers: dict[str, str]) -> tuple[int, Message, bytes]:
        self.asked.append((method, url))
        said = Message()
        if url.startswith("https://auth.example/token"):
            return 200, said, json.dumps({"token": "t"}).encode()
        if headers.get("Authorization") != "Bearer t":
            said["WWW-Authenticate"] = 'Bearer realm="https://auth.example/token",service="registry.example"'
            return 401, said, b""
        assert "manifest.list" in headers["Accept"], "a digest of one processor's image is wrong for the others"
        said["Docker-Content-Digest"] = self.digest
        return 200 if self.digest else 404, said, b""


def test_a_registry_is_asked_with_a_token_for_anybody_for_what_a_tag_names() -> None:
    registry = Registry()
    assert digest_of("docker.io/library/haproxy", "2.8.25", registry) == DIGEST
    manifest = "https://registry-1.docker.io/v2/library/haproxy/manifests/2.8.25"
    token = "https://auth.example/token?service=registry.example&scope=repository%3Alibrary%2Fhaproxy%3Apull"
    assert registry.asked == [("HEAD", manifest), ("GET", token), ("HEAD", manifest)]


def test_digests_are_filled_in_and_a_registry_without_an_answer_changes_nothing(tmp_path: Path) -> None:
    table = tmp_path / "images.csv"
    table.write_text(images.TABLE.read_text())
    before = table.read_text()
    with pytest.raises(LookupError, match="answered 404 and no digest"):
        renewed(table, Registry(""))
    assert table.read_text() == before
    renewed(table, Registry())
    assert table.read_text().count(DIGEST) == len(images.images())
    assert table.read_text().splitlines()[:2] == before.splitlines()[:2]


def test_a_known_digest_is_in_the_name_and_only_of_its_own_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "images", lambda: {"x": OthersImage("quay.example/x", "v1", DIGEST)})
    assert reference("x") == f"quay.example/x:v1@{DIGEST}"
    assert reference("x", tag="v2") == "quay.example/x:v2"
    assert reference("x", registry="mirror.example/all") == f"mirror.example/all/quay.example/x:v1@{DIGEST}"


def with_image(folder: Path, **stack: Any) -> Any:
    plan, loaded = planned(folder, **stack)
    return plan, image_plan(loaded, ImageSource("0" * 64, "1" * 64, "2" * 64), default_catalog())


def test_every_image_comes_from_the_companys_registry_where_the_stack_names_one(tmp_path: Path) -> None:
    plan, made = with_image(tmp_path, imageRegistry="mirror.example/all", kubernetes={"image": "mirror.example/own:1"})
    assert made is None, "the file names an image"
    rows = image_rows(plan)
    assert {row["image"].partition("/")[0] for row in rows} == {"mirror.example"}
    assert len(rows) == 6
    (haproxy,) = [row for row in rows if "haproxy" in row["image"]]
    assert haproxy["image"] == "mirror.example/all/docker.io/library/haproxy:2.8.25"
    assert (haproxy["used_by"], haproxy["pinned"]) == (["Deployment/gateway"], False)


def test_an_address_with_a_scheme_is_no_registry(tmp_path: Path) -> None:
    with pytest.raises(InputErrors, match="a registry, without https://"):
        planned(tmp_path, imageRegistry="https://mirror.example")


def test_the_builds_base_comes_from_there_too_and_is_part_of_the_tag(tmp_path: Path) -> None:
    _, plain = with_image(tmp_path / "plain")
    plan, mirrored = with_image(tmp_path / "mirrored", imageRegistry=OWN)
    assert mirrored.base == f"{OWN}/docker.io/vllm/vllm-openai:{plain.base.rpartition(':')[2]}"
    assert mirrored.tag != plain.tag, "another base is another image"
    site = site_of(plan, facts())
    (pull,) = [s for s in image_documents(site, [mirrored], "b")["access"]["Statement"] if "Import" in str(s["Action"])]
    assert pull["Resource"] == [f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/docker.io/vllm/vllm-openai"]
    assert "Import" not in json.dumps(image_documents(site, [plain], "b"))


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_make_image_builds_with_whichever_engine_is_there(tmp_path: Path, engine: str) -> None:
    program = tmp_path / engine
    program.write_text('#!/bin/sh\necho "$(basename "$0") $*"\n')
    program.chmod(0o755)
    for name in ("sh", "awk", "basename", "grep", "uname", "env"):
        (tmp_path / name).symlink_to(subprocess.check_output(["which", name], text=True).strip())
    make = subprocess.check_output(["which", "make"], text=True).strip()
    # Not those of a make that runs this test.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | {"PATH": str(tmp_path)}
    done = subprocess.run(
        [make, "image", "IMAGE=r/serving:1"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    built = [
        f"{engine} build --file {file} --build-arg BASE_IMAGE={reference(base)} --tag r/{name}:1 ."
        for file, base, name in (
            ("serving/Dockerfile", "vllm", "serving"),
            ("serving/mirror/Dockerfile", "python", "mirror"),
        )
    ]
    assert done.stdout.splitlines() == built, done.stderr
    buildspec = (ROOT / "serving" / "buildspec.yml").read_text()
    assert re.search(r'docker build --file "\$DOCKERFILE" --build-arg "BASE_IMAGE=\$BASE_IMAGE"', buildspec)
