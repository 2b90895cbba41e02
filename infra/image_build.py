"""`modelfleet:aws:ImageBuild`: an image that CodeBuild builds and ECR keeps, found again by its tag.

The tag names the content and cannot be moved, so an image that is there is the wanted one. A build that a stopped run
left behind is waited for: nothing is built twice at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from modelfleet.infra.provider import Call, Made, Props, Refused, ResourceDef

POLL_S: Final = 5.0
#: The project's own limits (infra/aws/image.py) end a build first.
LONGEST_WAIT_S: Final = 3 * 3600.0
#: Lines of the log that say why a build failed.
LAST_LINES: Final = 20
#: Builds of a project that are looked at, the newest first: `BatchGetBuilds` takes 100.
#: https://docs.aws.amazon.com/codebuild/latest/APIReference/API_BatchGetBuilds.html
MOST_BUILDS: Final = 100
CONFIG: Final = Config(connect_timeout=10, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 8})
#: What an account hears that may run no build of this size at once, as many new ones may not
#: (aws-ia/terraform-aws-control_tower_account_factory#179).
LIMIT: Final = "AccountLimitExceededException"
MORE_BUILDS: Final = (
    'request the quota "Concurrently running builds for Linux/{size} environment" of AWS CodeBuild in the console of '
    "Service Quotas, or name an image of your own in kubernetes.image"
)
ABSENT: Final = frozenset({"ImageNotFoundException", "RepositoryNotFoundException"})

Client = Callable[[str], Any]


def create(call: Call[Props], inputs: Props) -> Made:
    """Waits until the image is there, and starts its build if nobody has."""
    client = _client(inputs)
    began = time.monotonic()

    def say(line: str) -> None:
        call.step(f"{line[:200]} ({time.monotonic() - began:.0f} s)")

    try:
        digest = _digest(client, inputs)
        if digest is None:
            build = _running(client, inputs) or _start(client, inputs)
            _wait(client, build, say)
            digest = _digest(client, inputs)
    except (BotoCoreError, ClientError) as error:
        said = f"the image {inputs['repository']}:{inputs['tag']} could not be built: {error}"
        more = MORE_BUILDS.format(size=inputs["compute"].rpartition("_")[2].title())
        raise Refused(f"{said}; {more}" if LIMIT in str(error) else said) from error
    if digest is None:
        raise Refused(f"build {build} ended well and pushed no {inputs['repository']}:{inputs['tag']}; see its log")
    return Made(f"{inputs['repository']}:{inputs['tag']}", {"digest": digest})


def read(call: Call[Props], id: str, state: Props) -> Props | None:
    """The image with its digest; None when ECR has it no longer, so that the next run builds it again."""
    try:
        digest = _digest(_client(state), state)
    except (BotoCoreError, ClientError) as error:
        raise Refused(f"ECR could not be asked for {id}: {error}") from error
    return None if digest is None else {**state, "digest": digest}


def update(call: Call[Props], id: str, state: Props, inputs: Props) -> Props:
    """Another profile, project or machine: the image stays."""
    return {"digest": state["digest"]}


def delete(call: Call[Props], id: str, state: Props) -> None:
    """Leaves the image: pods still run it, and the repository's lifecycle or its end removes it."""


def _client(inputs: Props) -> Client:
    session = boto3.Session(profile_name=inputs.get("profile"), region_name=inputs["region"])
    return cache(lambda service: session.client(service, config=CONFIG))


def _digest(client: Client, inputs: Props) -> str | None:
    try:
        found = client("ecr").describe_images(
            registryId=inputs["account"], repositoryName=inputs["repository"], imageIds=[{"imageTag": inputs["tag"]}]
        )
    except ClientError as error:
        if error.response["Error"]["Code"] in ABSENT:
            return None
        raise
    return str(found["imageDetails"][0]["imageDigest"])


def _running(client: Client, inputs: Props) -> str | None:
    """A build of this tag that has not ended."""
    codebuild = client("codebuild")
    ids = codebuild.list_builds_for_project(projectName=inputs["project"], sortOrder="DESCENDING")["ids"][:MOST_BUILDS]
    builds = codebuild.batch_get_builds(ids=ids)["builds"] if ids else []
    tagged = {"name": "TAG", "value": inputs["tag"], "type": "PLAINTEXT"}
    return next(
        (
            str(build["id"])
            for build in builds
            if build["buildStatus"] == "IN_PROGRESS" and tagged in build["environment"]["environmentVariables"]
        ),
        None,
    )


