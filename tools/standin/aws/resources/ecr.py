"""ECR: repositories, their lifecycle policies, and images, which programs only look up."""

from __future__ import annotations

import json
from typing import Any

from modelfleet.infra.provider import Call, InvokeDef, Made, Props, Refused, ResourceDef
from tools.standin.aws.making import as_tags, client, from_tags, live_tags, region, unless_absent
from tools.standin.aws.resources.s3_settings import same_json
from tools.standin.aws.session import Aws

# --- repository ------------------------------------------------------------------------------------------


def _settings(inputs: Props) -> Props:
    scanning = inputs.get("imageScanningConfiguration") or {}
    return {
        "imageTagMutability": inputs.get("imageTagMutability", "MUTABLE"),
        "imageScanningConfiguration": {"scanOnPush": bool(scanning.get("scanOnPush"))},
    }


def _create_repository(call: Call[Aws], inputs: Props) -> Made:
    tags = call.session.tags(inputs)
    more = {"tags": as_tags(tags)} if tags else {}
    made = client(call, "ecr", inputs).create_repository(repositoryName=inputs["name"], **_settings(inputs), **more)
    return Made(inputs["name"], {**_outputs(call, inputs, made["repository"]), "tagsAll": tags})


def _outputs(call: Call[Aws], props: Props, found: Props) -> Props:
    return {
        "arn": found["repositoryArn"],
        "registryId": found["registryId"],
        # moto leaves out the account.
        "repositoryUrl": f"{found['registryId']}.dkr.ecr.{region(call, props)}.amazonaws.com/{found['repositoryName']}",
        "region": region(call, props),
    }


def _find(call: Call[Aws], id: str, state: Props) -> Any:
    ecr = client(call, "ecr", state)
    answer = unless_absent(lambda: ecr.describe_repositories(repositoryNames=[id]))
    return answer["repositories"][0] if answer else None


def _read_repository(call: Call[Aws], id: str, state: Props) -> Props | None:
    found = _find(call, id, state)
    if found is None:
        return None
    tags = from_tags(client(call, "ecr", state).list_tags_for_resource(resourceArn=found["repositoryArn"])["tags"])
    live = {
        "name": id,
        "imageTagMutability": found["imageTagMutability"],
        "imageScanningConfiguration": found["imageScanningConfiguration"],
    }
    return {**state, **live, **_outputs(call, state, found), **live_tags(call, state, tags)}


def _update_repository(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    ecr, settings = client(call, "ecr", inputs), _settings(inputs)
    had = _settings(state)
    if settings["imageTagMutability"] != had["imageTagMutability"]:
        ecr.put_image_tag_mutability(repositoryName=id, imageTagMutability=settings["imageTagMutability"])
    if settings["imageScanningConfiguration"] != had["imageScanningConfiguration"]:
        ecr.put_image_scanning_configuration(
            repositoryName=id, imageScanningConfiguration=settings["imageScanningConfiguration"]
        )
    wanted, old = call.session.tags(inputs), state.get("tagsAll") or {}
    if gone := sorted(set(old) - set(wanted)):
        ecr.untag_resource(resourceArn=state["arn"], tagKeys=gone)
    if wanted != old and wanted:
        ecr.tag_resource(resourceArn=state["arn"], tags=as_tags(wanted))
    return {"tagsAll": wanted}


def _delete_repository(call: Call[Aws], id: str, state: Props) -> None:
    ecr = client(call, "ecr", state)
    unless_absent(lambda: ecr.delete_repository(repositoryName=id, force=bool(state.get("forceDelete"))))


REPOSITORY = ResourceDef(
    token="aws:ecr/repository:Repository",
    inputs=frozenset({"forceDelete", "imageScanningConfiguration", "imageTagMutability", "name", "region", "tags"}),
    required=frozenset({"name"}),
    outputs=frozenset({"arn", "region", "registryId", "repositoryUrl", "tagsAll"}),
    # terraform-provider-aws internal/service/ecr/repository.go
    force_new=frozenset({"name", "region"}),
    delete_before_replace=True,
    create=_create_repository,
    read=_read_repository,
    update=_update_repository,
    delete=_delete_repository,
)

# --- lifecycle policy ------------------------------------------------------------------------------------


def _put_policy(call: Call[Aws], inputs: Props) -> Props:
    made = client(call, "ecr", inputs).put_lifecycle_policy(
        repositoryName=inputs["repository"], lifecyclePolicyText=inputs["policy"]
    )
    return {"registryId": made["registryId"], "region": region(call, inputs)}


def _read_policy(call: Call[Aws], id: str, state: Props) -> Props | None:
    ecr = client(call, "ecr", state)
    found = unless_absent(lambda: ecr.get_lifecycle_policy(repositoryName=id))
    return {**state, "repository": id, "policy": found["lifecyclePolicyText"]} if found else None


def _policy_fault(inputs: Props) -> list[tuple[str, str]]:
    try:
        rules = json.loads(inputs["policy"])["rules"]
    except (TypeError, ValueError, KeyError) as error:
        return [("policy", f"InvalidParameterException: {error}")]
    return [] if rules else [("policy", "InvalidParameterException: no rules")]


LIFECYCLE_POLICY = ResourceDef(
    token="aws:ecr/lifecyclePolicy:LifecyclePolicy",
    inputs=frozenset({"policy", "region", "repository"}),
    required=frozenset({"policy", "repository"}),
    outputs=frozenset({"region", "registryId"}),
    force_new=frozenset({"region", "repository"}),
    same={"policy": same_json},
    check=_policy_fault,
    create=lambda call, inputs: Made(inputs["repository"], _put_policy(call, inputs)),
    read=_read_policy,
    update=lambda call, id, state, inputs: _put_policy(call, inputs),
    delete=lambda call, id, state: unless_absent(
        lambda: client(call, "ecr", state).delete_lifecycle_policy(repositoryName=id)
    ),
)

# --- images ----------------------------------------------------------------------------------------------


def _get_image(session: Aws, args: Props) -> Props:
    if not (args.get("imageTag") or args.get("imageDigest") or args.get("mostRecent")):
        raise Refused("aws:ecr/getImage:getImage: one of image_digest, image_tag or most_recent must be set")
    where = args.get("region") or session.region
    wanted = {"imageDigest": args["imageDigest"]} if args.get("imageDigest") else {"imageTag": args["imageTag"]}
    found = session.client("ecr", where).describe_images(
        registryId=args["registryId"], repositoryName=args["repositoryName"], imageIds=[wanted]
    )["imageDetails"][0]
    registry = f"{args['registryId']}.dkr.ecr.{where}.amazonaws.com"
    return {
        **args,
        "id": found["imageDigest"],
        "region": where,
        "imageDigest": found["imageDigest"],
        "imageTags": found.get("imageTags", []),
        "imageUri": f"{registry}/{args['repositoryName']}@{found['imageDigest']}",
    }


INVOKES = (InvokeDef("aws:ecr/getImage:getImage", _get_image),)
RESOURCES = (REPOSITORY, LIFECYCLE_POLICY)
