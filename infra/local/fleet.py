"""The whole stack on this machine: bucket, weights, code, Ray, one application per model, gateway."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pulumi
import pulumi_aws as aws

from modelfleet.infra.gateway import render
from modelfleet.infra.local import emulator
from modelfleet.infra.local.provider.serve_api import ServeApi, Unreachable, deployed
from modelfleet.infra.local.resources import LocalResource
from modelfleet.infra.local.runtime import REPLICA_ENVIRONMENT, gateway_runtime, serve_environment
from modelfleet.infra.observability.own import local_files
from modelfleet.infra.planning.plan import MirrorPlan, ModelPlan, OwnMonitoringPlan, Plan
from modelfleet.infra.planning.release import release_notice, wanted_configs
from modelfleet.infra.provider import Refused

#: Resources that have their own options in `ray start`.
BUILT_IN = ("CPU", "GPU", "memory")
#: How long a preview waits for Ray's dashboard.
LOOK_S = 5.0


class LocalFleet(pulumi.ComponentResource):
    """Everything in a stack with target `local`, rendered from its plan.

    Children: the emulator's provider, the bucket, one Weights per mirrored model, Code, Ray, Release, one Application
    per model, Gateway, and Monitor where the stack runs a Prometheus itself. `folder` holds logs, lock files, and the
    files of the gateway and of Prometheus.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        *,
        folder: Path,
        api_keys: pulumi.Output[Mapping[str, str]] | None = None,
        alert_webhook: pulumi.Output[str] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:local:LocalFleet", name, None, opts)
        self._plan = plan
        self._local = plan.config.local
        self._folder = str(folder)
        self._endpoint = emulator.endpoint(self._local.s3_port)
        self.bucket = self._create_bucket()
        self._weights: dict[str, LocalResource] = {}
        for model in plan.models:
            for mirror in (model.mirror, *model.others):
                if mirror.prefix and mirror.prefix not in self._weights:
                    self._weights[mirror.prefix] = self._create_weights(model, mirror)
        self._code = self._create_code()
        self._ray = self._create_ray()
        dashboard = f"http://127.0.0.1:{self._local.dashboard_port}"
        live = _live(ServeApi(dashboard, self._local.serve_port, Path(self._folder)))
        if found := release_notice(live, plan):
            pulumi.log.warn(found)
        self._release = self._create_release(begin=not live)
        self._applications = [self._create_application(m) for m in plan.models]
        self._create_gateway(api_keys)
        if plan.own_monitoring is not None:
            self._create_monitor(plan.own_monitoring, alert_webhook)
        self.base_url = f"http://127.0.0.1:{self._local.gateway_port}/v1"
        self.register_outputs({"base_url": self.base_url})

    def _create_bucket(self) -> aws.s3.Bucket:
        """The bucket, made in the emulator by the aws provider, which never reads the user's real credentials."""
        provider = aws.Provider(
            "emulator",
            region=emulator.REGION,
            access_key=emulator.ACCESS_KEY,
            secret_key=emulator.ACCESS_KEY,
            endpoints=[{"s3": self._endpoint}],
            s3_use_path_style=True,
            skip_credentials_validation=True,
            skip_metadata_api_check=True,
            skip_region_validation=True,
            skip_requesting_account_id=True,
            opts=self._child(),
        )
        # Emptied with the stack: everything in it, and in the emulator's memory, can be made again.
        options = self._child(provider=provider)
        return aws.s3.Bucket("bucket", bucket=self._plan.bucket.name, force_destroy=True, opts=options)

    def _create_weights(self, model: ModelPlan, mirror: MirrorPlan) -> LocalResource:
        props = {
            "endpoint": self._endpoint,
            "bucket": self.bucket.bucket,
            "prefix": mirror.prefix,
            "modelId": model.model_id,
            "source": mirror.source,
            "revision": mirror.revision,
        } | ({} if mirror.kind == "model" else {"kind": mirror.kind})
        if mirror.signer is not None:
            props |= {"signerKey": mirror.signer.public_key, "signerCertificates": mirror.signer.certificates}
        name = (mirror.prefix or "").removeprefix("models/").replace("/", "-")
        return LocalResource("Weights", f"weights-{name}", props, self._child())

    def _create_code(self) -> LocalResource:
        code = self._plan.code
        props = {"endpoint": self._endpoint, "bucket": self.bucket.bucket, "key": code.key, "sha256": code.sha256}
        # An application that a stopped release left on earlier code loads it again whenever it starts.
        options = pulumi.ResourceOptions.merge(self._child(), pulumi.ResourceOptions(retain_on_delete=True))
        return LocalResource("Code", "code", props, options)

    def _create_ray(self) -> LocalResource:
        """One Ray node in place of one node per pool, with the resources of all of them."""
        resources: dict[str, float] = {}
        for pool in self._plan.pools:
            for resource, amount in pool.ray_resources.items():
                if resource not in BUILT_IN:
                    resources[resource] = resources.get(resource, 0) + amount
        props = {
            "folder": self._folder,
            "gcsPort": self._local.gcs_port,
            "servePort": self._local.serve_port,
            "dashboardPort": self._local.dashboard_port,
            "rayMetricsPort": self._local.ray_metrics_port,
            "cpus": max((pool.node.cpu_millis for pool in self._plan.pools), default=0) // 1000,
            "gpus": self._plan.cards.gpus if self._plan.cards else 0,
            "resources": resources,
            "environment": {
                **REPLICA_ENVIRONMENT,
                **(dict(self._plan.cards.environment) if self._plan.cards else {}),
                **serve_environment(self._local.serve_port),
                **emulator.environment(self._local.s3_port),
            },
        }
        return LocalResource("Ray", "ray", props, self._child())

    def _create_release(self, *, begin: bool) -> LocalResource:
        """Takes new code to the applications that run, before their own resources; they wait for it.

        At the `begin` of a stack nothing runs, and each application waits only for its own weights.
        """
        props = {
            "folder": self._folder,
            "servePort": self._local.serve_port,
            "dashboardPort": self._local.dashboard_port,
            "code": self._plan.code.key,
            "configs": json.dumps(wanted_configs(self._plan), sort_keys=True),
            "atOnce": self._plan.release.at_once,
        }
        needs = [self._ray, self._code, *([] if begin else self._weights.values())]
        return LocalResource("Release", "release", props, self._child(depends_on=needs))

    def _create_application(self, model: ModelPlan) -> LocalResource:
        """Waits for the weights and the code; copying them again does not restart a running application."""
        props = {
            "folder": self._folder,
            "ray": self._ray.id,
            "servePort": self._local.serve_port,
            "dashboardPort": self._local.dashboard_port,
            # As text: Pulumi's values have neither whole numbers nor null.
            "config": json.dumps(model.application.as_config(), sort_keys=True),
        }
        weights = [self._weights[one.prefix] for one in (model.mirror, *model.others) if one.prefix]
        needs = [self._code, self._release, *weights]
        return LocalResource("Application", model.slug, props, self._child(depends_on=needs))

    def _create_gateway(self, api_keys: pulumi.Output[Mapping[str, str]] | None) -> LocalResource:
        """Depends on no other resource: it returns 503 until Serve answers."""
        ports = self._local.gateway_port, self._local.metrics_port
        runtime = gateway_runtime(self._folder, *ports, self._local.serve_port)
        files = render(self._plan.gateway, runtime, upstream=f"127.0.0.1:{self._local.serve_port}")
        keys: pulumi.Output[Mapping[str, str]] | None = None
        if api_keys is not None:
            keys = pulumi.Output.secret(api_keys)
        props = {
            "folder": self._folder,
            "port": ports[0],
            "metricsPort": ports[1],
            "texts": dict(files.texts),
            "keys": keys,
        }
        return LocalResource("Gateway", "gateway", props, self._child())

    def _create_monitor(self, own: OwnMonitoringPlan, webhook: pulumi.Output[str] | None) -> LocalResource:
        """Depends on no other resource: what it scrapes may come and go."""
        props: dict[str, Any] = {
            "folder": self._folder,
            "prometheusPort": self._local.prometheus_port,
            "alertmanagerPort": self._local.alertmanager_port,
            "retentionDays": own.retention_days,
            "keepMib": own.keep_mib,
            "texts": local_files(self._plan, own),
            "webhook": webhook,
        }
        return LocalResource("Monitor", "monitor", props, self._child())

    def _child(
        self, *, provider: aws.Provider | None = None, depends_on: list[LocalResource] | None = None
    ) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(parent=self, provider=provider, depends_on=depends_on)


def _live(api: ServeApi) -> dict[str, Mapping[str, Any]]:
    """The applications that run now; none where no Ray answers, or something else does."""
    try:
        return deployed(api.details(LOOK_S))
    except (Unreachable, Refused, ValueError):
        return {}
