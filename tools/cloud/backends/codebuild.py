"""CodeBuild: projects, and builds that really run their buildspec's commands, with the project's role.

A build is a thread. It reads its source from S3, runs the commands of `buildspec.yml` in a shell where `docker` and
`aws` are those of `tools.cloud.build_programs`, and writes its log to CloudWatch Logs, each with the role's credentials
over HTTP, so that the judge sees what a build really needs. Words and order are those of real logs:
aws-samples/mlops-e2e#68 (source), aws-samples/amazon-lex-bi-bot#6 (a command that fails).
https://docs.aws.amazon.com/codebuild/latest/userguide/build-spec-ref.html
https://docs.aws.amazon.com/codebuild/latest/userguide/view-build-details-phases.html
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.config import Config
from botocore.exceptions import ClientError

from tools.cloud.answers import Answer, Error, as_json
from tools.cloud.callers import ACCOUNT, PARTITION, Callers
from tools.cloud.judge import trusts_service
from tools.cloud.wire import Call

Item = dict[str, Any]
ROOT = Path(__file__).parents[3]
PHASES = ("install", "pre_build", "build", "post_build")
#: Keys of a buildspec and of a phase; CodeBuild refuses others.
KEYS = frozenset({"version", "run-as", "env", "proxy", "batch", "phases", "reports", "artifacts", "cache"})
#: Of Linux containers. https://docs.aws.amazon.com/codebuild/latest/userguide/build-env-ref-compute-types.html
COMPUTE_TYPES = tuple(f"BUILD_GENERAL1_{size}" for size in ("SMALL", "MEDIUM", "LARGE", "XLARGE", "2XLARGE"))
PHASE_KEYS = frozenset({"run-as", "on-failure", "runtime-versions", "commands", "finally"})


class Failed(Exception):
    """A phase that fails, with CodeBuild's status code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class CodeBuild:
    """All projects by region and name, and their builds. `mishaps` is what a test lets happen to commands.

    It says by the beginning of a command, such as `docker build`, what it prints before it fails, or the seconds that
    it takes.
    """

    callers: Callers
    mishaps: dict[str, str | float] = field(default_factory=dict)
    projects: dict[tuple[str, str], Item] = field(default_factory=dict)
    builds: dict[str, Item] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def answer(self, call: Call, url: str) -> Answer:
        """The answer to a call; `url` is where this cloud listens, for the build's own calls."""
        operations: Mapping[str, Callable[[Call, str], Item]] = {
            "CreateProject": self._create,
            "UpdateProject": self._update,
            "BatchGetProjects": self._get,
            "DeleteProject": self._delete,
            "StartBuild": self._start,
            "BatchGetBuilds": self._get_builds,
            "ListBuildsForProject": self._list_builds,
        }
        if call.operation not in operations:
            raise Error(501, "NotImplemented", f"the emulated CodeBuild has no {call.operation}")
        with self._lock:
            return as_json(operations[call.operation](call, url))

    def values(self, call: Call) -> Mapping[str, Any]:
        """The project of calls that name it in a list, or in a build's id."""
        if call.operation == "BatchGetBuilds":
            return {"projectName": str(call.params["ids"][0]).partition(":")[0]}
        return {"projectName": call.params["names"][0]} if call.operation == "BatchGetProjects" else {}

    def forget(self) -> None:
        """Loses everything."""
        with self._lock:
            self.projects.clear()
            self.builds.clear()
            self.mishaps.clear()

    # --- projects ----------------------------------------------------------------------------------------

    def _create(self, call: Call, _: str) -> Item:
        name = str(call.params["name"])
        if (call.region, name) in self.projects:
            raise Error(400, "ResourceAlreadyExistsException", f"Project already exists: {project_arn(call, name)}")
        return {"project": self._keep(call, name, dict(call.params))}

    def _update(self, call: Call, _: str) -> Item:
        name = str(call.params["name"])
        return {"project": self._keep(call, name, {**self._project(call, name), **call.params})}

    def _keep(self, call: Call, name: str, wanted: Item) -> Item:
        arn = project_arn(call, name)
        _require_role(str(wanted["serviceRole"]), arn)
        self.projects[call.region, name] = {**wanted, "arn": arn}
        return self.projects[call.region, name]

    def _get(self, call: Call, _: str) -> Item:
        found = {name: self.projects.get((call.region, name)) for name in call.params["names"]}
        return {
            "projects": [one for one in found.values() if one is not None],
            "projectsNotFound": [name for name, one in found.items() if one is None],
        }

    def _delete(self, call: Call, _: str) -> Item:
        """CodeBuild deletes what does not exist without a word."""
        name = str(call.params["name"])
        self.projects.pop((call.region, name), None)
        self.builds = {id: build for id, build in self.builds.items() if build["projectName"] != name}
        return {}

    def _project(self, call: Call, name: str) -> Item:
        found = self.projects.get((call.region, name))
        if found is None:
            message = f"Project cannot be found: {project_arn(call, name)}"
            raise Error(400, "ResourceNotFoundException", message)
        return found

    # --- builds ------------------------------------------------------------------------------------------

    def _start(self, call: Call, url: str) -> Item:
        project = self._project(call, str(call.params["projectName"]))
        environment = dict(project["environment"])
        if compute := call.params.get("computeTypeOverride"):
            _require_compute(str(compute))
            environment["computeType"] = compute
        variables = {one["name"]: one for one in environment.get("environmentVariables") or ()}
        variables |= {one["name"]: one for one in call.params.get("environmentVariablesOverride") or ()}
        environment["environmentVariables"] = [{"type": "PLAINTEXT", **one} for one in variables.values()]
        id = f"{project['name']}:{uuid.uuid4()}"
        build: Item = {
            "id": id,
            "arn": project["arn"].replace(":project/", ":build/").replace(project["name"], id),
            "projectName": project["name"],
            "buildStatus": "IN_PROGRESS",
            "currentPhase": "QUEUED",
            "buildComplete": False,
            "startTime": time.time(),
            "phases": [{"phaseType": "SUBMITTED", "phaseStatus": "SUCCEEDED"}],
            "source": project["source"],
            "environment": environment,
            "serviceRole": project["serviceRole"],
            "logs": {},
        }
        self.builds[id] = build
        machine = _Machine(self, build, project, call.region, url)
        threading.Thread(target=machine.run, daemon=True).start()
        return {"build": build}

    def _get_builds(self, call: Call, _: str) -> Item:
        return {"builds": [self.builds[id] for id in call.params["ids"] if id in self.builds]}

    def _list_builds(self, call: Call, _: str) -> Item:
        name = self._project(call, str(call.params["projectName"]))["name"]
        own = [id for id, build in self.builds.items() if build["projectName"] == name]
        return {"ids": own if call.params.get("sortOrder") == "ASCENDING" else own[::-1]}


