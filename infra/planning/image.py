"""The images of a stack that names none: made in the stack's own account, once for each content."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from modelfleet.infra.catalog import Catalog
from modelfleet.infra.catalog.images import reference
from modelfleet.infra.planning.plan import HOURS_PER_MONTH, ImagePlan, ImageSource
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.versions import PINNED

#: From the start to the last pushed layer. Not measured: vLLM's image of some 12 GB is pulled, unpacked to some 30 GB,
#: and pushed with what is installed on it; the mirror's is 0.25 GB.
SERVING_MINUTES: Final = 25
MIRROR_MINUTES: Final = 3
#: What ECR keeps of an image, compressed: vLLM's own is 12 GB. The mirror's is less than it is unpacked.
SERVING_GB, MIRROR_GB = 12.0, 0.25
#: 8 vCPUs, 16 GiB and room for an image of 30 GB beside its layers; a small machine has 64 GB of disk, and an account
#: counts each size apart.
#: https://docs.aws.amazon.com/codebuild/latest/userguide/build-env-ref-compute-types.html
SERVING_COMPUTE: Final = "BUILD_GENERAL1_LARGE"
MIRROR_COMPUTE: Final = "BUILD_GENERAL1_SMALL"
#: The row of `prices.csv`, in USD per hour, of each.
PRICES: Final = {SERVING_COMPUTE: "codebuild-general1-large", MIRROR_COMPUTE: "codebuild-general1-small"}
#: That of a GB in ECR, also per hour.
STORAGE_PRICE: Final = "ecr-gb"
#: How much of the content's hash is in the tag.
TAG_DIGITS: Final = 12


def image_plan(stack: LoadedStack, source: ImageSource | None, catalog: Catalog) -> ImagePlan | None:
    """The image that the stack makes; None where the file names one, or where there is no account to make it in."""
    if source is None or stack.config.kubernetes.image or not stack.config.target.makes_cluster:
        return None
    base = reference("vllm", registry=stack.config.image_registry)
    return ImagePlan(
        source=source,
        dockerfile="serving/Dockerfile",
        base=base,
        repository=serving_repository(stack.name),
        tag=f"ray{PINNED['ray']}-{_content(source.serving_sha256, base)}",
        compute_type=SERVING_COMPUTE,
        minutes=SERVING_MINUTES,
        usd=_usd(stack, catalog, SERVING_COMPUTE, SERVING_MINUTES),
        usd_per_month=_usd_per_month(stack, catalog, SERVING_GB),
    )


def mirror_image_plan(stack: LoadedStack, source: ImageSource | None, catalog: Catalog) -> ImagePlan | None:
    """The mirror Jobs' image, made beside the serving image; None where the file names it, or nothing is mirrored."""
    mirror = stack.config.mirror
    if source is None or image_plan(stack, source, catalog) is None or mirror.image or not mirror.create:
        return None
    base = reference("python", registry=stack.config.image_registry)
    return ImagePlan(
        source=source,
        dockerfile="serving/mirror/Dockerfile",
        base=base,
        repository=f"{_as_repository(f'modelfleet-{stack.name}')}/mirror",
        tag=_content(source.mirror_sha256, base),
        compute_type=MIRROR_COMPUTE,
        minutes=MIRROR_MINUTES,
        usd=_usd(stack, catalog, MIRROR_COMPUTE, MIRROR_MINUTES),
        usd_per_month=_usd_per_month(stack, catalog, MIRROR_GB),
    )


def _content(sha256: str, base: str) -> str:
    return hashlib.sha256(f"{sha256} {base}".encode()).hexdigest()[:TAG_DIGITS]


def _usd(stack: LoadedStack, catalog: Catalog, compute: str, minutes: int) -> float | None:
    per_hour = catalog.usd_per_hour(PRICES[compute], region=stack.region or "")
    return None if per_hour is None else per_hour * minutes / 60


def _usd_per_month(stack: LoadedStack, catalog: Catalog, gb: float) -> float | None:
    per_hour = catalog.usd_per_hour(STORAGE_PRICE, region=stack.region or "")
    return None if per_hour is None else per_hour * HOURS_PER_MONTH * gb


def mirror_image_name(stack: LoadedStack, serving: ImagePlan | None, mirror: ImagePlan | None) -> str:
    """The name of the mirror Jobs' image: its own where there is one, else the serving image's."""
    return stack.config.mirror.image or image_name(stack, mirror or serving)


def image_name(stack: LoadedStack, made: ImagePlan | None) -> str:
    """The name that pods have before the build says the digest."""
    if made is None:
        return stack.config.kubernetes.image or f"modelfleet-serving:ray{PINNED['ray']}"
    name, region = f"{made.repository}:{made.tag}", stack.region
    if stack.config.account_id is None or region is None:
        return name
    return f"{registry(stack.config.account_id, region)}/{name}"


def registry(account: str, region: str) -> str:
    """An account's own registry. https://docs.aws.amazon.com/AmazonECR/latest/userguide/Registries.html"""
    suffix = ".cn" if region.startswith("cn-") else ""
    return f"{account}.dkr.ecr.{region}.amazonaws.com{suffix}"


def image_findings(stack: LoadedStack, made: ImagePlan | None) -> list[Finding]:
    """Warns where nothing makes the image: no registry has it, and pods would wait for it on nodes that cost money."""
    if stack.config.target.on_this_machine or stack.config.kubernetes.image or made:
        return []
    message = (
        f"is not set, and no registry has {image_name(stack, None)}; build serving/Dockerfile, push it to a registry "
        "that the nodes can reach, and name it here"
    )
    return [stack.finding(("kubernetes", "image"), message, Severity.WARNING)]


def serving_repository(stack: str) -> str:
    """Where a stack of that name has the images that it makes."""
    return f"{_as_repository(f'modelfleet-{stack}')}/serving"


def _as_repository(name: str) -> str:
    """The part of a repository's name, in which ECR wants single separators between small letters and digits.

    https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_CreateRepository.html
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
