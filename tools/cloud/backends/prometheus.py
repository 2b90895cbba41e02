"""What Amazon Managed Service for Prometheus does and moto does not: scrapers, alert managers, and what it refuses.

The API and its limits: https://docs.aws.amazon.com/prometheus/latest/APIReference/API_Operations.html. What a scraper
takes: https://docs.aws.amazon.com/prometheus/latest/userguide/AMP-collector-how-to.html. Where AWS names no words for a
refusal the words are ours.
"""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import yaml
from moto.amp.models import PrometheusServiceBackend, amp_backends
from moto.ec2.models import ec2_backends
from moto.sns.models import sns_backends

from tools.cloud.answers import Answer, Error, as_json
from tools.cloud.backends.eks import Eks
from tools.cloud.backends.parts import Item, now
from tools.cloud.callers import ACCOUNT, PARTITION
from tools.cloud.evaluator import as_list
from tools.cloud.wire import Call

ROLE: Final = "aws-service-role/scraper.aps.amazonaws.com/AWSServiceRoleForAmazonPrometheusScraper"
#: https://docs.aws.amazon.com/eks/latest/userguide/access-policy-permissions.html
POLICY: Final = f"arn:{PARTITION}:eks::aws:cluster-access-policy/AmazonPrometheusScraperPolicy"
#: In seconds; a scraper takes no shorter interval.
LEAST_INTERVAL_S: Final = 30
_IP: Final = re.compile(r"\d+(\.\d+){3}(:\d+)?")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600}
#: Of a job's keys that find targets those that a scraper takes.
_FINDS: Final = ("kubernetes_sd_configs", "static_configs")
#: In a region, of one account.
MOST_SCRAPERS: Final = 10
#: AWS puts it on a workspace that a scraper fills.
#: terraform-provider-aws website/docs/r/prometheus_scraper.html.markdown
SCRAPED_TAG: Final = "AMPAgentlessScraper"