def project_arn(call: Call, name: str) -> str:
    """The ARN of a project."""
    return f"arn:{PARTITION}:codebuild:{call.region}:{ACCOUNT}:project/{name}"


def _require_role(role: str, project: str) -> None:
    """CodeBuild tries the role when a project is made.

    https://docs.aws.amazon.com/codebuild/latest/userguide/cross-service-confused-deputy-prevention.html
    """
    asking = {"aws:SourceArn": project, "aws:SourceAccount": ACCOUNT}
    if not trusts_service(role, "codebuild.amazonaws.com", "sts:AssumeRole", {}, asking):
        raise Error(
            400,
            "InvalidInputException",
            "CodeBuild is not authorized to perform: sts:AssumeRole on service role. Please verify that: 1) The "
            "provided service role exists, 2) CodeBuild is authorized to assume the role",
        )


def _require_compute(name: str) -> None:
    """https://docs.aws.amazon.com/codebuild/latest/APIReference/API_StartBuild.html"""
    if name not in COMPUTE_TYPES:
        found = f"Value '{name}' at 'computeTypeOverride' failed to satisfy constraint"
        raise Error(
            400,
            "ValidationException",
            f"1 validation error detected: {found}: Member must satisfy enum value set: [{', '.join(COMPUTE_TYPES)}]",
        )