def _start(client: Client, inputs: Props) -> str:
    values = {"TAG": inputs["tag"], **inputs["variables"]}
    started = client("codebuild").start_build(
        projectName=inputs["project"],
        computeTypeOverride=inputs["compute"],
        environmentVariablesOverride=[
            {"name": name, "value": value, "type": "PLAINTEXT"} for name, value in values.items()
        ],
    )
    return str(started["build"]["id"])


def _wait(client: Client, id: str, say: Callable[[str], None]) -> None:
    """Until the build has ended well; raises `Refused` with the last lines of its log."""
    codebuild, until = client("codebuild"), time.monotonic() + LONGEST_WAIT_S
    log = _Log(client("logs"))
    while True:
        (build,) = codebuild.batch_get_builds(ids=[id])["builds"]
        log.read(build)
        if build["buildStatus"] != "IN_PROGRESS":
            break
        if time.monotonic() > until:
            raise Refused(f"build {id} has not ended after {LONGEST_WAIT_S / 3600:.0f} h; stop it, or wait for it")
        say(f"{build.get('currentPhase', 'QUEUED').lower()}: {log.last or 'waiting for a build machine'}")
        time.sleep(POLL_S)
    if build["buildStatus"] != "SUCCEEDED":
        raise Refused(failure(build, log.lines))


class _Log:
    """The lines of a build's log so far. CloudWatch names the stream once the build has begun."""

    def __init__(self, logs: Any) -> None:
        self._logs = logs
        self._token: str | None = None
        self.lines: list[str] = []

    @property
    def last(self) -> str:
        """The newest line."""
        return self.lines[-1] if self.lines else ""

    def read(self, build: Props) -> None:
        """Read on. The same token twice is the end for now.

        https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_GetLogEvents.html
        """
        where = build.get("logs") or {}
        if not where.get("groupName") or not where.get("streamName"):
            return
        while True:
            more = {"nextToken": self._token} if self._token else {}
            try:
                page = self._logs.get_log_events(
                    logGroupName=where["groupName"], logStreamName=where["streamName"], startFromHead=True, **more
                )
            except ClientError as error:
                if error.response["Error"]["Code"] == "ResourceNotFoundException":
                    return  # the build has not written yet
                raise
            self.lines += [line for event in page["events"] if (line := event["message"].rstrip())]
            token = page["nextForwardToken"]
            if token == self._token or not page["events"]:
                self._token = token
                return
            self._token = token


def failure(build: Props, lines: Sequence[str]) -> str:
    """Which phase failed, what CodeBuild says of it, and the end of the log."""
    said = "; ".join(dict.fromkeys(_contexts(build)))
    parts = [f"build {build['id']} ended with {build['buildStatus']}{f': {said}' if said else ''}"]
    if lines:
        parts += ["the end of its log:", *(f"  {line}" for line in _worth_reading(lines))]
    if link := (build.get("logs") or {}).get("deepLink"):
        parts.append(f"the whole log: {link}")
    if any("toomanyrequests" in line for line in lines):
        parts.append(
            "Docker Hub limits pulls without an account; name a registry with a copy of the base in imageRegistry"
        )
    parts.append("no node was started; run `pulumi up` again, or name an image of your own in kubernetes.image")
    return "\n".join(parts)


def _contexts(build: Props) -> Iterator[str]:
    for phase in build.get("phases") or ():
        if phase.get("phaseStatus") in (None, "SUCCEEDED"):
            continue
        for context in phase.get("contexts") or ():
            if message := (context.get("message") or "").strip():
                yield f"{phase['phaseType']}: {message}"


def _worth_reading(lines: Sequence[str]) -> Sequence[str]:
    """The last lines without the container's own, which only repeat the phases."""
    own = [line for line in lines if not line.startswith("[Container]")]
    return (own or lines)[-LAST_LINES:]


IMAGE_BUILD = ResourceDef[Props](
    token="modelfleet:aws:ImageBuild",  # noqa: S106 - Pulumi's word for a type
    inputs=frozenset({"account", "compute", "profile", "project", "region", "repository", "tag", "variables"}),
    required=frozenset({"account", "compute", "project", "region", "repository", "tag", "variables"}),
    outputs=frozenset({"digest"}),
    force_new=frozenset({"account", "region", "repository", "tag"}),
    create=create,
    read=read,
    update=update,
    delete=delete,
)
