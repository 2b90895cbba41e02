"""Account, region and zones: the functions that every aws program calls first."""

from __future__ import annotations

from modelfleet.infra.provider import InvokeDef, NotDone, Props
from tools.standin.aws.session import Aws

_REGION_NAMES = {"us-east-1": "US East (N. Virginia)", "us-east-2": "US East (Ohio)", "us-west-2": "US West (Oregon)"}


def _caller_identity(session: Aws, args: Props) -> Props:
    answer = session.client("sts").get_caller_identity()
    return {
        "accountId": answer["Account"],
        "arn": answer["Arn"],
        "userId": answer["UserId"],
        "id": answer["Account"],
    }


def _region(session: Aws, args: Props) -> Props:
    unknown = sorted(set(args) - {"region", "name"})
    if unknown:
        raise NotDone(f"aws:index/getRegion:getRegion argument '{unknown[0]}'")
    name = args.get("region") or args.get("name") or session.region
    return {
        "region": name,
        "name": name,
        "id": name,
        "endpoint": f"ec2.{name}.amazonaws.com",
        "description": _REGION_NAMES.get(name, name),
    }


def _partition(session: Aws, args: Props) -> Props:
    return {
        "partition": "aws",
        "id": "aws",
        "dnsSuffix": "amazonaws.com",
        "reverseDnsPrefix": "com.amazonaws",
    }


def _availability_zones(session: Aws, args: Props) -> Props:
    unknown = sorted(set(args) - {"state", "filters", "excludeNames", "excludeZoneIds", "region"})
    if unknown:
        raise NotDone(f"aws:index/getAvailabilityZones:getAvailabilityZones argument '{unknown[0]}'")
    region = args.get("region") or session.region
    filters = [{"Name": item["name"], "Values": item["values"]} for item in args.get("filters") or []]
    zones = session.client("ec2", region).describe_availability_zones(Filters=filters)["AvailabilityZones"]
    left_out = {*(args.get("excludeNames") or []), *(args.get("excludeZoneIds") or [])}
    kept = [
        zone
        for zone in zones
        if not left_out & {zone["ZoneName"], zone["ZoneId"]} and args.get("state") in (None, zone["State"])
    ]
    kept.sort(key=lambda zone: zone["ZoneName"])
    return {
        **args,
        "id": region,
        "region": region,
        "names": [zone["ZoneName"] for zone in kept],
        "zoneIds": [zone["ZoneId"] for zone in kept],
        "groupNames": sorted({zone.get("GroupName") or region for zone in kept}),
    }


INVOKES = (
    InvokeDef("aws:index/getCallerIdentity:getCallerIdentity", _caller_identity),
    InvokeDef("aws:index/getRegion:getRegion", _region),
    InvokeDef("aws:index/getPartition:getPartition", _partition),
    InvokeDef("aws:index/getAvailabilityZones:getAvailabilityZones", _availability_zones),
)