class _Machine:
    """One build, from its source to its end."""

    def __init__(self, owner: CodeBuild, build: Item, project: Item, region: str, url: str) -> None:
        self._owner, self._build, self._project, self._region, self._url = owner, build, project, region, url
        session = owner.callers.assume(build["serviceRole"], f"AWSCodeBuild-{uuid.uuid4()}", {})
        self._keys = {
            "aws_access_key_id": session.access_key_id,
            "aws_secret_access_key": session.secret_access_key,
            "aws_session_token": session.session_token,
        }
        self._open_log()

    def run(self) -> None:
        """All phases; whatever happens, the build ends."""
        status = "FAULT"
        try:
            status = self._phases()
        finally:
            self._build.update(buildStatus=status, currentPhase="COMPLETED", buildComplete=True, endTime=time.time())

    def _phases(self) -> str:
        with tempfile.TemporaryDirectory(prefix="codebuild-") as folder:
            source = Path(folder) / "src"
            try:
                self._enter("DOWNLOAD_SOURCE")
                phases = self._download(source)
                self._leave("SUCCEEDED")
            except Failed as error:
                self._leave("FAILED", error)
                return "FAILED"
            status = "SUCCEEDED"
            for name in PHASES:
                if name not in phases:
                    continue
                try:
                    self._enter(name.upper())
                    self._commands(phases[name], Path(folder), source)
                    self._leave("SUCCEEDED")
                except Failed as error:
                    self._leave("FAILED", error)
                    status = "FAILED"
                    # Only a failed `build` goes on to `post_build`, and only where nothing says ABORT.
                    if name != "build" or phases[name].get("on-failure") == "ABORT":
                        break
            return status

    def _download(self, source: Path) -> Mapping[str, Item]:
        bucket, _, key = str(self._project["source"]["location"]).partition("/")
        try:
            s3 = self._client("s3")
            s3.get_bucket_location(Bucket=bucket)
            s3.get_bucket_acl(Bucket=bucket)
            found = s3.get_object(Bucket=bucket, Key=key)
            if found.get("VersionId") not in (None, "null"):  # of a versioned bucket
                found = s3.get_object(Bucket=bucket, Key=key, VersionId=found["VersionId"])
            content = found["Body"].read()
        except ClientError as error:
            said = error.response["Error"]
            message = f"{said['Code']}: {said['Message']} for primary source and source version "
            raise Failed("CLIENT_ERROR", message) from error
        source.mkdir()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            archive.extractall(source)
        return _buildspec(source / "buildspec.yml")

    def _commands(self, phase: Item, folder: Path, source: Path) -> None:
        for command in phase.get("commands") or ():
            self._say(f"[Container] Running command {command}")
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=source,
                env=self._environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            self._say(*done.stdout.splitlines())
            if done.returncode:
                self._say(f"[Container] Command did not exit successfully {command} exit status {done.returncode}")
                message = f"Error while executing command: {command}. Reason: exit status {done.returncode}"
                raise Failed("COMMAND_EXECUTION_ERROR", message)

    def _environment(self, folder: Path) -> dict[str, str]:
        programs = folder / "bin"
        if not programs.exists():
            programs.mkdir()
            for name in ("aws", "docker"):
                program = programs / name
                run = f'exec "{sys.executable}" -P -m tools.cloud.build_programs {name} "$@"'
                program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" {run}\n')
                program.chmod(0o755)
        environment = self._build["environment"]
        return {
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": str(folder),
            "AWS_ENDPOINT_URL": self._url,
            "AWS_DEFAULT_REGION": self._region,
            "AWS_REGION": self._region,
            "CODEBUILD_BUILD_ID": self._build["id"],
            **{name.upper(): value for name, value in self._keys.items()},
            **{one["name"]: str(one["value"]) for one in environment["environmentVariables"]},
            "EMULATED_DOCKER": json.dumps(
                {
                    "privileged": bool(environment.get("privilegedMode")),
                    "state": str(folder / "docker.json"),
                    "mishaps": self._owner.mishaps,
                }
            ),
        }

    # --- phases and log ----------------------------------------------------------------------------------

    def _enter(self, phase: str) -> None:
        self._build["currentPhase"] = phase
        self._build["phases"].append({"phaseType": phase})
        self._say(f"[Container] Entering phase {phase}")

    def _leave(self, status: str, error: Failed | None = None) -> None:
        context = {"statusCode": error.code if error else "", "message": str(error or "")}
        phase = self._build["phases"][-1]
        phase.update(phaseStatus=status, contexts=[context])
        self._say(
            f"[Container] Phase complete: {phase['phaseType']} State: {status}",
            f"[Container] Phase context status code: {context['statusCode']} Message: {context['message']}",
        )

    def _open_log(self) -> None:
        wanted = (self._project.get("logsConfig") or {}).get("cloudWatchLogs") or {}
        group = wanted.get("groupName") or f"/aws/codebuild/{self._project['name']}"
        stream = self._build["id"].partition(":")[2]
        self._log: Callable[[list[Item]], Any] | None = None
        try:
            logs = self._client("logs")
            logs.create_log_stream(logGroupName=group, logStreamName=stream)
        except ClientError:
            return  # as CodeBuild: a build without a log
        self._log = lambda events: logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)
        link = f"https://console.aws.amazon.com/cloudwatch/home?region={self._region}#logsV2:log-groups"
        self._build["logs"] = {"groupName": group, "streamName": stream, "deepLink": link}

    def _say(self, *lines: str) -> None:
        events = [{"timestamp": int(time.time() * 1000), "message": f"{line}\n"} for line in lines if line]
        if self._log is not None and events:
            self._log(events)

    def _client(self, service: str) -> Any:
        return _session().client(
            service,
            region_name=self._region,
            endpoint_url=self._url,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
            **self._keys,
        )


@cache
def _session() -> boto3.session.Session:
    """One for all clients: it keeps the services' models, which take long to read."""
    return boto3.session.Session()


def _buildspec(file: Path) -> Mapping[str, Item]:
    """The phases of a buildspec; raises `Failed` for what CodeBuild would not read."""
    if not file.is_file():
        raise Failed("YAML_FILE_ERROR", f"stat {file}: no such file or directory")
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise Failed("YAML_FILE_ERROR", str(error)) from error
    phases: Mapping[str, Item] = document.get("phases") or {}
    unknown = [*(set(document) - KEYS), *(set(phases) - set(PHASES))]
    unknown += [key for phase in phases.values() for key in set(phase) - PHASE_KEYS]
    if str(document.get("version")) != "0.2" or unknown or not phases:
        said = f"unknown {', '.join(sorted(unknown))}" if unknown else "version 0.2 and phases are wanted"
        raise Failed("YAML_FILE_ERROR", f"buildspec: {said}")
    return phases
