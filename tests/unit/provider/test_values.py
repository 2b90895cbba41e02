"""Values on the plugin's wire: whole numbers, secrets, and the differences between two sets of inputs."""

from __future__ import annotations

from typing import Any

import pytest
from pulumi.provider.experimental.property_value import PropertyValue

from modelfleet.infra.provider.diff import diff_response
from modelfleet.infra.provider.resource import Autoname, Made, ResourceDef
from modelfleet.infra.provider.values import (
    UNKNOWN,
    contains_unknown,
    covers,
    differences,
    plain,
    wire,
    wire_map,
    with_secrets_of,
)


def test_whole_numbers_come_back_as_integers() -> None:
    """boto3 and Kubernetes refuse 3.0 where they need 3."""
    value = {"size": 3, "share": 0.5, "on": True, "none": None, "list": [1, "a"]}
    back = plain(wire(value))
    assert back == value
    assert [type(item) for item in (back["size"], back["share"], back["on"])] == [int, float, bool]


def test_a_secret_input_stays_the_only_secret_part_of_its_state() -> None:
    source = PropertyValue({"owner": PropertyValue("hidden").with_secret(True), "plain": PropertyValue("seen")})
    state = with_secrets_of({"tags": {"owner": "hidden", "plain": "seen"}}, {"tags": source})
    assert state["tags"] == source


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tagsAll", {"owner": "hidden-4711"}),
        ("url", "https://user:hidden-4711@host"),
        ("list", [{"deep": "hidden-4711"}]),
    ],
    ids=["copied", "inside a text", "deep"],
)
def test_an_output_that_repeats_a_secret_is_secret(key: str, value: Any) -> None:
    """`tagsAll` repeats `tags`; it was once in the state in plain text."""
    sources = {"tags": PropertyValue({"owner": PropertyValue("hidden-4711").with_secret(True)})}
    state = with_secrets_of({key: value, "arn": "arn:aws:s3:::b"}, sources)
    assert state[key].is_secret
    assert not state["arn"].is_secret


def test_a_short_secret_does_not_make_everything_secret() -> None:
    sources = {"flag": PropertyValue("a").with_secret(True)}
    state = with_secrets_of({"name": "a-bucket", "same": "a"}, sources)
    assert (state["name"].is_secret, state["same"].is_secret) == (False, True)


def test_live_values_cover_the_inputs_if_the_service_only_adds_to_them() -> None:
    assert covers({"rules": [{"id": "x"}]}, {"rules": [{"id": "x", "status": "Enabled"}], "more": 1})
    assert not covers({"rules": [{"id": "x"}]}, {"rules": []})
    assert not covers({"tags": {"a": "1"}}, {"tags": {}})


def test_differences_name_nested_paths_as_the_engine_prints_them() -> None:
    old = {"tags": {"a": "1", "b.c": "2"}, "subnetIds": ["x", "y"], "gone": 1}
    new = {"tags": {"a": "2", "b.c": "3"}, "subnetIds": ["x"], "scaling": {"max": 2}}
    assert list(differences(old, new)) == [
        ("gone", "delete"),
        ("scaling", "add"),
        ("subnetIds[1]", "delete"),
        ("tags.a", "update"),
        ('tags["b.c"]', "update"),
    ]


def test_unknowns_are_found_at_any_depth() -> None:
    assert contains_unknown({"a": [{"b": UNKNOWN}]})
    assert not contains_unknown({"a": [{"b": "known"}]})
    assert wire_map({"a": UNKNOWN})["a"].value == UNKNOWN, "the SDK's Computed cannot be marshalled"


def definition(**more: Any) -> ResourceDef[None]:
    def update(call: Any, id: str, state: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        return {}

    settings: dict[str, Any] = {"update": update, **more}
    return ResourceDef(
        token="test:x:X",
        create=lambda call, inputs: Made("x"),
        read=lambda call, id, state: state,
        delete=lambda call, id, state: None,
        **settings,
    )


def test_a_force_new_path_replaces_and_others_update_in_place() -> None:
    kind = definition(force_new=frozenset({"vpcConfig.subnetIds", "name"}))
    in_place = diff_response(kind, {"vpcConfig": {"public": True}}, {"vpcConfig": {"public": False}})
    assert list(in_place.replaces) == []
    assert list(in_place.diffs) == ["vpcConfig"]
    old, new = {"vpcConfig": {"subnetIds": ["a"]}}, {"vpcConfig": {"subnetIds": ["b"]}}
    assert list(diff_response(kind, old, new).replaces) == ["vpcConfig"]
    assert list(diff_response(kind, {"name": "a"}, {"name": UNKNOWN}).replaces) == ["name"], (
        "a replaced parent sends an unknown value, so the child is replaced with it"
    )


def test_a_type_without_update_is_replaced_by_any_change() -> None:
    assert list(diff_response(definition(update=None), {"a": 1}, {"a": 2}).replaces) == ["a"]


def test_null_and_absent_are_the_same() -> None:
    assert list(diff_response(definition(), {"a": None}, {}).diffs) == []


def test_a_kept_name_is_deleted_before_its_replacement() -> None:
    kind = definition(force_new=frozenset({"size"}), autoname=Autoname("name"))
    kept = diff_response(kind, {"name": "fixed", "size": 1}, {"name": "fixed", "size": 2})
    assert kept.deleteBeforeReplace, "two resources with one name cannot exist together"
    assert not diff_response(kind, {"name": "a-1", "size": 1}, {"name": "b-2", "size": 2}).deleteBeforeReplace


def test_a_custom_comparison_decides_for_its_input() -> None:
    kind = definition(same={"policy": lambda old, new: old.strip() == new.strip()})
    assert list(diff_response(kind, {"policy": "{} "}, {"policy": "{}"}).diffs) == []
