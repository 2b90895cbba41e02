"""Amazon Managed Service for Prometheus: a workspace, the scraper that fills it, its rules, and where its alerts go."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws import policies
from modelfleet.infra.aws.cluster import Cluster
from modelfleet.infra.aws.site import Site
from modelfleet.infra.observability.amp import alert_manager_definition, rules_file, scraper_config
from modelfleet.infra.planning.plan import AmpPlan, Plan

#: The stack has one namespace of rules, in a workspace of its own.
RULES = "modelfleet"
#: AWS puts it on a workspace that a scraper fills; without it here, each run would take it away.
#: terraform-provider-aws website/docs/r/prometheus_scraper.html.markdown
SCRAPED_TAG = "AMPAgentlessScraper"

#: Minutes for which a run waits for a scraper that gets another configuration, as for one that goes.
UPDATED_MIN = 20


class Prometheus(pulumi.ComponentResource):
    """Children: workspace, rules, topic with its policy and subscriptions, alert manager, scraper.

    No access entry: AWS makes the scraper's, and lets nobody else name a service-linked role in one. That takes a
    cluster whose authentication mode has entries, which the stack's is.
    https://docs.aws.amazon.com/prometheus/latest/userguide/AMP-collector-how-to.html#AMP-collector-eks-setup
    """

    #: Where Grafana asks, by PromQL over HTTP that is signed for the service `aps`.
    endpoint: pulumi.Output[str]

    def __init__(
        self,
        name: str,
        site: Site,
        plan: Plan,
        wanted: AmpPlan,
        *,
        cluster: Cluster,
        subnet_ids: Sequence[pulumi.Input[str]],
        webhook: pulumi.Output[str] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:aws:Prometheus", name, None, opts)
        self._name, self._site, self._plan = name, site, plan
        self._child = pulumi.ResourceOptions(parent=self)
        workspace = aws.amp.Workspace(
            name, alias=site.cluster_name, tags={**site.tagged(name), SCRAPED_TAG: ""}, opts=self._child
        )
        aws.amp.RuleGroupNamespace(
            name,
            name=RULES,
            workspace_id=workspace.id,
            data=rules_file(plan),
            tags=site.tagged(name),
            opts=self._child,
        )
        self._create_alerts(workspace, wanted, webhook)
        self._create_scraper(workspace, cluster, subnet_ids)
        self.endpoint = workspace.prometheus_endpoint
        self.register_outputs({"endpoint": self.endpoint})

    def _create_alerts(self, workspace: aws.amp.Workspace, wanted: AmpPlan, webhook: pulumi.Output[str] | None) -> None:
        """The topic lets the workspace send before the alert manager knows it, so that no alert is lost between."""
        name = f"{self._name}-alerts"
        topic = aws.sns.Topic(name, tags=self._site.tagged(name), opts=self._child)
        policy = aws.sns.TopicPolicy(
            name,
            arn=topic.arn,
            policy=pulumi.Output.all(topic.arn, workspace.arn).apply(
                lambda arns: json.dumps(
                    policies.alerts_topic(arns[0], workspace_arn=arns[1], account=self._site.account)
                )
            ),
            opts=self._child,
        )
        aws.amp.AlertManagerDefinition(
            name,
            workspace_id=workspace.id,
            definition=topic.arn.apply(lambda arn: alert_manager_definition(self._plan, arn)),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[policy]),
        )
        # Named by who is told, so that one more changes no other subscription; a URL is a secret, and names nothing.
        told: list[tuple[str, str, pulumi.Input[str]]] = [(email, "email", email) for email in wanted.emails]
        told += [("webhook", "https", pulumi.Output.secret(webhook))] if webhook is not None else []
        for who, protocol, endpoint in told:
            aws.sns.TopicSubscription(
                f"{name}-to-{who}", topic=topic.arn, protocol=protocol, endpoint=endpoint, opts=self._child
            )

    def _create_scraper(
        self, workspace: aws.amp.Workspace, cluster: Cluster, subnet_ids: Sequence[pulumi.Input[str]]
    ) -> aws.amp.Scraper:
        """With the cluster's own security group, as nodes have it: so it reaches the API server and pods."""
        return aws.amp.Scraper(
            self._name,
            alias=self._site.cluster_name,
            source={
                "eks": {
                    "cluster_arn": cluster.cluster.arn,
                    "security_group_ids": [cluster.security_group_id],
                    "subnet_ids": list(subnet_ids),
                }
            },
            destination={"amp": {"workspace_arn": workspace.arn}},
            scrape_configuration=scraper_config(self._plan),
            # The provider waits two minutes (SetDefaultUpdateTimeout in terraform-provider-aws
            # internal/service/amp/scraper.go) for what takes AWS longer. Not `custom_timeouts`, which Pulumi's bridge
            # keeps to itself for such resources (pulumi-terraform-bridge pkg/pf/tfbridge/provider_update.go).
            timeouts={"update": f"{UPDATED_MIN}m"},
            tags=self._site.tagged(self._name),
            opts=self._child,
        )
