"""The serving image of a stack: named, or made in its own account, with its name and its price in the plan."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from modelfleet.cli.plan_table import image_text
from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning.image import (
    image_findings,
    image_name,
    image_plan,
    mirror_image_name,
    mirror_image_plan,
)
from modelfleet.infra.planning.plan import ImageSource
from modelfleet.infra.stack import LoadedStack
from tests.unit.aws.builders import ACCOUNT, planned

SOURCE = ImageSource("a" * 64, "b" * 64, "c" * 64)
#: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_CreateRepository.html
REPOSITORY = re.compile(r"(?:[a-z0-9]+(?:[._-][a-z0-9]+)*/)*[a-z0-9]+(?:[._-][a-z0-9]+)*")


def loaded(folder: Path, *, region: str = "us-east-1", name: str = "test", **keys: object) -> LoadedStack:
    _, stack = planned(folder, **keys)
    return replace(stack, region=region, name=name)


def test_a_stack_that_names_no_image_makes_one_and_the_plan_says_what_that_costs(tmp_path: Path) -> None:
    stack = loaded(tmp_path)
    made = image_plan(stack, SOURCE, default_catalog())
    assert made is not None
    assert image_text([made]) == (
        "Building the image, once: about 25 min in CodeBuild, 0.50 USD on top; ECR keeps it for 1.20 USD a month"
    )
    registry = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com"
    assert image_name(stack, made) == f"{registry}/modelfleet-test/serving:{made.tag}"
    assert image_findings(stack, made) == []


def test_a_price_that_nobody_knows_is_a_question_mark(tmp_path: Path) -> None:
    made = image_plan(loaded(tmp_path, region="eu-west-1"), SOURCE, default_catalog())
    assert made is not None
    assert image_text([made]).endswith("? USD on top; ECR keeps it for ? USD a month")


def test_other_files_are_another_image(tmp_path: Path) -> None:
    stack, catalog = loaded(tmp_path), default_catalog()
    first, second = (image_plan(stack, ImageSource("0" * 64, digit * 64, "c" * 64), catalog) for digit in "ab")
    assert first is not None and second is not None
    assert first.tag != second.tag and first.repository == second.repository


def test_an_image_that_the_file_names_is_not_made(tmp_path: Path) -> None:
    stack = loaded(tmp_path, kubernetes={"image": "registry.example/serving:1"})
    assert image_plan(stack, SOURCE, default_catalog()) is None
    assert image_name(stack, None) == "registry.example/serving:1"


@pytest.mark.parametrize("name", ["dev", "Team.A_b--c", "x-"])
def test_a_repository_has_a_name_that_ecr_takes(tmp_path: Path, name: str) -> None:
    made = image_plan(loaded(tmp_path, name=name), SOURCE, default_catalog())
    assert made is not None
    assert REPOSITORY.fullmatch(made.repository), made.repository


def test_mirror_jobs_have_an_image_of_their_own_beside_the_one_that_is_made(tmp_path: Path) -> None:
    stack, catalog = loaded(tmp_path), default_catalog()
    serving, mirror = image_plan(stack, SOURCE, catalog), mirror_image_plan(stack, SOURCE, catalog)
    assert serving is not None and mirror is not None
    assert mirror.repository == "modelfleet-test/mirror" and REPOSITORY.fullmatch(mirror.repository)
    assert image_text([serving, mirror]) == (
        "Building 2 images, once: about 25 min in CodeBuild, 0.52 USD on top; ECR keeps them for 1.23 USD a month"
    )
    assert mirror_image_name(stack, serving, mirror).endswith(f"/modelfleet-test/mirror:{mirror.tag}")


def test_what_goes_into_one_image_is_no_part_of_the_others_tag(tmp_path: Path) -> None:
    """A newer boto3 of the mirror's would otherwise build another Ray cluster."""
    stack, catalog = loaded(tmp_path), default_catalog()
    newer = ImageSource("0" * 64, SOURCE.serving_sha256, "d" * 64)
    (before, after), (was, will) = (
        [made(stack, source, catalog) for source in (SOURCE, newer)] for made in (image_plan, mirror_image_plan)
    )
    assert before is not None and after is not None and was is not None and will is not None
    assert before.tag == after.tag and was.tag != will.tag


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"kubernetes": {"image": "r.example/serving:1"}}, "r.example/serving:1"),
        (
            {"kubernetes": {"image": "r.example/serving:1"}, "mirror": {"image": "r.example/mirror:1"}},
            "r.example/mirror:1",
        ),
        ({"mirror": {"image": "r.example/mirror:1"}}, "r.example/mirror:1"),
    ],
    ids=["the serving image that is named", "its own", "its own beside one that is made"],
)
def test_a_mirror_image_is_made_only_where_the_file_names_neither(
    tmp_path: Path, keys: dict[str, object], name: str
) -> None:
    stack, catalog = loaded(tmp_path, **keys), default_catalog()
    assert mirror_image_plan(stack, SOURCE, catalog) is None
    assert mirror_image_name(stack, image_plan(stack, SOURCE, catalog), None) == name
