"""Certificates of ACM with their proof, and records of Route 53."""

from __future__ import annotations

import time
from typing import Any

from modelfleet.infra.provider import Call, InvokeDef, Made, Props, Refused, ResourceDef
from tools.standin.aws.making import as_tags, client, from_tags, live_tags, region, unless_absent
from tools.standin.aws.session import Aws

#: moto's longest, unless it is told otherwise.
ISSUED_WITHIN_S = 90

# --- certificate -----------------------------------------------------------------------------------------


def _create_certificate(call: Call[Aws], inputs: Props) -> Made:
    acm, tags = client(call, "acm", inputs), call.session.tags(inputs)
    arn = acm.request_certificate(
        DomainName=inputs["domainName"],
        ValidationMethod=inputs["validationMethod"],
        **({"Tags": as_tags(tags)} if tags else {}),
    )["CertificateArn"]
    found = acm.describe_certificate(CertificateArn=arn)["Certificate"]
    outputs = {
        "arn": arn,
        "domainValidationOptions": [_asked(option) for option in found["DomainValidationOptions"]],
        "region": region(call, inputs),
        "tagsAll": tags,
    }
    return Made(arn, outputs)


def _asked(option: Props) -> Props:
    record = option["ResourceRecord"]
    return {
        "domainName": option["DomainName"],
        "resourceRecordName": record["Name"],
        "resourceRecordType": record["Type"],
        "resourceRecordValue": record["Value"],
    }


def _read_certificate(call: Call[Aws], id: str, state: Props) -> Props | None:
    acm = client(call, "acm", state)
    found = unless_absent(lambda: acm.describe_certificate(CertificateArn=id)["Certificate"])
    if not found:
        return None
    tags = from_tags(acm.list_tags_for_certificate(CertificateArn=id)["Tags"])
    return {**state, "domainName": found["DomainName"], **live_tags(call, state, tags)}


