"""`modelfleet plan`: what a stack will be and what it costs; nothing is made."""

from __future__ import annotations

from pathlib import Path

from cli import output
from cli.plan_json import plan_json
from cli.plan_table import plan_table, summary
from infra.planning import Plan
from infra.stack import load_stack
from infra.workspace import make_plan
from serving.config.errors import EXIT_INPUT, Finding, InputErrors, errors_in


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
    """Plan a stack and print it in the form that was asked for; returns the exit code."""
    root = Path.cwd()
    _refuse_together({"--json": as_json, "--html": html is not None, "--markdown": markdown})
    if markdown and diff is None:
        raise InputErrors([Finding("--markdown", 0, "", "goes with --diff REV")])
    plan = make_plan(root, stack, network=True, deploying=False)
    output.show_findings(plan.notices)
    refused = _preflight(root, plan) if preflight else []
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
    """Each of these is another form of the one result."""
    given = [name for name, is_given in options.items() if is_given]
    if len(given) > 1:
        raise InputErrors([Finding(given[1], 0, "", f"does not go with {given[0]}; choose one form of output")])


def _preflight(root: Path, plan: Plan) -> list[Finding]:
    """What AWS itself would refuse."""
    if plan.target != "eks":
        raise InputErrors([Finding("--preflight", 0, "", f"asks AWS, but stack {plan.stack} has target {plan.target}")])
    from infra.aws.facts_boto3 import run_preflight

    with output.status("Asking AWS for the account, zones, offerings and quotas"):
        found = run_preflight(plan, place=load_stack(root, plan.stack).finding)
    output.show_findings(found)
    return found


def _pin(root: Path, plan: Plan) -> None:
    from cli.plan_pin import pin

    lines = pin(root, plan)
    for line in lines or ["every pool names its instance types already"]:
        output.say(line)


def _show_diff(root: Path, revision: str, plan: Plan, *, as_json: bool, markdown: bool) -> None:
    from cli import plan_diff

    difference = plan_diff.difference(root, revision, plan)
    if as_json:
        output.show_json(plan_diff.as_json(difference))
    else:
        output.say(plan_diff.as_markdown(difference) if markdown else plan_diff.as_text(difference), stderr=False)


def _write_html(plan: Plan, path: Path) -> None:
    from cli.plan_html import plan_page

    try:
        path.write_text(plan_page(plan), encoding="utf-8")
    except OSError as error:
        raise InputErrors([Finding(str(path), 0, "", f"cannot be written: {error.strerror or error}")]) from None
    output.say(f"wrote {path}, {path.stat().st_size / 1024:.0f} KiB; it needs no network")


def _next_step(plan: Plan) -> str:
    if plan.target == "local":
        return f"modelfleet up --stack {plan.stack}"
    return f"pulumi up -s {plan.stack}"
