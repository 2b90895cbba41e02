"""The stack's rules in the real promtool: which series fire which alert, and which do not."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from modelfleet.cli.main import app
from modelfleet.infra.catalog.slo import latency_histograms
from modelfleet.infra.kubernetes.manifests.mirror import mirror_job, mirrored
from modelfleet.infra.observability import rule_groups
from modelfleet.infra.observability.rules import MIRROR_JOBS, RESPONSES
from modelfleet.infra.planning import Plan
from tests.unit.observability.models import CHAT, watched, with_slo
from tests.unit.planning.builders import model, planned, pool, stack

SLUG = CHAT.replace("/", "--")
SLO = {"ttft_p95_ms": 800, "tpot_p95_ms": 60, "availability": 0.999}
HOST = "llm.example.com"
AT = f'namespace="modelfleet-test",application="{SLUG}"'
#: Requests a minute.
LOAD = 600
NS = 'namespace="modelfleet-test"'
JOB = 'namespace="modelfleet-test-mirror",job_name="mirror-qwen-1"'
DAY = 24 * 3600
HEALTHY = {
    f"ray_serve_application_status{{{AT}}}": "6",
    f"ray_serve_deployment_replica_healthy{{{AT}}}": "2",
    f"ray_serve_autoscaling_target_replicas{{{AT}}}": "2",
    f"ray_vllm_num_requests_running{{{AT}}}": "8",
    f"ray_vllm_num_requests_waiting{{{AT}}}": "1",
    f'ray_cluster_pending_nodes{{{NS},node_type="l4"}}': "0",
    f"kube_job_status_start_time{{{JOB}}}": "0",
    f"kube_job_status_active{{{JOB}}}": "0",
    f"kube_job_status_succeeded{{{JOB}}}": "1",
    # A copy that came at its second try.
    f'kube_job_status_failed{{{JOB},reason=""}}': "1",
    'kube_node_spec_taint{node="n",key="nvidia.com/gpu",value="true",effect="NoSchedule"}': "1",
    'kube_node_status_allocatable{node="n",resource="nvidia_com_gpu",unit="integer"}': "1",
    f'probe_ssl_earliest_cert_expiry{{instance="https://{HOST}/v1"}}': f"{60 * DAY}",
    'certmanager_certificate_expiration_timestamp_seconds{namespace="elsewhere"}': f"{DAY}",
    f'certmanager_certificate_expiration_timestamp_seconds{{namespace="certs",exported_{NS}}}': f"{60 * DAY}",
}
#: Loops of one controller, some 60 a minute.
LOOPS = f'ray_serve_controller_num_control_loops{{{NS},actor_id="a",WorkerId="1"}}'


@pytest.fixture(scope="module")
def plan() -> Plan:
    """With everything that an alert may be about: goals, a GPU, copies, and a name with a certificate."""
    certificate = "arn:aws:acm:us-east-1:123456789012:certificate/1"
    door = {"expose": "internet", "hostname": HOST, "certificate": certificate}
    return watched(with_slo(SLO), auth="keys", secrets=["apiKeys"], gateway=door)


@dataclass(frozen=True)
class Phase:
    """Minutes with the same share of bad requests (0 to 1) and the same seconds that they take."""

    minutes: int
    bad: float = 0.0


def counter(phases: Iterable[Phase], of: Any) -> str:
    """promtool's notation of a counter that grows by `of(phase)` a minute."""
    value, words = 0.0, []
    for phase in phases:
        step = of(phase)
        words.append(f"{value:g}+{step:g}x{phase.minutes - 1}")
        value += step * phase.minutes
    return " ".join(words)


def latency(name: str, phases: Iterable[Phase], fast_s: float, slow_s: float) -> dict[str, str]:
    """A histogram as Ray's scrape has it: good requests take `fast_s`, bad ones `slow_s`."""
    histogram, phases = latency_histograms()[name], list(phases)

    def below(bound: float) -> Any:
        return lambda phase: LOAD * ((1 - phase.bad) * (fast_s <= bound) + phase.bad * (slow_s <= bound))

    series = {
        f'{histogram.metric}_bucket{{{AT},le="{float(bound)}"}}': counter(phases, below(bound))
        for bound in histogram.bounds_s
    }
    return {**series, f"{histogram.metric}_count{{{AT}}}": counter(phases, lambda phase: LOAD)}


