"""Service quotas: moto has none of EC2's, so the values are in the table; a test or a person can set others.

Entry `quotas/<service>/<code>` of the table, `{"value": 64}`, overrides the default here.
"""

from __future__ import annotations

from modelfleet.infra.aws.preflight import ADDRESS_QUOTA
from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.provider import InvokeDef, Props, Refused
from tools.standin.aws.session import Aws
from tools.standin.aws.table import Table

#: Large, like the quotas of an account that had them raised.
VCPUS = 1024.0
#: As in a new account.
ADDRESSES = 5.0


def _quota(session: Aws, args: Props) -> Props:
    service, code = args["serviceCode"], args.get("quotaCode")
    names = {quota.code: quota.name for quota in (*default_catalog().quotas.values(), ADDRESS_QUOTA)}
    if service != "ec2" or code not in names:
        raise Refused(f"GetServiceQuota: NoSuchResourceException: {service} {code}")
    entry = Table(session).find(f"quotas/{service}/{code}")
    where = args.get("region") or session.region
    arn = f"arn:aws:servicequotas:{where}:123456789012:{service}/{code}"
    return {
        **args,
        "id": arn,
        "arn": arn,
        "region": where,
        "quotaName": names[code],
        "value": float(entry["value"] if entry else ADDRESSES if code == ADDRESS_QUOTA.code else VCPUS),
        "defaultValue": 0.0,
        "adjustable": True,
        "globalQuota": False,
        "serviceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
        "usageMetrics": [],
    }


INVOKES = (InvokeDef("aws:servicequotas/getServiceQuota:getServiceQuota", _quota),)
