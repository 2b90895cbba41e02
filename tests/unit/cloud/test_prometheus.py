"""Amazon Managed Prometheus over HTTP: what it refuses, how its scraper comes in, and whose rights that takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from modelfleet.infra.aws import policies
from modelfleet.infra.aws.operator import EKS_CHANGES, READS, _allow, _of, _prometheus
from modelfleet.infra.names import STACK_LABEL
from tests.unit.aws.builders import ACCOUNT, REGION
from tests.unit.cloud.conftest import subnets_in
from tests.unit.cloud.test_judge import refused, role_with
from tests.unit.cloud.test_web_acl import SITE
from tools.cloud.server import Listening

CLUSTER = f"arn:aws:eks:{REGION}:{ACCOUNT}:cluster/{SITE.cluster_name}"
CONFIG = {
    "global": {"scrape_interval": "30s"},
    "scrape_configs": [{"job_name": "ray", "kubernetes_sd_configs": [{"role": "pod"}]}],
}
RULES = yaml.safe_dump({"groups": [{"name": "one", "rules": []}]}).encode()
POLICY = "arn:aws:eks::aws:cluster-access-policy/AmazonPrometheusScraperPolicy"


class Stage:
    """A workspace, and a cluster in two zones."""

    def __init__(self, cloud: Listening, mode: str = "API", *, private: bool = True) -> None:
        self.cloud, self.eks = cloud, cloud.client("eks")
        self.subnets = subnets_in(cloud, "us-west-2a", "us-west-2b")
        trust = json.dumps(policies.service_trust("eks.amazonaws.com"))
        role = cloud.client("iam").create_role(RoleName="cluster", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
        self.eks.create_cluster(
            name=SITE.cluster_name,
            roleArn=role,
            resourcesVpcConfig={"subnetIds": self.subnets, "endpointPrivateAccess": private},
            accessConfig={"authenticationMode": mode},
        )
        self.amp = cloud.client("amp")
        made = self.amp.create_workspace(alias="one")
        self.workspace, self.arn = made["workspaceId"], made["arn"]

    def scraper(self, config: Any = None, subnets: list[str] | None = None, **other: Any) -> dict[str, Any]:
        """What is asked of CreateScraper."""
        eks = {"clusterArn": other.get("cluster", CLUSTER), "subnetIds": subnets or self.subnets}
        return {
            "source": {"eksConfiguration": eks},
            "destination": {"ampConfiguration": {"workspaceArn": other.get("workspace", self.arn)}},
            "scrapeConfiguration": {"configurationBlob": yaml.safe_dump(config or CONFIG).encode()},
        }


@pytest.fixture
def stage(account: Listening) -> Stage:
    return Stage(account)


def jobs(**more: Any) -> dict[str, Any]:
    return {**CONFIG, "scrape_configs": [{**CONFIG["scrape_configs"][0], **more}]}  # type: ignore[index]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        pytest.param({**CONFIG, "rule_files": ["x"]}, "Unsupported section rule_files", id="rules"),
        pytest.param(jobs(scrape_interval="15s"), "The scrape interval 15s of ray is below 30s", id="too-often"),
        pytest.param({**CONFIG, "global": {"scrape_interval": "5s"}}, "5s of ray is below 30s", id="usually-too-often"),
        pytest.param(jobs(dns_sd_configs=[{}]), "Unsupported service discovery dns_sd_configs", id="by-names"),
        pytest.param(
            jobs(static_configs=[{"targets": ["10.0.0.1:9", "a.b.svc:9"]}]),
            "a.b.svc:9 of ray must be an IP",
            id="a-name",
        ),
        pytest.param({"scrape_configs": []}, "scrape_configs needs jobs", id="no-jobs"),
    ],
)
def test_a_scraper_takes_no_other_configuration(stage: Stage, config: dict[str, Any], said: str) -> None:
    status, code, message = refused(stage.amp.create_scraper, **stage.scraper(config))
    assert (status, code) == (400, "ValidationException") and said in message
    made = stage.amp.create_scraper(**stage.scraper())
    blob = {"configurationBlob": yaml.safe_dump(config).encode()}
    again = refused(stage.amp.update_scraper, scraperId=made["scraperId"], scrapeConfiguration=blob)
    assert again[1] == "ValidationException" and said in again[2]


def test_a_scraper_stands_in_two_zones_of_the_clusters_network(stage: Stage) -> None:
    elsewhere = subnets_in(stage.cloud, "us-west-2a", "us-west-2b")
    for asked, said in (
        (stage.scraper(subnets=stage.subnets[:1]), "at least two different Availability Zones"),
        (stage.scraper(subnets=elsewhere), "in the VPC of the cluster"),
        (stage.scraper(subnets=["subnet-0123"]), "subnet-0123 does not exist"),
    ):
        status, code, message = refused(stage.amp.create_scraper, **asked)
        assert (status, code) == (400, "ValidationException") and said in message
    absent = stage.scraper(workspace=f"{stage.arn}x")
    assert refused(stage.amp.create_scraper, **absent)[:2] == (404, "ResourceNotFoundException")
    assert stage.amp.list_scrapers()["scrapers"] == []


def test_a_scraper_reaches_a_private_endpoint_and_an_account_has_ten(account: Listening) -> None:
    stage = Stage(account, private=False)
    assert "must include private access" in refused(stage.amp.create_scraper, **stage.scraper())[2]
    network = {"endpointPrivateAccess": True, "endpointPublicAccess": True}
    stage.eks.update_cluster_config(name=SITE.cluster_name, resourcesVpcConfig=network)
    for _ in range(10):
        stage.amp.create_scraper(**stage.scraper())
    assert refused(stage.amp.create_scraper, **stage.scraper())[:2] == (402, "ServiceQuotaExceededException")
    assert stage.amp.describe_workspace(workspaceId=stage.workspace)["workspace"]["tags"] == {"AMPAgentlessScraper": ""}


def test_aws_makes_the_scrapers_access_entry_and_nobody_else_may(stage: Stage) -> None:
    made = stage.amp.create_scraper(**stage.scraper())
    role = stage.amp.describe_scraper(scraperId=made["scraperId"])["scraper"]["roleArn"]
    where = {"clusterName": SITE.cluster_name, "principalArn": role}
    (policy,) = stage.eks.list_associated_access_policies(**where)["associatedAccessPolicies"]
    assert (policy["policyArn"], policy["accessScope"]["type"]) == (POLICY, "cluster")
    words = "not allowed to modify access entries with a principalArn value of a Service Linked Role"
    assert words in refused(stage.eks.delete_access_entry, **where)[2]
    stage.amp.delete_scraper(scraperId=made["scraperId"])
    assert words in refused(stage.eks.create_access_entry, **where)[2]
    assert stage.eks.list_access_entries(clusterName=SITE.cluster_name)["accessEntries"] == []
    assert refused(stage.amp.describe_scraper, scraperId=made["scraperId"])[1] == "ResourceNotFoundException"


def test_a_cluster_without_entries_gets_none(account: Listening) -> None:
    stage = Stage(account, "CONFIG_MAP")
    stage.amp.create_scraper(**stage.scraper())
    assert stage.eks.list_access_entries(clusterName=SITE.cluster_name)["accessEntries"] == []


def test_rules_have_groups_of_different_names_and_a_namespace_is_made_once(stage: Stage) -> None:
    named = {"workspaceId": stage.workspace, "name": "modelfleet"}
    twice = yaml.safe_dump({"groups": [{"name": "one", "rules": []}] * 2}).encode()
    for data, said in ((b"groups: []", "no groups"), (twice, "group one twice"), (b"a: [", "not YAML")):
        assert said in refused(stage.amp.create_rule_groups_namespace, **named, data=data)[2]
    stage.amp.create_rule_groups_namespace(**named, data=RULES)
    assert refused(stage.amp.create_rule_groups_namespace, **named, data=RULES)[:2] == (409, "ConflictException")
    assert "no groups" in refused(stage.amp.put_rule_groups_namespace, **named, data=b"groups: []")[2]
    found = stage.amp.describe_rule_groups_namespace(**named)["ruleGroupsNamespace"]
    assert found["data"] == RULES


def definition(topic: str, region: str = REGION, **receiver: Any) -> bytes:
    sns = {"sns_configs": [{"topic_arn": topic, "sigv4": {"region": region}}]}
    config = {"route": {"receiver": "all"}, "receivers": [{"name": "all", **(receiver or sns)}]}
    return yaml.safe_dump({"alertmanager_config": yaml.safe_dump(config)}).encode()


def test_an_alert_manager_sends_to_topics_that_allow_its_workspace(stage: Stage) -> None:
    sns = stage.cloud.client("sns")
    topic = sns.create_topic(Name="alerts")["TopicArn"]
    create: Callable[..., Any] = stage.amp.create_alert_manager_definition
    closed = "does not allow aps.amazonaws.com to publish"
    assert closed in refused(create, workspaceId=stage.workspace, data=definition(topic))[2]

    def allow(workspace: str, account: str) -> None:
        text = json.dumps(policies.alerts_topic(topic, workspace_arn=workspace, account=account))
        sns.set_topic_attributes(TopicArn=topic, AttributeName="Policy", AttributeValue=text)

    for workspace, account in ((f"{stage.arn}x", ACCOUNT), (stage.arn, "210987654321")):
        allow(workspace, account)
        assert closed in refused(create, workspaceId=stage.workspace, data=definition(topic))[2]
    allow(stage.arn, ACCOUNT)
    for data, said in (
        (definition(topic, region="us-east-1"), "needs sigv4 with the region us-west-2"),
        (definition(topic, webhook_configs=[]), "Unsupported receiver webhook_configs"),
        (b"alertmanager_config: {}", "must be text"),
    ):
        assert said in refused(create, workspaceId=stage.workspace, data=data)[2]
    create(workspaceId=stage.workspace, data=definition(topic))
    assert refused(create, workspaceId=stage.workspace, data=definition(topic))[1] == "ConflictException"
    found = stage.amp.describe_alert_manager_definition(workspaceId=stage.workspace)["alertManagerDefinition"]
    assert found["data"] == definition(topic)
    stage.amp.delete_alert_manager_definition(workspaceId=stage.workspace)
    gone = refused(stage.amp.describe_alert_manager_definition, workspaceId=stage.workspace)
    assert gone[:2] == (404, "ResourceNotFoundException")


#: Of the operator's other statements what a scraper takes.
REST = [
    _allow("*", READS),
    _allow([CLUSTER, f"arn:aws:eks:{REGION}:{ACCOUNT}:access-entry/*"], _of("eks", EKS_CHANGES)),
]
SERVICES = f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/*"
LINKED = _allow(SERVICES, ["iam:CreateServiceLinkedRole"])


def operator(cloud: Listening, without: str = "", name: str = "operator") -> dict[str, str]:
    """Credentials with the operator's statements of a stack whose names begin with `dev`, but for one action."""
    text = json.dumps([*REST, LINKED, *_prometheus(SITE, "dev")])
    return role_with(cloud, *json.loads(text.replace(f'"{without}"', '"s3:ListBucket"')), name=name)