class Prometheus:
    """Scrapers by id, and definitions of alert managers by workspace."""

    def __init__(self, eks: Eks) -> None:
        self._eks = eks
        self._scrapers: dict[str, Item] = {}
        self._definitions: dict[str, Item] = {}
        self._operations: Mapping[str, Callable[[Call], Item]] = {
            "CreateScraper": self._create_scraper,
            "DescribeScraper": lambda call: {"scraper": self._scraper(call)},
            "ListScrapers": lambda _call: {"scrapers": list(self._scrapers.values())},
            "UpdateScraper": self._update_scraper,
            "DeleteScraper": self._delete_scraper,
            "CreateAlertManagerDefinition": self._create_definition,
            "PutAlertManagerDefinition": self._put_definition,
            "DescribeAlertManagerDefinition": lambda call: {"alertManagerDefinition": self._definition(call)},
            "DeleteAlertManagerDefinition": self._delete_definition,
        }

    def answer(self, call: Call) -> Answer | None:
        """The answer to a call that moto does not know; None if moto answers. Raises `Error` as AWS refuses."""
        if call.operation in ("CreateRuleGroupsNamespace", "PutRuleGroupsNamespace"):
            self._check_rules(call)
        if call.operation == "DeleteWorkspace":
            self._definitions.pop(str(call.params["workspaceId"]), None)
        if call.operation in self._operations:
            return as_json(self._operations[call.operation](call), 200 if call.method == "GET" else 202)
        return self._tagging(call)

    def values(self, call: Call) -> Mapping[str, Any]:
        """Cluster, workspace and service-linked role of a scraper that is asked for, or that is there."""
        found = self._scrapers.get(str(call.params.get("scraperId"))) or call.params
        role = f"arn:{PARTITION}:iam::{ACCOUNT}:role/{ROLE}"
        cluster = found.get("source", {}).get("eksConfiguration", {}).get("clusterArn", "")
        workspace = found.get("destination", {}).get("ampConfiguration", {}).get("workspaceArn", "")
        names = {"clusterArn": cluster, "clusterName": _last(cluster), "workspaceArn": workspace}
        return {**names, "scraperRole": found.get("roleArn", role), "resourceTags": self._tags(call.region)}

    def _tags(self, region: str) -> dict[str, dict[str, str]]:
        """The tags of all that a policy can name, by ARN."""
        backend: PrometheusServiceBackend = amp_backends[ACCOUNT][region]
        spaces = list(backend.workspaces.values())
        arns = [
            *(one.arn for one in spaces),
            *(rules.arn for one in spaces for rules in one.rule_group_namespaces.values()),
        ]
        found = {arn: backend.list_tags_for_resource(arn) for arn in arns}
        return found | {str(one["arn"]): one["tags"] for one in self._scrapers.values()}

    def forget(self) -> None:
        """Loses everything."""
        self._scrapers.clear()
        self._definitions.clear()

    # --- scrapers ----------------------------------------------------------------------------------------

    def _create_scraper(self, call: Call) -> Item:
        asked = call.params
        cluster, config = str(asked["source"]["eksConfiguration"]["clusterArn"]), _config(asked)
        self._check_place(call, asked["source"]["eksConfiguration"])
        workspace = _workspace(call, _last(asked["destination"]["ampConfiguration"]["workspaceArn"]))
        if len(self._scrapers) >= MOST_SCRAPERS:
            raise Error(402, "ServiceQuotaExceededException", f"The account has {MOST_SCRAPERS} scrapers in the region")
        amp_backends[ACCOUNT][call.region].tag_resource(workspace.arn, {SCRAPED_TAG: ""})
        id, made = f"s-{uuid.uuid4()}", now()
        role = f"arn:{PARTITION}:iam::{ACCOUNT}:role/{ROLE}_{id[2:18]}"
        self._let_in(call, _last(cluster), role)
        self._scrapers[id] = {
            "scraperId": id,
            "arn": f"arn:{PARTITION}:aps:{call.region}:{ACCOUNT}:scraper/{id}",
            "roleArn": role,
            "status": {"statusCode": "ACTIVE"},
            "createdAt": made,
            "lastModifiedAt": made,
            "tags": dict(asked.get("tags") or {}),
            "scrapeConfiguration": {"configurationBlob": config},
            **{key: asked[key] for key in ("alias", "source", "destination") if key in asked},
        }
        return self._scrapers[id]

    def _check_place(self, call: Call, source: Mapping[str, Any]) -> None:
        """A cluster that is reached from inside, and two zones at least, all in its VPC."""
        _, cluster = self._cluster(call, _last(source["clusterArn"]))
        if not cluster.get("endpointPrivateAccess"):
            raise _invalid("The cluster's endpoint access must include private access")
        known = {one.id: one for one in ec2_backends[ACCOUNT][call.region].describe_subnets()}
        wanted = [str(id) for id in source["subnetIds"]]
        if lacking := [id for id in wanted if id not in known]:
            raise _invalid(f"The subnet {lacking[0]} does not exist")
        if len({known[id].availability_zone for id in wanted}) < 2:
            raise _invalid("Subnets must be in at least two different Availability Zones")
        own = {known[id].vpc_id for id in cluster["subnetIds"]}
        if {known[id].vpc_id for id in wanted} != own:
            raise _invalid("Subnets must be in the VPC of the cluster")
        if len(wanted) > 5 or len(source.get("securityGroupIds") or ()) > 5:
            raise _invalid("A scraper takes at most 5 subnets and 5 security groups")
        groups = {one.id: one.vpc_id for one in ec2_backends[ACCOUNT][call.region].describe_security_groups()}
        if strange := [id for id in source.get("securityGroupIds") or () if groups.get(id) not in own]:
            raise _invalid(f"The security group {strange[0]} is not in the VPC of the cluster")

    def _cluster(self, call: Call, name: str) -> tuple[str, Mapping[str, Any]]:
        """Authentication mode and network of a cluster; raises `Error` if there is none."""
        return self._eks.seen_by_scraper(call.region, name)

    def _let_in(self, call: Call, cluster: str, role: str) -> None:
        """An access entry with its policy, in a cluster that has entries; elsewhere aws-auth is the owner's to write.

        https://docs.aws.amazon.com/prometheus/latest/userguide/AMP-collector-how-to.html#AMP-collector-eks-setup
        """
        mode, _ = self._cluster(call, cluster)
        if mode != "CONFIG_MAP":
            self._eks.let_service_in(call, cluster, role, POLICY)

    def _scraper(self, call: Call) -> Item:
        id = str(call.params["scraperId"])
        if id not in self._scrapers:
            raise _absent("SCRAPER", id)
        return self._scrapers[id]

    def _update_scraper(self, call: Call) -> Item:
        scraper = self._scraper(call)
        if "scrapeConfiguration" in call.params:
            scraper["scrapeConfiguration"] = {"configurationBlob": _config(call.params)}
        if call.params.get("alias"):
            scraper["alias"] = call.params["alias"]
        scraper["lastModifiedAt"] = now()
        return scraper

    def _delete_scraper(self, call: Call) -> Item:
        scraper = self._scraper(call)
        del self._scrapers[scraper["scraperId"]]
        cluster = _last(scraper["source"]["eksConfiguration"]["clusterArn"])
        self._eks.shut_service_out(call.region, cluster, scraper["roleArn"])
        return {"scraperId": scraper["scraperId"], "status": {"statusCode": "DELETING"}}

    # --- rules and alert managers ------------------------------------------------------------------------

    def _check_rules(self, call: Call) -> None:
        workspace = _workspace(call, str(call.params["workspaceId"]))
        name = str(call.params["name"])
        if call.operation == "CreateRuleGroupsNamespace" and name in workspace.rule_group_namespaces:
            raise Error(409, "ConflictException", f"Rule groups namespace already exists: {name}")
        groups = _read(call.params["data"]).get("groups")
        if not isinstance(groups, list) or not groups:
            raise _invalid("The rules file has no groups")
        names = [group.get("name") for group in groups]
        if twice := [one for one in names if names.count(one) > 1]:
            raise _invalid(f"The rules file has the group {twice[0]} twice")

    def _create_definition(self, call: Call) -> Item:
        if str(call.params["workspaceId"]) in self._definitions:
            raise Error(409, "ConflictException", "The workspace has an alert manager definition")
        return self._put_definition(call, new=True)

    def _put_definition(self, call: Call, *, new: bool = False) -> Item:
        id = str(call.params["workspaceId"])
        arn = _workspace(call, id).arn
        if not new:
            self._definition(call)
        for fault in _definition_faults(call, arn):
            raise _invalid(fault)
        made = now()
        self._definitions[id] = {
            "status": {"statusCode": "ACTIVE"},
            "data": _sent(call.params["data"]),
            "createdAt": self._definitions.get(id, {}).get("createdAt", made),
            "modifiedAt": made,
        }
        return {"status": {"statusCode": "ACTIVE"}}

    def _definition(self, call: Call) -> Item:
        id = str(call.params["workspaceId"])
        _workspace(call, id)
        if id not in self._definitions:
            raise _absent("ALERT_MANAGER_DEFINITION", id)
        return self._definitions[id]

    def _delete_definition(self, call: Call) -> Item:
        self._definition(call)
        del self._definitions[str(call.params["workspaceId"])]
        return {}

    def _tagging(self, call: Call) -> Answer | None:
        """Tags of a scraper; moto has those of workspaces and namespaces."""
        arn = str(call.params.get("resourceArn", ""))
        if ":scraper/" not in arn:
            return None
        if _last(arn) not in self._scrapers:
            raise _absent("SCRAPER", arn)
        tags = self._scrapers[_last(arn)]["tags"]
        if call.operation == "TagResource":
            tags |= call.params["tags"]
        if call.operation == "UntagResource":
            for key in call.params["tagKeys"]:
                tags.pop(key, None)
        return as_json({"tags": tags} if call.operation == "ListTagsForResource" else {})


