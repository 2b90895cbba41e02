"""`Secrets`: the Hugging Face token and the hashes of the API keys, from Pulumi's encrypted configuration."""

from __future__ import annotations

from collections.abc import Mapping

import pulumi

from modelfleet.infra.gateway import keys_id, render_key_map
from modelfleet.infra.kubernetes.authority import make_authority
from modelfleet.infra.kubernetes.manifests import secrets
from modelfleet.infra.kubernetes.objects import each, forced, resource
from modelfleet.infra.planning.plan import Plan


class Secrets(pulumi.ComponentResource):
    """Children: of the Secrets `huggingface`, `replica-huggingface`, `gateway-keys`, `alert-webhook`, `head-storage`,
    `ray-authority-N` those it needs.

    `keys_id` changes with the keys but reveals nothing about them; a change rolls the gateway's pods.
    """

    keys_id: pulumi.Output[str]

    def __init__(
        self,
        name: str,
        plan: Plan,
        *,
        huggingface_token: pulumi.Output[str] | None,
        api_keys: pulumi.Output[Mapping[str, str]] | None,
        alert_webhook: pulumi.Output[str] | None = None,
        head_storage_password: pulumi.Output[str] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:kubernetes:Secrets", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        self.ready: list[pulumi.Resource] = []
        if huggingface_token is not None:
            self.ready += each(name, secrets.huggingface(plan, pulumi.Output.secret(huggingface_token)), child)
        if alert_webhook is not None:
            url: pulumi.Output[str] = pulumi.Output.secret(alert_webhook)
            self.ready.append(resource(f"{name}-alert-webhook", secrets.alert_webhook(plan, url), child))
        if head_storage_password is not None:
            password: pulumi.Output[str] = pulumi.Output.secret(head_storage_password)
            self.ready.append(resource(f"{name}-head-storage", secrets.head_storage(plan, password), child))
        if plan.ray_cluster.authority is not None:
            made = make_authority(f"modelfleet {plan.stack}")
            manifests = secrets.authority(plan, pulumi.Output.secret(made.certificate), pulumi.Output.secret(made.key))
            # Each run makes one, and only the first one's is used: pods of one cluster need the same.
            kept = pulumi.ResourceOptions(parent=self, ignore_changes=["stringData"])
            self.ready += each(name, manifests, kept)
        self.keys_id = pulumi.Output.from_input("")
        if api_keys is not None:
            key_map: pulumi.Output[str] = pulumi.Output.secret(api_keys.apply(render_key_map))
            # `modelfleet key revoke` takes lines out of it, too (`infra/kubernetes/revoke.py`).
            keys = forced(secrets.gateway_keys(plan, key_map))
            self.ready.append(resource(f"{name}-gateway-keys", keys, child))
            self.keys_id = pulumi.Output.unsecret(key_map.apply(keys_id))
        self.register_outputs({})