def _retag_certificate(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    acm = client(call, "acm", inputs)
    wanted, had = call.session.tags(inputs), state.get("tagsAll") or {}
    if gone := sorted({*had} - {*wanted}):
        acm.remove_tags_from_certificate(CertificateArn=id, Tags=[{"Key": name} for name in gone])
    if wanted and wanted != had:
        acm.add_tags_to_certificate(CertificateArn=id, Tags=as_tags(wanted))
    return {"tagsAll": wanted}


CERTIFICATE = ResourceDef(
    token="aws:acm/certificate:Certificate",
    inputs=frozenset({"domainName", "region", "tags", "validationMethod"}),
    required=frozenset({"domainName", "validationMethod"}),
    outputs=frozenset({"arn", "domainValidationOptions", "region", "tagsAll"}),
    force_new=frozenset({"domainName", "region", "validationMethod"}),
    create=_create_certificate,
    read=_read_certificate,
    update=_retag_certificate,
    delete=lambda call, id, state: unless_absent(
        lambda: client(call, "acm", state).delete_certificate(CertificateArn=id)
    ),
)


def _validate(call: Call[Aws], inputs: Props) -> Made:
    """ACM issues a certificate once it finds its record, which the real plugin awaits for up to 75 minutes.

    moto issues every one after a while, so here the record is looked for: one that is not there would never be found.
    """
    acm, arn = client(call, "acm", inputs), inputs["certificateArn"]
    found = acm.describe_certificate(CertificateArn=arn)["Certificate"]
    lacking = [
        option["ResourceRecord"]["Name"]
        for option in found["DomainValidationOptions"]
        if not _stands_in_a_zone(call, option["ResourceRecord"])
    ]
    if lacking:
        raise Refused(f"waiting for ACM Certificate ({arn}) to be issued: timeout; no record {', '.join(lacking)}")
    until = time.monotonic() + ISSUED_WITHIN_S
    while acm.describe_certificate(CertificateArn=arn)["Certificate"]["Status"] != "ISSUED":
        if time.monotonic() > until:
            raise Refused(f"waiting for ACM Certificate ({arn}) to be issued: timeout")
        call.step("waiting for the certificate")
        time.sleep(0.5)
    return Made(arn, {"region": region(call, inputs)})


def _stands_in_a_zone(call: Call[Aws], wanted: Props) -> bool:
    route53 = client(call, "route53", {})
    records = [
        record
        for zone in route53.list_hosted_zones()["HostedZones"]
        for record in route53.list_resource_record_sets(HostedZoneId=zone["Id"])["ResourceRecordSets"]
    ]
    return any(
        (record["Name"], record["Type"]) == (wanted["Name"], wanted["Type"])
        and {"Value": wanted["Value"]} in record.get("ResourceRecords", ())
        for record in records
    )


VALIDATION = ResourceDef(
    token="aws:acm/certificateValidation:CertificateValidation",
    inputs=frozenset({"certificateArn", "region", "validationRecordFqdns"}),
    required=frozenset({"certificateArn"}),
    outputs=frozenset({"region"}),
    force_new=frozenset({"certificateArn", "region", "validationRecordFqdns"}),
    create=_validate,
    read=lambda call, id, state: (
        state if unless_absent(lambda: client(call, "acm", state).describe_certificate(CertificateArn=id)) else None
    ),
    delete=lambda call, id, state: None,  # nothing in AWS stands for the waiting
)

# --- record ----------------------------------------------------------------------------------------------


def _record_set(inputs: Props) -> Props:
    found: Props = {"Name": inputs["name"], "Type": inputs["type"]}
    if aliases := inputs.get("aliases"):
        (alias,) = aliases
        found["AliasTarget"] = {
            "HostedZoneId": alias["zoneId"],
            "DNSName": alias["name"],
            "EvaluateTargetHealth": alias["evaluateTargetHealth"],
        }
        return found
    return {
        **found,
        "TTL": int(inputs["ttl"]),
        "ResourceRecords": [{"Value": value} for value in inputs["records"]],
    }


def _change(call: Call[Aws], action: str, inputs: Props) -> None:
    client(call, "route53", {}).change_resource_record_sets(
        HostedZoneId=inputs["zoneId"],
        ChangeBatch={"Changes": [{"Action": action, "ResourceRecordSet": _record_set(inputs)}]},
    )


def _create_record(call: Call[Aws], inputs: Props) -> Made:
    _change(call, "CREATE", inputs)
    return Made(f"{inputs['zoneId']}_{inputs['name']}_{inputs['type']}", {"fqdn": str(inputs["name"]).rstrip(".")})


def _read_record(call: Call[Aws], id: str, state: Props) -> Props | None:
    route53 = client(call, "route53", {})
    found: Any = unless_absent(
        lambda: route53.list_resource_record_sets(HostedZoneId=state["zoneId"])["ResourceRecordSets"]
    )
    wanted = (str(state["name"]).rstrip("."), state["type"])
    return state if any((one["Name"].rstrip("."), one["Type"]) == wanted for one in found or ()) else None


def _update_record(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    _change(call, "UPSERT", inputs)
    return {}


RECORD = ResourceDef(
    token="aws:route53/record:Record",
    inputs=frozenset({"aliases", "name", "records", "ttl", "type", "zoneId"}),
    required=frozenset({"name", "type", "zoneId"}),
    outputs=frozenset({"fqdn"}),
    force_new=frozenset({"name", "type", "zoneId"}),
    create=_create_record,
    read=_read_record,
    update=_update_record,
    delete=lambda call, id, state: unless_absent(lambda: _change(call, "DELETE", state)),
)


def _zone(session: Aws, args: Props) -> Props:
    name = str(args["name"]).rstrip(".")
    zones = session.client("route53").list_hosted_zones()["HostedZones"]
    found = [
        zone
        for zone in zones
        if zone["Name"] == f"{name}." and zone["Config"]["PrivateZone"] == bool(args.get("privateZone"))
    ]
    if not found:
        raise Refused("no matching Route 53 Hosted Zone found")
    id = found[0]["Id"].rpartition("/")[2]
    return {**args, "id": id, "zoneId": id, "name": name}


RESOURCES = (CERTIFICATE, VALIDATION, RECORD)
INVOKES = (InvokeDef("aws:route53/getZone:getZone", _zone),)