def responses(phases: Iterable[Phase]) -> dict[str, str]:
    phases = list(phases)
    at = f'namespace="modelfleet-test",proxy="model.{SLUG}"'
    return {
        f'{RESPONSES}{{{at},code="2xx"}}': counter(phases, lambda phase: LOAD * (1 - phase.bad)),
        f'{RESPONSES}{{{at},code="5xx"}}': counter(phases, lambda phase: LOAD * phase.bad),
    }


Alerts = dict[str, list[dict[str, str]]]


def fired(promtool: Path, folder: Path, plan: Plan, series: Mapping[str, str], *minutes: int) -> list[Alerts]:
    """The alerts at each minute: their labels, by name. promtool says what it got where it expected something else."""
    rules = rule_groups(plan)
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    names = sorted({rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule})
    nobody = [{"exp_labels": {"nobody": "has this"}}]
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [
                    {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": nobody}
                    for minute in minutes
                    for name in names
                ],
            }
        ],
    }
    (folder / "test.yaml").write_text(yaml.safe_dump(test))
    done = subprocess.run([promtool, "test", "rules", "test.yaml"], cwd=folder, capture_output=True, text=True)
    return _got(done.stdout + done.stderr, names, minutes)


def _got(said: str, names: list[str], minutes: Sequence[int]) -> list[Alerts]:
    """promtool's `alertname: …, time: …, exp:[…], got:[ 0: Labels:{alertname="…", …} Annotations:{…} ]`."""
    all_found: dict[int, Alerts] = {minute: {name: [] for name in names} for minute in minutes}
    parts = said.split("alertname: ")[1:]
    assert len(parts) == len(names) * len(minutes), said
    for part in parts:
        hours, rest = re.search(r"time: (?:(\d+)h)?(?:(\d+)m)?", part).groups("0")  # type: ignore[union-attr]
        found, got = all_found[int(hours) * 60 + int(rest)], part[part.index("got:") :]
        for line in got.splitlines():
            if "Labels:{" in line:
                text = line[line.index("Labels:{") + 8 :].rstrip("}")
                labels = dict(one.split("=", 1) for one in shlex.split(text.replace(", ", " ")))
                found[labels["alertname"]].append(labels)
    return [all_found[minute] for minute in minutes]


def windows(found: Alerts, alert: str) -> set[str]:
    return {one["window"] for one in found[alert]}


GOOD = [Phase(300)]
#: When alerts are looked for that take longer than most: those of faults that begin at minute 29.
MINUTE = {"ModelfleetMirrorLate": 100, "ModelfleetCertificateEnds": 100}


def everything(*, ttft: Iterable[Phase] = GOOD, tpot: Iterable[Phase] = GOOD, answers: Iterable[Phase] = GOOD,
               **others: str) -> dict[str, str]:  # fmt: skip
    """All series of a stack that is well, but for what is named."""
    levels = {name: f"{value}x300" for name, value in HEALTHY.items()}
    levels[LOOPS] = "0+60x300"
    levels |= {next(one for one in levels if key in one): value for key, value in others.items()}
    return {
        **latency("ttft", ttft, 0.2, 5.0),
        **latency("tpot", tpot, 0.02, 0.4),
        **responses(answers),
        **levels,
    }


