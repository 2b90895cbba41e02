"""Shared by the aws stand-in's resource types: absent and half-made resources, tags, the forms of names."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import botocore.session
from botocore.exceptions import ClientError
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

from modelfleet.infra.provider import Call, Made, PartlyMade, Props, Refused
from tools.standin.aws.session import Aws, error_code, explain

ACCOUNT = "123456789012"
"""moto's account."""
POLL_S = 1.0
"""Between two looks at an update that goes on."""


def is_absent(error: Exception) -> bool:
    """Whether a service reports that the resource does not exist."""
    code = error_code(error)
    return "NotFound" in code or code in ("NoSuchEntity", "NoSuchBucket", "NoSuchKey", "404")


def unless_absent(work: Callable[[], Any]) -> Any:
    """Returns `work()`, or None if the resource does not exist."""
    try:
        return work()
    except ClientError as error:
        if is_absent(error):
            return None
        raise


def made(id: str, outputs: Props, *steps: Callable[[], Any]) -> Made:
    """Runs the calls that complete a new resource; if one fails, the resource stays in the state to be repaired.

    Otherwise a second `pulumi up` would make another one.
    """
    for step in steps:
        try:
            step()
        except (ClientError, Refused) as error:
            raise PartlyMade(id, outputs, [explain(error) if isinstance(error, ClientError) else str(error)]) from error
    return Made(id, outputs)


def client(call: Call[Aws], service: str, props: Props) -> Any:
    """The service's client in the resource's region."""
    return call.session.client(service, props.get("region"))


def region(call: Call[Aws], props: Props) -> str:
    """The resource's region."""
    return str(props.get("region") or call.session.region)


def ec2_arn(call: Call[Aws], props: Props, kind: str, id: str) -> str:
    """The ARN of an EC2 resource, of a kind such as `subnet`."""
    return f"arn:aws:ec2:{region(call, props)}:{ACCOUNT}:{kind}/{id}"


def first(answer: Any) -> Any:
    """The first item of a list; None if the list is absent or empty."""
    return answer[0] if answer else None


def capital(name: str) -> str:
    """The name as EC2 writes it: `cidrBlock` becomes `CidrBlock`."""
    return name[:1].upper() + name[1:]


def given(props: Props, *names: str) -> Props:
    """The inputs that are set, under EC2's capitalised names."""
    return {capital(name): props[name] for name in names if props.get(name) is not None}


def as_tags(tags: Mapping[str, str], key: str = "Key", value: str = "Value") -> list[dict[str, str]]:
    """Tags as a list of pairs."""
    return [{key: name, value: text} for name, text in tags.items()]


def from_tags(pairs: Iterable[Mapping[str, str]], key: str = "Key", value: str = "Value") -> dict[str, str]:
    """A list of pairs as tags, without the tags that AWS sets itself."""
    return {pair[key]: pair[value] for pair in pairs if not pair[key].startswith("aws:")}


def live_tags(call: Call[Aws], state: Props, found: Mapping[str, str]) -> Props:
    """The account's `tags` and `tagsAll`; `tags` leaves out the provider's default tags."""
    own = state.get("tags") or {}
    tags = {name: text for name, text in found.items() if name in own or name not in call.session.default_tags}
    return {"tagsAll": dict(found), **({"tags": tags} if tags or own else {})}


def tag_specification(call: Call[Aws], kind: str, inputs: Props) -> Props:
    """EC2's `TagSpecifications` for a new resource."""
    tags = call.session.tags(inputs)
    return {"TagSpecifications": [{"ResourceType": kind, "Tags": as_tags(tags)}]} if tags else {}


def retag(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    """Changes an EC2 resource's tags to the program's; returns `tagsAll`."""
    wanted, had = call.session.tags(inputs), state.get("tagsAll") or {}
    ec2 = client(call, "ec2", inputs)
    if gone := [{"Key": name} for name in had if name not in wanted]:
        ec2.delete_tags(Resources=[id], Tags=gone)
    if changed := {name: text for name, text in wanted.items() if had.get(name) != text}:
        ec2.create_tags(Resources=[id], Tags=as_tags(changed))
    return {"tagsAll": wanted}


def retag_eks(call: Call[Aws], arn: str, state: Props, inputs: Props) -> None:
    """Changes the tags of an EKS resource to the program's."""
    wanted, had = call.session.tags(inputs), state.get("tagsAll") or {}
    eks = client(call, "eks", inputs)
    if gone := sorted(set(had) - set(wanted)):
        eks.untag_resource(resourceArn=arn, tagKeys=gone)
    if changed := {name: text for name, text in wanted.items() if had.get(name) != text}:
        eks.tag_resource(resourceArn=arn, tags=changed)


def ended(eks: Any, update: Props, **named: str) -> None:
    """Waits for an update of EKS; raises `Refused` in the Terraform provider's words if it fails.

    terraform-provider-aws internal/service/eks (`waitClusterUpdateSuccessful`, `waitNodegroupUpdateSuccessful`).
    """
    while update["status"] == "InProgress":
        time.sleep(POLL_S)
        update = eks.describe_update(updateId=update["id"], **named)["update"]
    if update["status"] == "Successful":
        return
    causes = [
        f"{', '.join(one.get('resourceIds') or ())}: {one['errorCode']}: {one['errorMessage']}"
        for one in update["errors"]
    ]
    raise Refused(
        f"waiting for update ({update['id']}) of {':'.join(named.values())}: unexpected state '{update['status']}', "
        f"wanted target 'Successful'. last error: {'; '.join(causes)}"
    )


@cache
def service_model(service: str) -> ServiceModel:
    """botocore's model of a service."""
    return botocore.session.get_session().get_service_model(service)


def validated(service: str, operation: str, params: Props) -> Props:
    """Returns `params` unchanged; raises `Refused` with botocore's report if the operation would not take them."""
    shape: Any = service_model(service).operation_model(operation).input_shape
    report = ParamValidator().validate(params, shape)
    if report.has_errors():
        raise Refused(f"{operation}: {report.generate_report()}")
    return params
