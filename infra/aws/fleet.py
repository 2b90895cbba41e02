"""The AWS half of a stack, from its Plan: network, cluster, node groups, bucket, roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws import policies
from modelfleet.infra.aws.addons import BEFORE_NODES, Addons, AddonSpec, after_nodes
from modelfleet.infra.aws.cluster import Cluster
from modelfleet.infra.aws.documents import PodAccess, pod_access
from modelfleet.infra.aws.facts import AccountFacts
from modelfleet.infra.aws.facts_program import read_facts
from modelfleet.infra.aws.front_door import FrontDoor
from modelfleet.infra.aws.head_storage import HeadStorage
from modelfleet.infra.aws.identity import PodRole, as_documents
from modelfleet.infra.aws.image import Images
from modelfleet.infra.aws.manifest_key import ManifestKey
from modelfleet.infra.aws.mirror import Mirror
from modelfleet.infra.aws.network import Network
from modelfleet.infra.aws.node_groups import NodeGroups, NodeRole, NodeSettings, SystemPool
from modelfleet.infra.aws.preflight import preflight
from modelfleet.infra.aws.prometheus import Prometheus
from modelfleet.infra.aws.site import Site, site_of
from modelfleet.infra.aws.storage import Storage, make_storage
from modelfleet.infra.aws.zones import control_plane_subnets, network_zones, rung_zones, scraper_subnets
from modelfleet.infra.names import AUTOSCALER
from modelfleet.infra.planning.plan import Plan
from modelfleet.serving.config.errors import InputErrors, errors_in


class AwsFleet(pulumi.ComponentResource):
    """Everything that a stack has in AWS; `ready` is what a workload in the cluster must wait for.

    Before it registers the first resource, it raises `InputErrors` with all findings of the preflight, or `SetupError`
    where AWS cannot be queried.
    """

    kubeconfig: pulumi.Output[str]
    endpoint: pulumi.Output[str]
    cluster_name: pulumi.Output[str]
    bucket: pulumi.Output[str]
    #: None where the plan has none.
    head_storage: HeadStorage | None
    #: The serving image by its digest; None where the stack file names one.
    image: pulumi.Output[str] | None
    #: The mirror Jobs' own; None where they run in another.
    mirror_image: pulumi.Output[str] | None
    #: Names of the node groups, by `RUNG-ZONE`: `l4-us-east-1a`, `l4_spot-us-east-1a`.
    pools: Mapping[str, pulumi.Output[str]]
    front_door: FrontDoor | None
    #: That of manifests; None where the stack makes none.
    manifest_key: ManifestKey | None
    #: None where AWS runs none for the stack.
    prometheus: Prometheus | None
    ready: Sequence[pulumi.Resource]

    def __init__(
        self,
        name: str,
        plan: Plan,
        *,
        code: pulumi.Asset | None = None,
        image_source: pulumi.Asset | None = None,
        alert_webhook: pulumi.Output[str] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        facts = read_facts(plan, parent=opts.parent if opts else None)
        findings = preflight(plan, facts)
        if errors := errors_in(findings):
            raise InputErrors(errors)
        super().__init__("modelfleet:aws:Fleet", name, None, opts)
        self._name, self._plan, self._facts = name, plan, facts
        self._site = site_of(plan, facts)
        self._child = pulumi.ResourceOptions(parent=self)
        for finding in findings:
            pulumi.log.warn(finding.sentence(), self)
        storage = make_storage(name, plan, code=code, site=self._site, opts=self._child)
        images = self._create_images(storage, image_source)
        built = images.builds if images else []
        network = self._create_network()
        subnets = _subnets_by_zone(network, self._facts)
        ways = network.ready if network else ()
        cluster = self._create_cluster(subnets)
        basics = self._create_addons("basics", BEFORE_NODES, cluster, [])
        system, groups = self._create_nodes(cluster, subnets, [*ways, *basics.ready, *built])
        self.front_door = self._create_front_door(cluster, network, subnets)
        services = self._create_addons("services", after_nodes(self._plan), cluster, [*system.groups.values()])
        self.head_storage = self._create_head_storage(cluster, subnets)
        self.manifest_key = self._create_manifest_key()
        self.prometheus = self._create_prometheus(cluster, subnets, alert_webhook)
        roles = self._create_roles(cluster, storage.mirror)
        self.kubeconfig, self.endpoint = cluster.kubeconfig, cluster.cluster.endpoint
        self.cluster_name = cluster.name
        self.bucket = storage.bucket
        self.image = images.serving if images else None
        self.mirror_image = images.mirror if images else None
        self.pools = {
            f"{rung.group}-{zone}": group.node_group_name
            for pool in plan.pools
            for rung in pool.rungs
            for zone, group in groups.groups[rung.group].items()
        }
        associations = [role.association for role in roles]
        # Not the pools' groups: one that cannot get its machines must not keep the other models from serving.
        nodes = system.groups.values()
        stores = [*storage.ready, *(self.head_storage.ready if self.head_storage else ())]
        first = [*cluster.access, *cluster.pod_logs]
        self.ready = [*first, *basics.ready, *nodes, *services.ready, *associations, *stores, *built]
        self._register()

    def _create_images(self, storage: Storage, source: pulumi.Asset | None) -> Images | None:
        """Beside network and cluster, which take as long; every node waits for them."""
        if self._plan.image is None:
            return None
        if source is None:
            raise ValueError("the plan makes images, and nothing to make them from is given")
        return Images(
            f"{self._name}-image",
            self._site,
            self._plan.image,
            self._plan.mirror_image,
            bucket=storage.bucket,
            bucket_name=self._plan.bucket.name or "",
            source=source,
            key=storage.mirror.key if storage.mirror else None,
            after=storage.mirror.ready if storage.mirror else (),
            opts=self._child,
        )

    def _create_network(self) -> Network | None:
        """A new network; None where the stack names an existing one."""
        config = self._plan.config.network
        if config.vpc_id:
            return None
        zones = network_zones(self._plan, self._facts)
        return Network(f"{self._name}-network", self._site, config, zones, opts=self._child)

    def _create_front_door(
        self, cluster: Cluster, network: Network | None, private: Mapping[str, Sequence[pulumi.Input[str]]]
    ) -> FrontDoor | None:
        """In public subnets for the internet, else in a private one of each zone."""
        config, door = self._plan.config, self._plan.front_door
        if door is None:
            return None
        public = network.public_subnet_ids if network else config.network.public_subnet_ids
        return FrontDoor(
            f"{self._name}-front-door",
            self._site,
            door,
            config.gateway,
            vpc_id=network.vpc_id if network else str(config.network.vpc_id),
            subnet_ids=public if door.internet else [subnets[0] for subnets in private.values()],
            cluster_group_id=cluster.security_group_id,
            zone_id=self._facts.zone_id,
            first=network.way_out if network else (),
            opts=self._child,
        )

    def _create_cluster(self, subnets: Mapping[str, Sequence[pulumi.Input[str]]]) -> Cluster:
        config = self._plan.config.cluster
        return Cluster(
            f"{self._name}-cluster",
            self._site,
            config,
            subnet_ids=control_plane_subnets(subnets),
            administrators=config.admin_role_arns or [self._facts.caller_role_arn],
            has_log_group=self._facts.has_log_group,
            pod_log_days=self._plan.log_collector.retention_days if self._plan.log_collector else None,
            opts=self._child,
        )

    def _create_head_storage(
        self, cluster: Cluster, subnets: Mapping[str, Sequence[pulumi.Input[str]]]
    ) -> HeadStorage | None:
        if self._plan.head_storage is None:
            return None
        return HeadStorage(
            f"{self._name}-head-storage",
            self._site,
            self._plan.head_storage,
            vpc_id=cluster.cluster.vpc_config.vpc_id.apply(str),
            subnet_ids=[subnet for own in subnets.values() for subnet in own],
            nodes_group_id=cluster.security_group_id,
            opts=self._child,
        )

    def _create_addons(
        self, suffix: str, specs: Sequence[AddonSpec], cluster: Cluster, after: list[pulumi.Resource]
    ) -> Addons:
        config = self._plan.config.cluster
        return Addons(
            f"{self._name}-{suffix}",
            self._site,
            specs,
            cluster=cluster.cluster,
            kubernetes_version=config.version,
            pinned=config.addon_versions,
            after=after,
            opts=self._child,
        )

    def _create_nodes(
        self,
        cluster: Cluster,
        subnets: Mapping[str, Sequence[pulumi.Input[str]]],
        first: Sequence[pulumi.Resource],
    ) -> tuple[SystemPool, NodeGroups]:
        """Node groups wait for `first`: network, image, and the add-ons without which a node never becomes Ready."""
        plan, facts = self._plan, self._facts
        if plan.system is None:
            raise ValueError(f"target {plan.target.name} has no system pool")
        nodes = NodeSettings(
            site=self._site,
            config=plan.config.cluster,
            cluster=cluster.cluster,
            role=NodeRole(f"{self._name}-node", self._site, opts=self._child),
            live=facts.live_nodes,
            first=first,
        )
        system = SystemPool(f"{self._name}-system", plan.system, nodes=nodes, subnets=subnets, opts=self._child)
        zones = network_zones(plan, facts)
        rungs = [rung for pool in plan.node_groups for rung in pool.rungs]
        groups = NodeGroups(
            f"{self._name}-pool",
            plan.node_groups,
            nodes=nodes,
            subnets={rung.group: {zone: subnets[zone] for zone in rung_zones(rung, zones, facts)} for rung in rungs},
            opts=self._child,
        )
        return system, groups

    def _create_manifest_key(self) -> ManifestKey | None:
        key = self._plan.manifest_key
        if key is None or not key.made:
            return None
        return ManifestKey(f"{self._name}-manifests", self._site, key, names=self._name, opts=self._child)

    def _create_prometheus(
        self,
        cluster: Cluster,
        subnets: Mapping[str, Sequence[pulumi.Input[str]]],
        webhook: pulumi.Output[str] | None,
    ) -> Prometheus | None:
        """Beside what serves: no workload waits for it."""
        if self._plan.amp is None:
            return None
        return Prometheus(
            f"{self._name}-prometheus",
            self._site,
            self._plan,
            self._plan.amp,
            cluster=cluster,
            subnet_ids=scraper_subnets(subnets),
            webhook=webhook,
            opts=self._child,
        )

    def _create_roles(self, cluster: Cluster, mirror: Mirror | None) -> list[PodRole]:
        return [self._pod_role(access, cluster, mirror) for access in pod_access(self._site, self._plan)]

    def _pod_role(self, access: PodAccess, cluster: Cluster, mirror: Mirror | None) -> PodRole:
        documents: dict[str, pulumi.Input[str]] = dict(as_documents("access", access.statements))
        if mirror is not None and mirror.key is not None and access.key:
            documents["key"] = policies_for_key(mirror.key, self._site, write=access.key == "write")
        if self.manifest_key is not None and access.signs:
            documents["signs"] = self.manifest_key.arn.apply(
                lambda arn: policies.as_json(policies.document(policies.sign_with_own_key(arn)))
            )
        short = "autoscaler" if access.service_account == AUTOSCALER else access.service_account
        return PodRole(
            f"{self._name}-{short}",
            self._site,
            documents,
            cluster_name=cluster.name,
            namespace=access.namespace,
            service_account=access.service_account,
            opts=self._child,
        )

    def _register(self) -> None:
        cost = self._plan.cost
        self.register_outputs(
            {
                "kubeconfig": self.kubeconfig,
                "endpoint": self.endpoint,
                "cluster_name": self.cluster_name,
                "bucket": self.bucket,
                "image": self.image or self._plan.ray_cluster.image,
                "pools": dict(self.pools),
                "usd_per_hour": {"min": cost.min_usd_per_hour, "max": cost.max_usd_per_hour},
            }
        )


def policies_for_key(key: aws.kms.Key, site: Site, *, write: bool) -> pulumi.Output[str]:
    """The policy on the bucket's key, in its own document because the key's ARN is known only once it is made."""
    return key.arn.apply(
        lambda arn: policies.as_json(policies.document(policies.use_key(arn, write=write, region=site.region)))
    )


def _subnets_by_zone(network: Network | None, facts: AccountFacts) -> dict[str, list[pulumi.Input[str]]]:
    """Private subnets by zone: of the new network, or those that the stack names."""
    if network is not None:
        return {zone: [subnet] for zone, subnet in network.private_subnet_ids.items()}
    zones: dict[str, list[pulumi.Input[str]]] = {}
    for subnet in facts.subnets:
        zones.setdefault(subnet.zone, []).append(subnet.id)
    return zones
