"""`modelfleet plan`: what a stack will be and what it costs; makes nothing."""

from __future__ import annotations

from pathlib import Path

from modelfleet.cli import output
from modelfleet.cli.plan_json import plan_json
from modelfleet.cli.plan_table import plan_table, summary
from modelfleet.infra.planning import Plan
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.serving.config.errors import EXIT_INPUT, Finding, InputErrors, errors_in


def run_plan(
    stack: str,
    *,
    as_json: bool = False,
    html: Path | None = None,
    diff: str | None = None,
    markdown: bool = False,
    pin: bool = False,
    preflight: bool = False,
) -> int:
    """Plan a stack and print it in the requested form; returns the exit code."""
    root = Path.cwd()
    _refuse_together({"--json": as_json, "--html": html is not None, "--markdown": markdown})
    if markdown and diff is None:
        raise InputErrors([Finding("--markdown", 0, "", "works only with --diff REV; add it")])
    plan = make_plan(root, stack, network=True, deploying=False)
    output.show_findings(plan.notices)
    refused = _preflight(plan) if preflight else []
    if pin:
        _pin(root, plan)
    if diff is not None:
        _show_diff(root, diff, plan, as_json=as_json, markdown=markdown)
    elif as_json:
        output.show_json(plan_json(plan))
    elif html is not None:
        _write_html(plan, html)
    else:
        output.show(plan_table(plan))
    output.say(f"{summary(plan)} Next: {_next_step(plan)}")
    return EXIT_INPUT if errors_in(refused) else 0


def _refuse_together(options: dict[str, bool]) -> None:
    """Raises `InputErrors` for more than one form of output."""
    given = [name for name, is_given in options.items() if is_given]
    if len(given) > 1:
        raise InputErrors([Finding(given[1], 0, "", f"cannot be combined with {given[0]}; choose one form of output")])


def _preflight(plan: Plan) -> list[Finding]:
    """What AWS itself would refuse."""
    if not plan.target.makes_cluster:
        raise InputErrors(
            [Finding("--preflight", 0, "", f"asks AWS, but stack {plan.stack} has target {plan.target}; leave it out")]
        )
    from modelfleet.infra.aws.facts_boto3 import run_preflight

    with output.status("Asking AWS for the account, zones, offerings and quotas"):
        found = run_preflight(plan)
    output.show_findings(found)
    return found


def _pin(root: Path, plan: Plan) -> None:
    from modelfleet.cli.plan_pin import pin

    lines = pin(root, plan)
    for line in lines or ["every pool already names its instance types"]:
        output.say(line)


def _show_diff(root: Path, revision: str, plan: Plan, *, as_json: bool, markdown: bool) -> None:
    from modelfleet.cli import plan_diff

    difference = plan_diff.difference(root, revision, plan)
    if as_json:
        output.show_json(plan_diff.as_json(difference))
    else:
        output.say(plan_diff.as_markdown(difference) if markdown else plan_diff.as_text(difference), stderr=False)


def _write_html(plan: Plan, path: Path) -> None:
    from modelfleet.cli.page import write_page
    from modelfleet.cli.plan_html import plan_page

    write_page(plan_page(plan), path)
    output.say(f"wrote {path}, {path.stat().st_size / 1024:.0f} KiB; it needs no network")


def _next_step(plan: Plan) -> str:
    if plan.stops_up:
        return "what is missing; `modelfleet up` stops there"
    if plan.target.on_this_machine:
        return f"modelfleet up --stack {plan.stack}"
    return f"pulumi up -s {plan.stack}"