def _last(arn: Any) -> str:
    return str(arn).rpartition("/")[2]


def _invalid(text: str) -> Error:
    return Error(400, "ValidationException", text)


def _absent(kind: str, id: str) -> Error:
    return Error(404, "ResourceNotFoundException", f"{kind} not found: {id}")


def _workspace(call: Call, id: str) -> Any:
    backend: PrometheusServiceBackend = amp_backends[ACCOUNT][call.region]
    if id not in backend.workspaces:
        raise _absent("WORKSPACE", id)
    return backend.workspaces[id]


def _read(data: bytes) -> dict[str, Any]:
    """A file in a request; raises `Error` for what is not YAML with keys."""
    try:
        read = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise _invalid(f"The file is not YAML: {error}") from error
    if not isinstance(read, dict):
        raise _invalid("The file is not a mapping")
    return read


def _sent(data: bytes) -> str:
    """A file as JSON carries it."""
    return base64.b64encode(data).decode()


def _config(asked: Mapping[str, Any]) -> str:
    """The scraper's configuration, once it is what a scraper takes; raises `Error`."""
    blob: bytes = asked["scrapeConfiguration"]["configurationBlob"]
    for fault in _config_faults(_read(blob)):
        raise _invalid(fault)
    return _sent(blob)


def _config_faults(config: Mapping[str, Any]) -> Iterator[str]:
    if strange := sorted({*config} - {"global", "scrape_configs"}):
        yield f"Unsupported section {strange[0]}"
    jobs = config.get("scrape_configs") or []
    names = [job.get("job_name") for job in jobs]
    if not jobs or len({*names}) != len(names):
        yield "scrape_configs needs jobs, each with a name of its own"
    usual = (config.get("global") or {}).get("scrape_interval", "1m")
    for job in jobs:
        interval = str(job.get("scrape_interval", usual))
        if int(interval[:-1]) * _UNITS[interval[-1]] < LEAST_INTERVAL_S:
            yield f"The scrape interval {interval} of {job['job_name']} is below {LEAST_INTERVAL_S}s"
        addresses = [target for one in job.get("static_configs") or [] for target in one.get("targets", [])]
        if named := [one for one in addresses if not _IP.fullmatch(str(one))]:
            yield f"The target {named[0]} of {job['job_name']} must be an IP address"
        if other := [key for key in job if key.endswith(("_sd_configs", "static_configs")) and key not in _FINDS]:
            yield f"Unsupported service discovery {other[0]} of {job['job_name']}"


