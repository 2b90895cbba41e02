"""Service quotas: arguments to a call and back."""

from __future__ import annotations

from modelfleet.infra.provider import InvokeDef, Props
from tools.standin.aws.session import Aws


def _quota(session: Aws, args: Props) -> Props:
    where = args.get("region") or session.region
    asked = {"ServiceCode": args["serviceCode"], "QuotaCode": args["quotaCode"]}
    client = session.client("service-quotas", where)
    quota = client.get_service_quota(**asked)["Quota"]
    usual = client.get_aws_default_service_quota(**asked)["Quota"]
    return {
        **args,
        "id": quota["QuotaArn"],
        "arn": quota["QuotaArn"],
        "region": where,
        "quotaName": quota["QuotaName"],
        "value": quota["Value"],
        "defaultValue": usual["Value"],
        "adjustable": quota["Adjustable"],
        "globalQuota": quota["GlobalQuota"],
        "serviceName": quota["ServiceName"],
        "usageMetrics": [],
    }


INVOKES = (InvokeDef("aws:servicequotas/getServiceQuota:getServiceQuota", _quota),)