def everything(stage: Stage, who: dict[str, str]) -> None:
    """What a stack makes, as `who`, and deletes."""
    amp, sns, tags = stage.cloud.client("amp", who), stage.cloud.client("sns", who), {STACK_LABEL: SITE.stack}
    workspace = amp.create_workspace(alias="c", tags=tags)
    id = workspace["workspaceId"]
    amp.describe_logging_configuration(workspaceId=id)  # the official provider's question
    amp.create_rule_groups_namespace(workspaceId=id, name="modelfleet", data=RULES, tags=tags)
    amp.put_rule_groups_namespace(workspaceId=id, name="modelfleet", data=RULES)
    topic = sns.create_topic(Name="dev-alerts", Tags=[{"Key": "team", "Value": "a"}])["TopicArn"]
    text = json.dumps(policies.alerts_topic(topic, workspace_arn=workspace["arn"], account=ACCOUNT))
    sns.set_topic_attributes(TopicArn=topic, AttributeName="Policy", AttributeValue=text)
    amp.create_alert_manager_definition(workspaceId=id, data=definition(topic))
    arn = sns.subscribe(TopicArn=topic, Protocol="email", Endpoint="a@b.org", ReturnSubscriptionArn=True)
    scraper = amp.create_scraper(**stage.scraper(workspace=workspace["arn"]), tags=tags)
    for one in (scraper, workspace):
        amp.tag_resource(resourceArn=one["arn"], tags={"team": "a"})
        amp.untag_resource(resourceArn=one["arn"], tagKeys=["team"])
    amp.delete_scraper(scraperId=scraper["scraperId"])
    sns.unsubscribe(SubscriptionArn=arn["SubscriptionArn"])
    amp.delete_alert_manager_definition(workspaceId=id)
    sns.delete_topic(TopicArn=topic)
    amp.delete_rule_groups_namespace(workspaceId=id, name="modelfleet")
    amp.delete_workspace(workspaceId=id)