def test_promtool_takes_the_rules(promtool: Path, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule_groups(plan)))
    done = subprocess.run([promtool, "check", "rules", "--lint=all", tmp_path / "rules.yaml"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_a_stack_that_is_well_fires_nothing(promtool: Path, plan: Plan, tmp_path: Path) -> None:
    """Within the goals: 4 % of the answers begin late, 0.05 % fail."""
    well = everything(ttft=[Phase(300, 0.04)], answers=[Phase(300, 0.0005)])
    (found,) = fired(promtool, tmp_path, plan, well, 290)
    assert not any(found.values())


def test_a_slow_replica_pages_for_slow_first_tokens_alone(promtool: Path, plan: Plan, tmp_path: Path) -> None:
    """All answers begin after 5 s, from the hundredth minute on: 72 % of an hour are reached 44 minutes later."""
    slow = everything(ttft=[Phase(100), Phase(200, 1.0)])
    early, late = fired(promtool, tmp_path, plan, slow, 130, 150)
    assert "1h" not in windows(early, "ModelfleetSlowFirstToken") and "1h" in windows(late, "ModelfleetSlowFirstToken")
    assert not late["ModelfleetSlowTokens"] and not late["ModelfleetUnavailable"]
    (page,) = [one for one in late["ModelfleetSlowFirstToken"] if one["window"] == "1h"]
    assert (page["severity"], page["model"], page["stack"], page["objective"]) == ("page", CHAT, "test", "ttft")


def test_an_alert_ends_soon_after_the_fault_does(promtool: Path, plan: Plan, tmp_path: Path) -> None:
    """The short window; with the long one alone it would page for most of an hour."""
    over = everything(answers=[Phase(100), Phase(30, 0.5), Phase(170)])
    during, after = fired(promtool, tmp_path, plan, over, 128, 138)
    assert "1h" in windows(during, "ModelfleetUnavailable")
    assert "1h" not in windows(after, "ModelfleetUnavailable")


def test_a_short_fault_within_the_budget_wakes_nobody(promtool: Path, plan: Plan, tmp_path: Path) -> None:
    """Two slow minutes of 100: the short window alone would page for them."""
    blip = everything(ttft=[Phase(100), Phase(2, 1.0), Phase(98)])
    (found,) = fired(promtool, tmp_path, plan, blip, 103)
    assert not found["ModelfleetSlowFirstToken"]


def test_slow_tokens_are_their_own_alert(promtool: Path, plan: Plan, tmp_path: Path) -> None:
    (found,) = fired(promtool, tmp_path, plan, everything(tpot=[Phase(300, 0.9)]), 60)
    assert "1h" in windows(found, "ModelfleetSlowTokens") and not found["ModelfleetSlowFirstToken"]


def test_a_budget_that_burns_slowly_makes_a_ticket(promtool: Path, plan: Plan, tmp_path: Path) -> None:
    """8 % late, where 5 % may be: no page, but the three days know it."""
    (found,) = fired(promtool, tmp_path, plan, everything(ttft=[Phase(300, 0.08)]), 120)
    assert [one["severity"] for one in found["ModelfleetSlowFirstToken"]] == ["ticket"]


def test_no_share_of_bad_requests_is_below_zero(promtool: Path, tmp_path: Path) -> None:
    """A live stack began with -0.08: rate() extrapolates each series by itself, here the good ones further back."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule_groups(watched(with_slo({"tpot_p95_ms": 150})))))
    metric = latency_histograms()["tpot"].metric
    series = {f'{metric}_bucket{{{AT},le="0.15"}}': "18 36 44 68", f"{metric}_count{{{AT}}}": "20 38 46 72"}
    labels = f'stack="test",model="{CHAT}",objective="tpot"'
    share = {"labels": f"modelfleet:slo_bad:ratio_rate1h{{{labels}}}", "value": 0}
    asked = {"expr": "modelfleet:slo_bad:ratio_rate1h", "eval_time": "45s", "exp_samples": [share]}
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "15s", "input_series": inputs, "promql_expr_test": [asked]}
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": "15s", "tests": [test]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(document))
    done = subprocess.run([promtool, "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_requests_fire_nothing(promtool: Path, plan: Plan, tmp_path: Path) -> None:
    """At night a share of nothing is not a number, and no alert."""
    silent = {name: values if "+" not in values else "7+0x299" for name, values in everything().items()}
    (found,) = fired(promtool, tmp_path, plan, silent, 120)
    assert not any(found.values())


@pytest.mark.parametrize(
    ("series", "alert"),
    [
        ({"application_status": "6x29 1x200"}, "ModelfleetModelFailed"),
        ({"application_status": "6x29 2x200"}, "ModelfleetModelFailed"),
        ({"replica_healthy": "2x29 0x200"}, "ModelfleetNoReplica"),
        ({"replica_healthy": "2x29 _x200"}, "ModelfleetNoReplica"),
        ({"target_replicas": "2x29 4x200"}, "ModelfleetReplicasMissing"),
        ({"requests_waiting": "1x29 30x200"}, "ModelfleetRequestsWait"),
        ({"application_status": "6x29 _x200"}, "ModelfleetRayUnseen"),
        # In the same pod; and in a new one, whose controller has another series.
        ({"num_control_loops": "0+60x49 _x4 0+60x200"}, "ModelfleetHeadRestarted"),
        ({"cluster_pending_nodes": "0x29 2x200"}, "ModelfleetNodesPending"),
        (
            {
                "job_status_start_time": "1740x300",
                "job_status_active": "_x29 1x200",
                "job_status_succeeded": "0x300",
                "job_status_failed": "0x300",
            },
            "ModelfleetMirrorLate",
        ),
        ({"job_status_succeeded": "1x29 0x200", "job_status_failed": "0x29 3x200"}, "ModelfleetMirrorLate"),
        ({"node_status_allocatable": "1x29 0x200"}, "ModelfleetNodeWithoutGpu"),
        ({"node_status_allocatable": "1x29 _x200"}, "ModelfleetNodeWithoutGpu"),
        ({"earliest_cert_expiry": f"{60 * DAY}x29 {13 * DAY}x200"}, "ModelfleetCertificateEnds"),
        ({f"exported_{NS}": f"{60 * DAY}x29 {13 * DAY}x200"}, "ModelfleetCertificateEnds"),
    ],
)
def test_each_fault_fires_its_alert(
    promtool: Path, plan: Plan, tmp_path: Path, series: dict[str, Any], alert: str
) -> None:
    before, found = fired(promtool, tmp_path, plan, everything(**series), 25, MINUTE.get(alert, 75))
    assert len(found[alert]) == 1, found
    others = {name for name, labels in found.items() if labels} - {alert, "ModelfleetReplicasMissing"}
    assert not others, found
    assert not before[alert]


def test_a_head_that_began_again_is_forgotten_after_half_an_hour(promtool: Path, plan: Plan, tmp_path: Path) -> None:
    """A new pod's controller is another series; the old one's ends."""
    old, new = everything(num_control_loops="0+60x100"), LOOPS.replace('"a"', '"b"')
    early, late = fired(promtool, tmp_path, plan, {**old, new: "_x102 0+60x200"}, 115, 145)
    assert len(early["ModelfleetHeadRestarted"]) == 1 and not late["ModelfleetHeadRestarted"]


def test_names_of_mirror_jobs_are_those_that_the_rule_asks_for(plan: Plan) -> None:
    made = [mirror_job(plan, model, mirror)["metadata"] for model, mirror in mirrored(plan)]
    assert made and all(re.fullmatch(MIRROR_JOBS, one["name"]) for one in made)
    assert all(f'namespace="{one["namespace"]}"' in JOB for one in made)


def test_a_stack_without_cluster_gpu_or_certificate_has_no_alerts_of_them() -> None:
    def alerts(plan: Plan) -> set[str]:
        return {rule["alert"] for rule in rule_groups(plan)["groups"][-1]["rules"]}

    plain = alerts(watched(with_slo(SLO)))
    assert "ModelfleetCertificateEnds" not in plain and {"ModelfleetMirrorLate", "ModelfleetNodeWithoutGpu"} <= plain
    here = planned([model(CHAT, "CPU")], stack(pool("cpu", "CPU"), target="local", region=None, accountId=None))
    assert alerts(here) == {"ModelfleetRayUnseen", "ModelfleetGatewayUnseen", "ModelfleetHeadRestarted"}


@pytest.mark.parametrize("least", [0, 1])
def test_a_model_that_may_sleep_has_no_replica_by_right(least: int) -> None:
    rules = rule_groups(watched(model(CHAT, "L4", replicas=(least, 2))))["groups"][0]["rules"]
    assert ("ModelfleetNoReplica" in {rule["alert"] for rule in rules}) is bool(least)


def test_every_runbook_is_a_command_that_there_is(plan: Plan) -> None:
    runbooks = {
        rule["annotations"]["runbook"]
        for group in rule_groups(plan)["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert len(runbooks) == 2
    for runbook in runbooks:
        program, command, *arguments = shlex.split(runbook)
        assert program == "modelfleet" and command in get_command(app).commands  # type: ignore[attr-defined]
        said = CliRunner().invoke(app, [command, *arguments, "--help"])
        assert said.exit_code == 0, said.output
