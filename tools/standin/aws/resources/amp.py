"""Amazon Managed Prometheus. Force-new from terraform-provider-aws internal/service/amp."""

from __future__ import annotations

import time
from typing import Any

from modelfleet.infra.provider import Call, Made, NotDone, Props, Refused, ResourceDef
from tools.standin.aws import making
from tools.standin.aws.session import Aws


def _client(call: Call[Aws], props: Props) -> Any:
    return making.client(call, "amp", props)


def _retag(call: Call[Aws], state: Props, inputs: Props) -> Props:
    wanted, had = call.session.tags(inputs), state.get("tagsAll") or {}
    amp, arn = _client(call, inputs), state["arn"]
    if gone := sorted(set(had) - set(wanted)):
        amp.untag_resource(resourceArn=arn, tagKeys=gone)
    if changed := {name: text for name, text in wanted.items() if had.get(name) != text}:
        amp.tag_resource(resourceArn=arn, tags=changed)
    return {"tagsAll": wanted}


def _made(call: Call[Aws], inputs: Props, id: str, **outputs: Any) -> Made:
    return Made(id, {**outputs, "region": making.region(call, inputs), "tagsAll": call.session.tags(inputs)})


# --- workspace -------------------------------------------------------------------------------------------


def _create_workspace(call: Call[Aws], inputs: Props) -> Made:
    amp = _client(call, inputs)
    alias = {"alias": inputs["alias"]} if inputs.get("alias") else {}
    id = amp.create_workspace(**alias, tags=call.session.tags(inputs))["workspaceId"]
    found = amp.describe_workspace(workspaceId=id)["workspace"]
    _require_no_logging(call, id, inputs)
    return _made(call, inputs, id, arn=found["arn"], prometheusEndpoint=found["prometheusEndpoint"])


def _require_no_logging(call: Call[Aws], id: str, props: Props) -> None:
    """The provider asks whenever it reads a workspace, and once it made one."""
    amp = _client(call, props)
    answer = making.unless_absent(lambda: amp.describe_logging_configuration(workspaceId=id))
    if answer and answer.get("loggingConfiguration"):
        raise NotDone("aws:amp/workspace:Workspace: a logging configuration")


def _read_workspace(call: Call[Aws], id: str, state: Props) -> Props | None:
    answer = making.unless_absent(lambda: _client(call, state).describe_workspace(workspaceId=id))
    if not answer:
        return None
    _require_no_logging(call, id, state)
    found = answer["workspace"]
    alias = {"alias": found["alias"]} if found.get("alias") else {}
    return {**state, **alias, **making.live_tags(call, state, found.get("tags", {}))}


