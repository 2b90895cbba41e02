"""The key that the stack makes to sign manifests with (`trust.manifestKey.kms: own`); only mirror Jobs may use it."""

from __future__ import annotations

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws import policies
from modelfleet.infra.aws.mirror import KEY_DELETION_DAYS
from modelfleet.infra.aws.site import Site
from modelfleet.infra.planning.plan import ManifestKeyPlan


class ManifestKey(pulumi.ComponentResource):
    """Children: the key, whose private half nobody sees, and its alias. `public` is base64 of the DER of its other."""

    arn: pulumi.Output[str]
    public: pulumi.Output[str]

    def __init__(
        self,
        name: str,
        site: Site,
        plan: ManifestKeyPlan,
        *,
        names: str,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """`names` is what the names of the stack's roles begin with."""
        super().__init__("modelfleet:aws:ManifestKey", name, None, opts)
        key = aws.kms.Key(
            name,
            description=f"Signs the manifests of the modelfleet stack {site.stack}",
            # KMS rotates no asymmetric key. https://docs.aws.amazon.com/kms/latest/developerguide/rotate-keys.html
            customer_master_key_spec="ECC_NIST_P256",
            key_usage="SIGN_VERIFY",
            deletion_window_in_days=KEY_DELETION_DAYS,
            policy=policies.as_json(policies.signing_key(partition=site.partition, account=site.account, names=names)),
            tags=site.tagged(name),
            opts=pulumi.ResourceOptions(parent=self, protect=plan.protect),
        )
        child = pulumi.ResourceOptions(parent=self)
        aws.kms.Alias(name, name=f"alias/modelfleet-{site.stack}-manifests", target_key_id=key.id, opts=child)
        self.arn = key.arn
        found = aws.kms.get_public_key_output(key_id=key.arn, opts=pulumi.InvokeOutputOptions(parent=self))
        self.public = found.public_key
        self.register_outputs({"arn": self.arn, "public": self.public})
