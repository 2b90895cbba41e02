"""Service quotas: moto has none of EC2's. The values are the table's, and a test or a person may set others.

Entry `quotas/<service>/<code>` of the table, `{"value": 64}`, wins over the default here.
"""

from __future__ import annotations

from infra.provider import InvokeDef, Props, Refused
from tools.standin.aws.session import Aws
from tools.standin.aws.table import Table

#: EC2's vCPU quotas by code, with their names; the values are large, as of an account that was raised.
EC2_QUOTAS = {
    "L-DB2E81BA": ("Running On-Demand G and VT instances", 1024),
    "L-3819A6DF": ("All G and VT Spot Instance Requests", 1024),
    "L-417A185B": ("Running On-Demand P instances", 1024),
    "L-7212CCBC": ("All P4, P3 and P2 Spot Instance Requests", 1024),
    "L-1216C47A": ("Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", 1024),
    "L-34B43A08": ("All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests", 1024),
}


def _quota(session: Aws, args: Props) -> Props:
    service, code = args["serviceCode"], args.get("quotaCode")
    if service != "ec2" or code not in EC2_QUOTAS:
        raise Refused(f"GetServiceQuota: NoSuchResourceException: {service} {code}")
    name, default = EC2_QUOTAS[code]
    entry = Table(session).find(f"quotas/{service}/{code}")
    where = args.get("region") or session.region
    arn = f"arn:aws:servicequotas:{where}:123456789012:{service}/{code}"
    return {
        **args,
        "id": arn,
        "arn": arn,
        "region": where,
        "quotaName": name,
        "value": float(entry["value"] if entry else default),
        "defaultValue": 0.0,
        "adjustable": True,
        "globalQuota": False,
        "serviceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
        "usageMetrics": [],
    }


INVOKES = (InvokeDef("aws:servicequotas/getServiceQuota:getServiceQuota", _quota),)
