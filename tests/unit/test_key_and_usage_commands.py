"""`modelfleet key` and `modelfleet usage`, with a stand-in for the pulumi command that keeps values in a mapping."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelfleet.cli import key, pulumi_run
from modelfleet.cli.usage import run_usage
from modelfleet.cli.usage_report import rows as usage_rows
from modelfleet.infra.gateway import render_key_map, with_rotated
from modelfleet.infra.gateway.keys import hash_key
from modelfleet.infra.reading.usage import read_usage
from modelfleet.serving.config.errors import InputErrors, SetupError
from tests.unit.serving.test_usage import Answer, ask, meter_of

STACK: dict[str, Any] = {
    "modelfleet:target": "local",
    "modelfleet:models": ["*"],
    "modelfleet:gateway": {"requestsPerMinute": 9},
    "modelfleet:keys": {
        "search.prod": {
            "team": "web",
            "models": ["small"],
            "expires": "2026-12-31",
            "budget": {"tokens": 5000000, "per": "day"},
        }
    },
    "modelfleet:teams": {
        "web": {
            "models": ["org/*", "small"],
            "requestsPerMinute": 50,
            "tags": {"centre": "4711"},
            "budget": {"usd": 250.5},
        },
    },
}


class Pulumi:
    """Stands in for `pulumi config`: encrypts nothing, and writes the stack's file as the real one does.

    So it leaves `{}` where the last secret was removed.
    """

    def __init__(self, root: Path) -> None:
        self.file = root / "stacks" / "Pulumi.local.yaml"
        self.used: set[str] = set()
        self.made: list[str] = []
        self.values: dict[str, dict[str, str]] = {"apiKeys": {}, "rotatedKeys": {}}
        self.file.parent.mkdir()
        self.write()

    def write(self) -> None:
        secret = {
            f"modelfleet:{section}": {name: {"secure": f"v1:{name}"} for name in values}
            for section, values in self.values.items()
            if values or section in self.used
        }
        self.file.write_text(yaml.safe_dump({"config": STACK | secret}))

    def place(self, path: str) -> tuple[str, str]:
        match = re.fullmatch(r'modelfleet:(\w+)\["([\w.-]+)"\]', path)
        assert match is not None, path
        return match[1], match[2]

    def set(self, root: Path, stack: str, path: str, value: str) -> None:
        section, name = self.place(path)
        assert self.made, "a backend of one's own encrypts for a stack that exists"
        self.used.add(section)
        self.values[section][name] = value
        self.write()

    def remove(self, root: Path, stack: str, path: str) -> None:
        section, name = self.place(path)
        del self.values[section][name]
        self.write()


@pytest.fixture
def pulumi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pulumi:
    made = Pulumi(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pulumi_run, "set_secret", made.set)
    monkeypatch.setattr(pulumi_run, "remove_config", made.remove)
    monkeypatch.setattr(pulumi_run, "make_stack", lambda root, stack: made.made.append(stack))
    monkeypatch.setattr(pulumi_run, "ask", lambda root, words: json.dumps(made.values[words[2].partition(":")[2]]))
    return made


def test_a_new_secret_is_shown_once_and_long(pulumi: Pulumi, capsys: pytest.CaptureFixture[str]) -> None:
    assert key.run_add("local", "search.prod") == 0
    secret = capsys.readouterr().out.strip()
    assert pulumi.values["apiKeys"] == {"search.prod": secret}
    assert secret.startswith("mf-") and len(secret) >= 46
    key.run_list("local")
    assert secret not in "".join(capsys.readouterr())


def test_a_rotated_key_keeps_the_hash_of_its_old_secret(pulumi: Pulumi, capsys: pytest.CaptureFixture[str]) -> None:
    key.run_add("local", "search.prod")
    old = capsys.readouterr().out.strip()
    key.run_rotate("local", "search.prod", "24h")
    new = capsys.readouterr().out.strip()
    assert old != new and old not in json.dumps(pulumi.values)
    lines = render_key_map(with_rotated(pulumi.values["apiKeys"], pulumi.values["rotatedKeys"])).splitlines()
    assert f"{hash_key(new)} search.prod" in lines
    assert any(re.fullmatch(rf"{hash_key(old)} search\.prod@\d+", line) for line in lines)
    assert key.rows(key._with_keys(Path.cwd(), "local"))[0]["secret"] == "rotated"


def test_a_second_rotation_ends_no_secret_whose_grace_runs(
    pulumi: Pulumi, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets, now = [], 1_900_000_000
    monkeypatch.setattr(key.time, "time", lambda: now)
    key.run_add("local", "search.prod")
    for grace, later in (("7d", 3600), ("30m", 3600), ("24h", 0)):
        secrets.append(capsys.readouterr().out.strip())
        key.run_rotate("local", "search.prod", grace)
        now += later
    said = capsys.readouterr()
    first, second, third, new = *secrets, said.out.strip()
    lines = render_key_map(with_rotated(pulumi.values["apiKeys"], pulumi.values["rotatedKeys"])).splitlines()
    assert {line.split()[0]: line.split()[1] for line in lines} == {
        hash_key(first): f"search.prod@{1_900_000_000 + 7 * 86400}",
        hash_key(third): f"search.prod@{1_900_007_200 + 86400}",
        hash_key(new): "search.prod",
    }, "the second ended before the last rotation"
    assert hash_key(second) not in "".join(lines)
    assert said.err.count("earlier rotation stays valid until") == 1


def test_a_revoked_key_is_out_of_the_stack_with_its_old_secret(pulumi: Pulumi) -> None:
    key.run_add("local", "search.prod")
    key.run_rotate("local", "search.prod", "7d")
    assert key.run_revoke("local", "search.prod") == 0
    assert pulumi.values == {"apiKeys": {}, "rotatedKeys": {}}
    assert key.run_add("local", "search.prod") == 0, "the file can be read again"


@pytest.mark.parametrize("name", ['a"b', "a\nb", "x" * 64, "", "a b", "@rotated", "é"])
def test_a_name_that_would_break_a_map_is_refused(pulumi: Pulumi, name: str) -> None:
    with pytest.raises(InputErrors, match="allowed are letters"):
        key.run_add("local", name)


def test_mistakes_say_what_to_do(pulumi: Pulumi) -> None:
    key.run_add("local", "search.prod")
    for act, words in (
        (lambda: key.run_add("local", "search.prod"), "modelfleet key rotate search.prod --stack local"),
        (lambda: key.run_rotate("local", "serch.prod", "1d"), "did you mean search.prod?"),
        (lambda: key.run_revoke("local", "other"), "found 'other'"),
        (lambda: key.run_rotate("local", "search.prod", "soon"), "allowed are 30m, 24h, 7d"),
    ):
        with pytest.raises(InputErrors, match=re.escape(words)):
            act()


def test_the_list_says_what_each_key_may(
    pulumi: Pulumi, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key.run_list("local", as_json=True)
    (row,) = json.loads(capsys.readouterr().out)["keys"]
    assert (row["key"], row["team"], row["models"], row["requests_per_minute"]) == ("search.prod", "web", ["small"], 9)
    assert (row["expires"], row["secret"]) == ("2026-12-31", "none")
    assert (row["team_models"], row["team_requests_per_minute"]) == (["org/*", "small"], 50)
    assert row["tags"] == {"centre": "4711"}
    assert (row["budget"], row["team_budget"]) == ({"tokens": 5000000, "usd": None, "per": "day"},
                                                   {"tokens": None, "usd": 250.5, "per": "month"})  # fmt: skip
    monkeypatch.setenv("COLUMNS", "240")
    key.run_list("local")
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "small ∩ org/*, small" in shown
        and "9 of team's 50" in shown
        and "5,000,000/day of team's 250.50" in shown
        and "centre=4711" in shown
    )


def test_a_key_is_as_limited_as_its_team(
    pulumi: Pulumi, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = yaml.safe_load(pulumi.file.read_text())
    del document["config"]["modelfleet:keys"]["search.prod"]["models"]
    pulumi.file.write_text(yaml.safe_dump(document))
    (row,) = key.rows(key._with_keys(Path.cwd(), "local"))
    assert (row["models"], row["team_models"]) == (None, ["org/*", "small"])
    monkeypatch.setenv("COLUMNS", "200")
    key.run_list("local")
    shown = capsys.readouterr().out
    assert "org/*, small" in shown and " all " not in shown


def test_a_request_that_runs_is_not_cut_short(tmp_path: Path) -> None:
    answer = Answer(3)
    meter = meter_of(tmp_path, answer)
    ask(meter)
    meter.note_open()
    (record,) = read_usage(tmp_path)
    (row,) = usage_rows([record], "key")
    assert (row["requests"], row["open"], row["cut_short"]) == (1, 1, 0)
    (row,) = usage_rows([{**record, "written": "2026-01-01T00:00:00.000000Z"}], "key")
    assert (row["open"], row["cut_short"]) == (0, 1), "its replica died"


def test_usage_adds_up_by_any_name(pulumi: Pulumi, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / ".modelfleet" / "usage" / "local"
    for name, tokens in (("alice", 3), ("bob", 4), ("alice", 5)):
        ask(meter_of(folder / "m", Answer(tokens, ended=True, aborted=tokens == 5)), key=name)
    ask(meter_of(folder / "m", Answer(6, ended=True)), key=None)
    run_usage("local", as_json=True)
    found = {row["key"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert {name: row["completion_tokens"] for name, row in found.items()} == {"alice": 8, "bob": 4, "–": 6}
    assert found["alice"] == {
        "key": "alice", "requests": 2, "open": 0, "cut_short": 1, "prompt_tokens": 10, "cached_tokens": 4,
        "completion_tokens": 8, "reasoning_tokens": 0, "usd": None,
    }  # fmt: skip
    run_usage("local", by="model", as_csv=True)
    head, row = capsys.readouterr().out.splitlines()
    assert head.startswith("model,requests,open,cut_short,prompt_tokens") and row == "org/model,4,0,1,20,8,18,0,"
    run_usage("local", by="day")
    assert "18" in capsys.readouterr().out


def test_usage_refuses_what_it_cannot_read(pulumi: Pulumi, tmp_path: Path) -> None:
    with pytest.raises(InputErrors, match="--since"):
        run_usage("local", since="yesterday")
    with pytest.raises(InputErrors, match="no folder"):
        run_usage("local", records=tmp_path / "nothing")
    pulumi.file.write_text(pulumi.file.read_text().replace("target: local", "target: kubernetes"))
    with pytest.raises(SetupError, match="--records DIR"):
        run_usage("local")
