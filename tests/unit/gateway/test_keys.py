"""Keys become hashes; an invalid key is reported without being shown."""

from __future__ import annotations

import pytest

from modelfleet.infra.gateway import hash_key, key_faults, render_key_map


def test_a_key_is_hashed_as_haproxy_hashes_it() -> None:
    assert hash_key("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_key_map_holds_names_and_hashes_only() -> None:
    text = render_key_map({"team-b": "sk-second-key-00001", "team-a": "sk-first-key-000001"})
    assert [line.split()[1] for line in text.splitlines()] == ["team-a", "team-b"]
    assert all(len(line.split()[0]) == 64 for line in text.splitlines())
    assert "sk-" not in text


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({}, "found no key"),
        ({"a": "short"}, "has 5 characters; allowed are 16 to 512"),
        ({"a": "x" * 513}, "has 513 characters"),
        ({"a": "sk-with blank in it"}, "has a blank"),
        ({"a": "sk-with-newline-in\n"}, "has a blank"),
        ({"a": 'sk-with-quote-in-"x'}, "has a blank"),
        ({"a": "sk-schlüssel-1234567"}, "non-ASCII"),
        ({"a b": "sk-alice-0123456789"}, "found the key name 'a b'"),
        ({"-": "sk-alice-0123456789"}, "found the key name '-'"),
        ({"a": "sk-alice-0123456789", "b": "sk-alice-0123456789"}, "the keys named a, b are the same"),
    ],
)
def test_unusable_keys_are_reported_without_being_shown(keys: dict[str, str], fault: str) -> None:
    faults = key_faults(keys)
    assert any(fault in one for one in faults), faults
    with pytest.raises(ValueError, match="key") as caught:
        render_key_map(keys)
    assert not [key for key in keys.values() if key in str(caught.value)]


def test_all_faults_come_at_once() -> None:
    assert len(key_faults({"a b": "short", "c": "sk-with blank in it"})) == 3