def test_the_operators_statements_are_enough_to_make_and_to_delete_all(stage: Stage) -> None:
    everything(stage, operator(stage.cloud))


@pytest.mark.parametrize(
    "action",
    [
        "aps:CreateScraper",
        "aps:CreateWorkspace",
        "aps:Describe*",
        "aps:TagResource",
        "eks:AssociateAccessPolicy",
        "eks:CreateAccessEntry",
        "iam:CreateServiceLinkedRole",
        "iam:DeleteServiceLinkedRole",
        "sns:Subscribe",
    ],
)
def test_one_permission_less_stops_it(stage: Stage, action: str) -> None:
    with pytest.raises(Exception, match=f"not authorized to perform: {action}"):
        everything(stage, operator(stage.cloud, action))


def test_another_stacks_workspace_and_topic_are_nothing_for_the_operator(stage: Stage) -> None:
    who = operator(stage.cloud)
    amp, sns = stage.cloud.client("amp", who), stage.cloud.client("sns", who)
    other = {STACK_LABEL: "another"}
    theirs = stage.amp.create_workspace(tags=other)
    scraper = stage.amp.create_scraper(**stage.scraper(), tags=other)
    for call, asked in (
        (amp.delete_workspace, {"workspaceId": theirs["workspaceId"]}),
        (amp.delete_scraper, {"scraperId": scraper["scraperId"]}),
        (amp.untag_resource, {"resourceArn": theirs["arn"], "tagKeys": ["a"]}),
        (amp.create_workspace, {"tags": other}),
        (amp.create_alert_manager_definition, {"workspaceId": theirs["workspaceId"], "data": definition("x")}),
    ):
        assert refused(call, **asked)[1] == "AccessDeniedException"
    assert refused(sns.create_topic, Name="prod-alerts")[1] == "AuthorizationError"


def test_nobody_makes_another_stacks_workspace_their_own_by_a_tag(stage: Stage) -> None:
    who = operator(stage.cloud)
    amp, own = stage.cloud.client("amp", who), {STACK_LABEL: SITE.stack}
    theirs = stage.amp.create_workspace(tags={STACK_LABEL: "another"})
    for call, asked in (
        (amp.tag_resource, {"resourceArn": theirs["arn"], "tags": own}),
        (amp.create_scraper, {**stage.scraper(workspace=theirs["arn"]), "tags": own}),
    ):
        assert refused(call, **asked)[1] == "AccessDeniedException"
