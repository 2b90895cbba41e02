"""The stack's bucket, for every target that has one: versioned, encrypted, private, TLS only."""

from __future__ import annotations

import json

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws import policies
from modelfleet.infra.aws.site import Home
from modelfleet.infra.names import USAGE
from modelfleet.infra.planning.plan import BucketPlan

ABORT_UPLOAD_DAYS = 7
EXPIRE_NONCURRENT_DAYS = 30
#: Records of usage: a year's books, and a month to write them. A copy each minute makes the one before noncurrent.
EXPIRE_USAGE_DAYS = 400
EXPIRE_NONCURRENT_USAGE_DAYS = 1
KEY_DELETION_DAYS = 30


class Mirror(pulumi.ComponentResource):
    """Children: key, bucket and the bucket's settings, each its own resource.

    The key belongs to `key_account`. Without an account S3 encrypts with its own key, which every reader of the bucket
    can use. This is for a cluster that is not ours: there we cannot give pods the right to use a key.
    """

    bucket: aws.s3.Bucket
    bucket_name: pulumi.Output[str]
    key: aws.kms.Key | None
    ready: list[pulumi.Resource]

    def __init__(
        self,
        name: str,
        home: Home,
        plan: BucketPlan,
        *,
        key_account: str | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:aws:Mirror", name, None, opts)
        self._name, self._home, self._plan = name, home, plan
        self._child = pulumi.ResourceOptions(parent=self)
        self.key = self._create_key(key_account) if key_account else None
        self.bucket = self._create_bucket()
        self.bucket_name = self.bucket.bucket
        self.ready = [
            self._create_encryption(),
            self._create_versioning(),
            *self._create_access(),
            self._create_lifecycle(),
        ]
        self.register_outputs({"bucket": self.bucket_name})

    def _create_key(self, account: str) -> aws.kms.Key:
        policy = policies.account_key(partition=self._home.partition, account=account)
        key = aws.kms.Key(
            self._name,
            description=f"Weights of the modelfleet stack {self._home.stack}",
            enable_key_rotation=True,
            deletion_window_in_days=KEY_DELETION_DAYS,
            policy=json.dumps(policy),
            tags=self._home.tagged(self._name),
            opts=pulumi.ResourceOptions(parent=self, protect=self._plan.protect),
        )
        name = f"alias/modelfleet-{self._home.stack}-mirror"
        aws.kms.Alias(self._name, name=name, target_key_id=key.id, opts=self._child)
        return key

    def _create_bucket(self) -> aws.s3.Bucket:
        return aws.s3.Bucket(
            self._name,
            bucket=self._plan.name,
            # Weights are copies: destroying a stack without protection deletes them.
            force_destroy=not self._plan.protect,
            tags=self._home.tagged(self._name),
            opts=pulumi.ResourceOptions(parent=self, protect=self._plan.protect),
        )

    def _create_encryption(self) -> pulumi.Resource:
        rule: aws.s3.BucketServerSideEncryptionConfigurationRuleArgsDict
        rule = {"apply_server_side_encryption_by_default": {"sse_algorithm": "AES256"}}
        if self.key:
            rule = {
                "apply_server_side_encryption_by_default": {
                    "sse_algorithm": "aws:kms",
                    "kms_master_key_id": self.key.arn,
                },
                "bucket_key_enabled": True,  # saves a KMS call, and its price, for each of thousands of objects
            }
        return aws.s3.BucketServerSideEncryptionConfiguration(
            self._name, bucket=self.bucket.bucket, rules=[rule], opts=self._child
        )

    def _create_versioning(self) -> pulumi.Resource:
        return aws.s3.BucketVersioning(
            self._name,
            bucket=self.bucket.bucket,
            versioning_configuration={"status": "Enabled"},
            opts=self._child,
        )

    def _create_access(self) -> list[pulumi.Resource]:
        block = aws.s3.BucketPublicAccessBlock(
            self._name,
            bucket=self.bucket.bucket,
            block_public_acls=True,
            block_public_policy=True,
            ignore_public_acls=True,
            restrict_public_buckets=True,
            opts=self._child,
        )
        ownership = aws.s3.BucketOwnershipControls(
            self._name,
            bucket=self.bucket.bucket,
            rule={"object_ownership": "BucketOwnerEnforced"},
            opts=self._child,
        )
        policy = aws.s3.BucketPolicy(
            self._name,
            bucket=self.bucket.bucket,
            policy=self.bucket.bucket.apply(
                lambda name: json.dumps(policies.tls_only(name, partition=self._home.partition))
            ),
            # S3 returns 409 when a policy and the access block are set at the same time.
            opts=pulumi.ResourceOptions(parent=self, depends_on=[block]),
        )
        return [block, ownership, policy]

    def _create_lifecycle(self) -> pulumi.Resource:
        return aws.s3.BucketLifecycleConfiguration(
            self._name,
            bucket=self.bucket.bucket,
            rules=[
                {
                    "id": "tidy",
                    "status": "Enabled",
                    "filter": {"prefix": ""},
                    "abort_incomplete_multipart_upload": {"days_after_initiation": ABORT_UPLOAD_DAYS},
                    "noncurrent_version_expiration": {"noncurrent_days": EXPIRE_NONCURRENT_DAYS},
                    # What a mirror Job deletes leaves a marker behind, which would stay for ever.
                    "expiration": {"expired_object_delete_marker": True},
                },
                *([_usage_rule()] if self._plan.usage else []),
            ],
            opts=self._child,
        )


def _usage_rule() -> aws.s3.BucketLifecycleConfigurationRuleArgsDict:
    return {
        "id": "usage",
        "status": "Enabled",
        "filter": {"prefix": f"{USAGE}/"},
        "expiration": {"days": EXPIRE_USAGE_DAYS},
        "noncurrent_version_expiration": {"noncurrent_days": EXPIRE_NONCURRENT_USAGE_DAYS},
    }
