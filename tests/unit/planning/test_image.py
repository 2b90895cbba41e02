"""The serving image of a stack: named, or made in its own account, with its name and its price in the plan."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from modelfleet.cli.plan_table import image_text
from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning.image import image_findings, image_name, image_plan
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
    assert image_text([made]) == "Building the image, once: about 25 min in CodeBuild, 0.50 USD on top"
    registry = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com"
    assert image_name(stack, made) == f"{registry}/modelfleet-test/serving:{made.tag}"
    assert image_findings(stack, made) == []


def test_a_price_that_nobody_knows_is_a_question_mark(tmp_path: Path) -> None:
    made = image_plan(loaded(tmp_path, region="eu-west-1"), SOURCE, default_catalog())
    assert made is not None
    assert image_text([made]).endswith("? USD on top")


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
