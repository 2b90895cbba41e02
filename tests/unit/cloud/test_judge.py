"""The emulated cloud refuses as AWS does: status, code and message, by caller, policy and service."""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.unit.aws.builders import ACCOUNT
from tests.unit.cloud.conftest import BUCKET, Fleet
from tools.cloud.evaluator import Statement
from tools.cloud.server import Listening


def refused(call: Any, **params: Any) -> tuple[int, str, str]:
    """Status, code and message of a call that must fail."""
    with pytest.raises(ClientError) as error:
        call(**params)
    answer = error.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"], answer["Error"].get("Message", "")


def role_with(cloud: Listening, *statements: Statement, name: str = "some") -> dict[str, str]:
    """Credentials of a new role that these statements are all of."""
    iam = cloud.client("iam")
    trust = {
        "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]
    }
    document = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
    iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", **trust}))
    iam.put_role_policy(RoleName=name, PolicyName="all", PolicyDocument=document)
    return cloud.assumed(f"arn:aws:iam::{ACCOUNT}:role/{name}")


ME = f"User: arn:aws:sts::{ACCOUNT}:assumed-role/some/i-0123456789abcdef0 is not authorized to perform: "


def test_each_service_refuses_in_its_own_form(account: Listening) -> None:
    account.client("s3").create_bucket(Bucket="bkt", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    nobody = role_with(account, {"Effect": "Allow", "Action": "logs:PutLogEvents", "Resource": "*"})

    def client(service: str) -> Any:
        return account.client(service, nobody)

    none = "because no identity-based policy allows the {} action".format
    assert refused(client("s3").put_object, Bucket="bkt", Key="k", Body=b"") == (
        403,
        "AccessDenied",
        f'{ME}s3:PutObject on resource: "arn:aws:s3:::bkt/k" {none("s3:PutObject")}',
    )
    assert refused(client("ec2").create_vpc, CidrBlock="10.0.0.0/16") == (
        403,
        "UnauthorizedOperation",
        f"You are not authorized to perform this operation. {ME}ec2:CreateVpc on resource: * {none('ec2:CreateVpc')}.",
    )
    assert refused(client("eks").describe_cluster, name="c") == (
        403,
        "AccessDeniedException",
        f"{ME}eks:DescribeCluster on resource: arn:aws:eks:us-west-2:{ACCOUNT}:cluster/c {none('eks:DescribeCluster')}",
    )
    assert refused(client("iam").get_role, RoleName="some")[:2] == (403, "AccessDenied")
    assert refused(client("kms").create_key)[:2] == (400, "AccessDeniedException")
    assert client("sts").get_caller_identity()["Arn"].endswith("assumed-role/some/i-0123456789abcdef0"), (
        "always allowed"
    )


def test_a_key_that_is_nobodys_is_refused_before_any_policy_is_asked(account: Listening) -> None:
    wrong = {"aws_access_key_id": "AKIAUNKNOWN000000000", "aws_secret_access_key": "x"}
    assert refused(account.client("s3", wrong).list_buckets)[:2] == (403, "InvalidAccessKeyId")
    assert refused(account.client("iam", wrong).list_roles)[:2] == (403, "InvalidClientTokenId")
    assert refused(account.client("ec2", wrong).describe_vpcs)[:2] == (401, "AuthFailure")
    assert refused(account.client("eks", wrong).list_clusters)[:2] == (403, "UnrecognizedClientException")


def test_a_session_needs_its_token_and_ends_with_its_role(account: Listening) -> None:
    mine = role_with(account, {"Effect": "Allow", "Action": "s3:ListAllMyBuckets", "Resource": "*"})
    account.client("s3", mine).list_buckets()
    assert refused(account.client("s3", {**mine, "aws_session_token": "other"}).list_buckets)[:2] == (
        400,
        "InvalidToken",
    )
    account.client("iam").delete_role_policy(RoleName="some", PolicyName="all")
    assert refused(account.client("s3", mine).list_buckets)[:2] == (403, "AccessDenied")
    account.client("iam").delete_role(RoleName="some")
    assert refused(account.client("s3", mine).list_buckets)[:2] == (403, "InvalidAccessKeyId")


def test_an_operation_that_the_table_does_not_have_is_refused_for_everybody(account: Listening) -> None:
    """A permission that nobody looked up must not count as given."""
    status, code, message = refused(account.client("s3").get_bucket_website, Bucket="bkt")
    assert (status, code) == (501, "NotImplemented")
    assert "actions.csv has no row for s3 GetBucketWebsite" in message


def test_an_explicit_deny_wins_over_the_administrator_and_says_so(account: Listening) -> None:
    s3 = account.client("s3")
    s3.create_bucket(Bucket="bkt", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::bkt/secret/*"}
    s3.put_bucket_policy(Bucket="bkt", Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
    s3.put_object(Bucket="bkt", Key="open/x", Body=b"1")
    _, code, message = refused(s3.put_object, Bucket="bkt", Key="secret/x", Body=b"1")
    assert code == "AccessDenied"
    assert message.endswith("with an explicit deny in a resource-based policy")


def test_deny_without_tls_denies_plain_http_and_nothing_else(fleet: Fleet) -> None:
    s3 = fleet.cloud.client("s3")
    s3.put_object(Bucket=BUCKET, Key="models/x", Body=b"1")

    def plain(request: Any, **_: Any) -> None:
        request.headers["X-Forwarded-Proto"] = "http"

    s3.meta.events.register("before-send.s3", plain)
    assert refused(s3.get_object, Bucket=BUCKET, Key="models/x")[:2] == (403, "AccessDenied")


def test_a_condition_that_does_not_hold_only_loses_its_own_statement(account: Listening) -> None:
    """moto's own enforcement denies everything in that case."""
    mine = role_with(
        account,
        {
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": "arn:aws:s3:::bkt",
            "Condition": {"StringLike": {"s3:prefix": ["a/*"]}},
        },
        {"Effect": "Allow", "Action": "s3:ListAllMyBuckets", "Resource": "*"},
    )
    account.client("s3").create_bucket(Bucket="bkt", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    s3 = account.client("s3", mine)
    s3.list_buckets()
    s3.list_objects_v2(Bucket="bkt", Prefix="a/x")
    assert refused(s3.list_objects_v2, Bucket="bkt", Prefix="b/")[:2] == (403, "AccessDenied")
    assert refused(s3.list_objects_v2, Bucket="bkt")[:2] == (403, "AccessDenied")


def test_a_prefix_condition_never_allows_listing_multipart_uploads(account: Listening) -> None:
    """`s3:prefix` is a key of ListBucket and ListBucketVersions only, though the request has a prefix."""
    mine = role_with(
        account,
        {
            "Effect": "Allow",
            "Action": "s3:ListBucketMultipartUploads",
            "Resource": "arn:aws:s3:::bkt",
            "Condition": {"StringLike": {"s3:prefix": ["a/*"]}},
        },
    )
    account.client("s3").create_bucket(Bucket="bkt", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    assert refused(account.client("s3", mine).list_multipart_uploads, Bucket="bkt", Prefix="a/x")[1] == "AccessDenied"


def test_an_absent_object_is_403_without_list_bucket_and_404_with_it(account: Listening) -> None:
    s3 = account.client("s3")
    s3.create_bucket(Bucket="bkt", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    get = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::bkt/*"}
    mine = role_with(account, get)
    assert refused(account.client("s3", mine).head_object, Bucket="bkt", Key="none")[:2] == (403, "403")
    assert refused(account.client("s3", mine).get_object, Bucket="bkt", Key="none")[:2] == (403, "AccessDenied")
    listing = {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::bkt"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [get, listing]})
    account.client("iam").put_role_policy(RoleName="some", PolicyName="all", PolicyDocument=document)
    assert refused(account.client("s3", mine).head_object, Bucket="bkt", Key="none")[:2] == (404, "404")
    assert refused(account.client("s3", mine).get_object, Bucket="bkt", Key="none")[:2] == (404, "NoSuchKey")


def test_a_bulk_deletion_answers_200_and_names_what_it_refused(account: Listening) -> None:
    s3 = account.client("s3")
    s3.create_bucket(Bucket="bkt", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    for key in ("mine/a", "theirs/a"):
        s3.put_object(Bucket="bkt", Key=key, Body=b"1")
    mine = role_with(account, {"Effect": "Allow", "Action": "s3:DeleteObject", "Resource": "arn:aws:s3:::bkt/mine/*"})
    objects = [{"Key": "mine/a"}, {"Key": "theirs/a"}]
    answer = account.client("s3", mine).delete_objects(Bucket="bkt", Delete={"Objects": objects, "Quiet": True})
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert [(error["Key"], error["Code"]) for error in answer["Errors"]] == [("theirs/a", "AccessDenied")]
    assert [item["Key"] for item in s3.list_objects_v2(Bucket="bkt")["Contents"]] == ["theirs/a"]
    answer = account.client("s3", mine).delete_objects(Bucket="bkt", Delete={"Objects": objects[1:]})
    assert "Deleted" not in answer
    assert len(answer["Errors"]) == 1


def test_a_key_behind_a_bucket_is_used_in_the_callers_name_and_through_s3_only(account: Listening) -> None:
    key = account.client("kms").create_key()["KeyMetadata"]["Arn"]
    s3 = account.client("s3")
    s3.create_bucket(Bucket="bkt", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
    s3.put_bucket_encryption(
        Bucket="bkt",
        ServerSideEncryptionConfiguration={"Rules": [{"ApplyServerSideEncryptionByDefault": default}]},
    )
    objects = {"Effect": "Allow", "Action": ["s3:PutObject", "s3:GetObject"], "Resource": "arn:aws:s3:::bkt/*"}
    through = {"StringEquals": {"kms:ViaService": "s3.us-west-2.amazonaws.com"}}
    use = {"Effect": "Allow", "Action": "kms:GenerateDataKey", "Resource": key, "Condition": through}
    mine = role_with(account, objects)
    bucket = account.client("s3", mine)
    status, code, message = refused(bucket.put_object, Bucket="bkt", Key="k", Body=b"1")
    assert (status, code) == (403, "AccessDenied")
    assert f"{ME}kms:GenerateDataKey on resource: {key} " in message
    document = json.dumps({"Version": "2012-10-17", "Statement": [objects, use]})
    account.client("iam").put_role_policy(RoleName="some", PolicyName="all", PolicyDocument=document)
    bucket.put_object(Bucket="bkt", Key="k", Body=b"1")
    assert "kms:Decrypt" in refused(bucket.get_object, Bucket="bkt", Key="k")[2]
    upload = bucket.create_multipart_upload(Bucket="bkt", Key="big")["UploadId"]
    part = {"Bucket": "bkt", "Key": "big", "UploadId": upload, "PartNumber": 1, "Body": b"1"}
    assert "kms:Decrypt" in refused(bucket.upload_part, **part)[2], "S3 reads the parts before it joins them"
    direct = refused(account.client("kms", mine).generate_data_key, KeyId=key, KeySpec="AES_256")
    assert direct[:2] == (400, "AccessDeniedException"), "not through S3"


def test_a_role_is_assumed_only_by_whom_it_trusts(account: Listening) -> None:
    mine = role_with(account, {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"})
    iam = account.client("iam")
    trust = {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:role/other"}, "Action": "sts:AssumeRole"}
    target = iam.create_role(
        RoleName="target", AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    )["Role"]["Arn"]
    sts = account.client("sts", mine)
    assert refused(sts.assume_role, RoleArn=target, RoleSessionName="me")[:2] == (403, "AccessDenied")
    trust["Principal"] = {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}
    iam.update_assume_role_policy(
        RoleName="target", PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    )
    sts.assume_role(RoleArn=target, RoleSessionName="me")
    tags = [{"Key": "team", "Value": "a"}]
    _, _, message = refused(sts.assume_role, RoleArn=target, RoleSessionName="me", Tags=tags)
    assert "sts:TagSession" in message, "tags need a permission of their own"


def test_the_administrator_is_a_user_of_the_account(account: Listening) -> None:
    identity = account.client("sts").get_caller_identity()
    assert (identity["Account"], identity["Arn"]) == (ACCOUNT, f"arn:aws:iam::{ACCOUNT}:user/administrator")
