"""Service Quotas: those of EC2 and EKS that a stack meets, with values that a test can change.

A new account's values, but for vCPUs: 1024, as in an account that had them raised.
https://docs.aws.amazon.com/servicequotas/2019-06-24/apireference/API_GetServiceQuota.html
"""

from __future__ import annotations

from collections.abc import Mapping

from modelfleet.infra.catalog import default_catalog
from tools.cloud.answers import Answer, Error, as_json
from tools.cloud.backends.parts import Item
from tools.cloud.callers import ACCOUNT, PARTITION
from tools.cloud.rules import ELASTIC_IPS, NODE_GROUPS, USUAL, VCPUS, Rules
from tools.cloud.wire import Call


def answer(call: Call, rules: Rules) -> Answer | None:
    """The answer to a question about one quota; None for other operations."""
    if call.operation not in ("GetServiceQuota", "GetAWSDefaultServiceQuota"):
        return None
    service, code = str(call.params["ServiceCode"]), str(call.params["QuotaCode"])
    names = _names()
    if (service, code) not in names:
        raise Error(
            400, "NoSuchResourceException", f"The request failed because the specified quota {code} does not exist."
        )
    usual = USUAL.get(code, VCPUS)
    value = usual if call.operation == "GetAWSDefaultServiceQuota" else rules.quota(code)
    return as_json({"Quota": _shown(call.region, service, code, names[(service, code)], value)})


def _shown(region: str, service: str, code: str, name: str, value: float) -> Item:
    return {
        "ServiceCode": service,
        "ServiceName": {"ec2": "Amazon Elastic Compute Cloud (Amazon EC2)"}.get(service, service.upper()),
        "QuotaArn": f"arn:{PARTITION}:servicequotas:{region}:{ACCOUNT}:{service}/{code}",
        "QuotaCode": code,
        "QuotaName": name,
        "Value": value,
        "Unit": "None",
        "Adjustable": True,
        "GlobalQuota": False,
    }


def _names() -> Mapping[tuple[str, str], str]:
    """Names of quotas by service and code."""
    families = {("ec2", quota.code): quota.name for quota in default_catalog().quotas.values()}
    return {
        **families,
        ("ec2", ELASTIC_IPS): "EC2-VPC Elastic IPs",
        ("eks", NODE_GROUPS): "Managed node groups per cluster",
    }