def _definition_faults(call: Call, workspace_arn: str) -> Iterator[str]:
    """What an alert manager refuses: other receivers than SNS, and topics to which it may not send."""
    text = _read(call.params["data"]).get("alertmanager_config")
    if not isinstance(text, str):
        yield "alertmanager_config must be text"
        return
    config = _read(text.encode())
    receivers = {one["name"]: one for one in config.get("receivers", [])}
    if (config.get("route") or {}).get("receiver") not in receivers:
        yield "The route names no receiver"
    for receiver in receivers.values():
        if strange := sorted({*receiver} - {"name", "sns_configs", "pagerduty_configs"}):
            yield f"Unsupported receiver {strange[0]}"
        for one in receiver.get("sns_configs", []):
            if (one.get("sigv4") or {}).get("region") != call.region:
                yield f"The topic {one['topic_arn']} needs sigv4 with the region {call.region}"
            if not _may_send(call, one["topic_arn"], workspace_arn):
                yield f"The topic {one['topic_arn']} does not allow aps.amazonaws.com to publish"


def _may_send(call: Call, topic_arn: str, workspace_arn: str) -> bool:
    """Whether the topic's policy lets this workspace send, by the service, its account and its ARN."""
    topic = sns_backends[ACCOUNT][call.region].topics.get(topic_arn)
    if topic is None:
        return False
    for one in yaml.safe_load(topic.policy)["Statement"]:
        wanted = one.get("Condition", {})
        service = isinstance(one["Principal"], dict) and "aps.amazonaws.com" in as_list(
            one["Principal"].get("Service", [])
        )
        actions = {str(action).lower() for action in as_list(one["Action"])}
        source = {key.lower(): value for block in wanted.values() for key, value in block.items()}
        ours = source.get("aws:sourcearn", workspace_arn) == workspace_arn
        here = source.get("aws:sourceaccount", ACCOUNT) == ACCOUNT
        if service and ours and here and {"sns:publish", "sns:gettopicattributes"} <= actions:
            return True
    return False
