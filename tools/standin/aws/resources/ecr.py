"""Images in ECR, which programs only look up."""

from __future__ import annotations

from modelfleet.infra.provider import InvokeDef, Props, Refused
from tools.standin.aws.session import Aws


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