def _update_workspace(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    if inputs.get("alias") != state.get("alias"):
        raise NotDone("aws:amp/workspace:Workspace: another alias")
    return _retag(call, state, inputs)


WORKSPACE = ResourceDef(
    token="aws:amp/workspace:Workspace",
    inputs=frozenset({"alias", "region", "tags"}),
    outputs=frozenset({"arn", "prometheusEndpoint", "region", "tagsAll"}),
    force_new=frozenset({"region"}),
    create=_create_workspace,
    read=_read_workspace,
    update=_update_workspace,
    delete=lambda call, id, state: making.unless_absent(lambda: _client(call, state).delete_workspace(workspaceId=id)),
)

# --- rules -----------------------------------------------------------------------------------------------


def _named(props: Props) -> Props:
    return {"workspaceId": props["workspaceId"], "name": props["name"]}


def _create_rules(call: Call[Aws], inputs: Props) -> Made:
    data, tags = inputs["data"].encode(), call.session.tags(inputs)
    made = _client(call, inputs).create_rule_groups_namespace(**_named(inputs), data=data, tags=tags)
    return _made(call, inputs, made["arn"], arn=made["arn"])


def _read_rules(call: Call[Aws], id: str, state: Props) -> Props | None:
    answer = making.unless_absent(lambda: _client(call, state).describe_rule_groups_namespace(**_named(state)))
    if not answer:
        return None
    found = answer["ruleGroupsNamespace"]
    live = {"data": found["data"].decode(), "name": found["name"]}
    return {**state, **live, **making.live_tags(call, state, found.get("tags", {}))}


def _update_rules(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    if inputs["data"] != state["data"]:
        _client(call, inputs).put_rule_groups_namespace(**_named(inputs), data=inputs["data"].encode())
    return _retag(call, state, inputs)


RULES = ResourceDef(
    token="aws:amp/ruleGroupNamespace:RuleGroupNamespace",
    inputs=frozenset({"data", "name", "region", "tags", "workspaceId"}),
    required=frozenset({"data", "name", "workspaceId"}),
    outputs=frozenset({"arn", "region", "tagsAll"}),
    force_new=frozenset({"name", "region", "workspaceId"}),
    create=_create_rules,
    read=_read_rules,
    update=_update_rules,
    delete=lambda call, id, state: making.unless_absent(
        lambda: _client(call, state).delete_rule_groups_namespace(**_named(state))
    ),
)

# --- alert manager ---------------------------------------------------------------------------------------


def _create_definition(call: Call[Aws], inputs: Props) -> Made:
    workspace = inputs["workspaceId"]
    _client(call, inputs).create_alert_manager_definition(workspaceId=workspace, data=inputs["definition"].encode())
    return Made(workspace, {"region": making.region(call, inputs)})


def _read_definition(call: Call[Aws], id: str, state: Props) -> Props | None:
    answer = making.unless_absent(lambda: _client(call, state).describe_alert_manager_definition(workspaceId=id))
    return answer and {**state, "definition": answer["alertManagerDefinition"]["data"].decode()}


def _update_definition(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    _client(call, inputs).put_alert_manager_definition(workspaceId=id, data=inputs["definition"].encode())
    return {}


DEFINITION = ResourceDef(
    token="aws:amp/alertManagerDefinition:AlertManagerDefinition",
    inputs=frozenset({"definition", "region", "workspaceId"}),
    required=frozenset({"definition", "workspaceId"}),
    outputs=frozenset({"region"}),
    force_new=frozenset({"region", "workspaceId"}),
    create=_create_definition,
    read=_read_definition,
    update=_update_definition,
    delete=lambda call, id, state: making.unless_absent(
        lambda: _client(call, state).delete_alert_manager_definition(workspaceId=id)
    ),
)

# --- scraper ---------------------------------------------------------------------------------------------


def _create_scraper(call: Call[Aws], inputs: Props) -> Made:
    source, destination = inputs["source"].get("eks"), inputs["destination"].get("amp")
    if source is None or destination is None:
        raise NotDone("aws:amp/scraper:Scraper: another source than eks, or another destination than amp")
    groups = {"securityGroupIds": source["securityGroupIds"]} if source.get("securityGroupIds") else {}
    eks = {"clusterArn": source["clusterArn"], "subnetIds": source["subnetIds"], **groups}
    made = _client(call, inputs).create_scraper(
        **({"alias": inputs["alias"]} if inputs.get("alias") else {}),
        source={"eksConfiguration": eks},
        destination={"ampConfiguration": {"workspaceArn": destination["workspaceArn"]}},
        scrapeConfiguration={"configurationBlob": inputs["scrapeConfiguration"].encode()},
        tags=call.session.tags(inputs),
    )
    found = _active(call, inputs, made["scraperId"])
    return _made(call, inputs, found["scraperId"], arn=found["arn"], roleArn=found["roleArn"])


def _active(call: Call[Aws], props: Props, id: str) -> Any:
    """The scraper once AWS has made it, which takes minutes."""
    while True:
        found = _client(call, props).describe_scraper(scraperId=id)["scraper"]
        status = found["status"]["statusCode"]
        if status == "ACTIVE":
            return found
        if status.endswith("_FAILED"):
            raise Refused(f"waiting for scraper {id}: unexpected state '{status}', wanted target 'ACTIVE'")
        time.sleep(making.POLL_S)


def _read_scraper(call: Call[Aws], id: str, state: Props) -> Props | None:
    answer = making.unless_absent(lambda: _client(call, state).describe_scraper(scraperId=id))
    if not answer:
        return None
    found = answer["scraper"]
    live = {"scrapeConfiguration": found["scrapeConfiguration"]["configurationBlob"].decode()}
    if found.get("alias"):
        live["alias"] = found["alias"]
    return {**state, **live, **making.live_tags(call, state, found.get("tags", {}))}


def _update_scraper(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    if any(inputs.get(key) != state.get(key) for key in ("alias", "scrapeConfiguration")):
        _client(call, inputs).update_scraper(
            scraperId=id,
            **({"alias": inputs["alias"]} if inputs.get("alias") else {}),
            scrapeConfiguration={"configurationBlob": inputs["scrapeConfiguration"].encode()},
        )
        _active(call, inputs, id)
    return _retag(call, state, inputs)


SCRAPER = ResourceDef(
    token="aws:amp/scraper:Scraper",
    inputs=frozenset({"alias", "destination", "region", "scrapeConfiguration", "source", "tags", "timeouts"}),
    required=frozenset({"destination", "scrapeConfiguration", "source"}),
    outputs=frozenset({"arn", "region", "roleArn", "tagsAll"}),
    force_new=frozenset({"destination", "region", "source"}),
    create=_create_scraper,
    read=_read_scraper,
    update=_update_scraper,
    delete=lambda call, id, state: making.unless_absent(lambda: _client(call, state).delete_scraper(scraperId=id)),
)

INVOKES = ()
RESOURCES = (WORKSPACE, RULES, DEFINITION, SCRAPER)
