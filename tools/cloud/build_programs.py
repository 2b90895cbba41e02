"""`docker` and `aws` of an emulated build: what `serving/buildspec.yml` runs, with the build's own credentials.

`docker build` reads the Dockerfile and looks whether everything that it copies is there; it runs nothing of it. `docker
push` asks ECR for all that a push asks for. A word that these programs do not know is refused, so that a buildspec
cannot do what nobody has looked at.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
#: https://docs.docker.com/reference/cli/docker/image/tag/
REFERENCE = re.compile(r"(?P<host>[^/:]+)/(?P<name>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*):(?P<tag>[\w][\w.-]{0,127})")


def main(arguments: list[str]) -> int:
    """Runs one program; returns its exit code."""
    program, *words = arguments
    settings: dict[str, Any] = json.loads(os.environ["EMULATED_DOCKER"])
    _let_happen(f"{program} {' '.join(words)}", settings["mishaps"])
    if program == "aws":
        return _aws(words)
    if not settings["privileged"]:
        _fail("Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?")
    docker = Docker(Path(settings["state"]))
    commands = {"login": docker.login, "build": docker.build, "push": docker.push}
    if not words or words[0] not in commands:
        _fail(f"docker: '{' '.join(words[:1])}' is not done by the emulated build")
    commands[words[0]](words[1:])
    return 0


def _let_happen(command: str, mishaps: Mapping[str, Any]) -> None:
    """A test's wish: text before a failure, or seconds."""
    for beginning, wish in mishaps.items():
        if not command.startswith(beginning):
            continue
        if isinstance(wish, str):
            _fail(wish)
        time.sleep(wish)


def _aws(words: list[str]) -> int:
    if words != ["ecr", "get-login-password"]:
        _fail(f"aws: '{' '.join(words)}' is not done by the emulated build")
    import boto3  # slow to import, and only here and for a push
    from botocore.exceptions import ClientError

    try:
        token = boto3.client("ecr").get_authorization_token()["authorizationData"][0]["authorizationToken"]
    except ClientError as error:
        _fail(str(error))
    print(base64.b64decode(token).decode().partition(":")[2])
    return 0


class Docker:
    """A daemon whose state is a file: logins by registry, images by name."""

    def __init__(self, state: Path) -> None:
        self._file = state
        self._state: dict[str, dict[str, str]] = {"logins": {}, "images": {}}
        if state.exists():
            self._state = json.loads(state.read_text())

    def login(self, words: list[str]) -> None:
        """Takes a password from stdin for one registry."""
        parser = argparse.ArgumentParser("docker login")
        parser.add_argument("--username", required=True)
        parser.add_argument("--password-stdin", action="store_true", required=True)
        parser.add_argument("registry")
        given = parser.parse_args(words)
        password = sys.stdin.read().strip()
        if given.username != "AWS" or not password:
            _fail(f"Error response from daemon: login attempt to https://{given.registry}/v2/ failed")
        self._keep("logins", given.registry, password)
        print("Login Succeeded")

    def build(self, words: list[str]) -> None:
        """Looks through the Dockerfile; the image's digest is that of what goes into it."""
        parser = argparse.ArgumentParser("docker build")
        parser.add_argument("--file", required=True)
        parser.add_argument("--tag", required=True)
        parser.add_argument("--build-arg", action="append", default=[])
        parser.add_argument("context")
        given = parser.parse_args(words)
        if not REFERENCE.fullmatch(given.tag):
            _fail(f'invalid argument "{given.tag}" for "-t, --tag" flag: invalid reference format')
        text = _read(Path(given.file))
        arguments = dict(one.split("=", 1) for one in given.build_arg)
        content = [text, *given.build_arg]
        for number, (word, rest) in enumerate(instructions(text), 1):
            print(f"#{number} {word} {rest[:100]}")
            if word == "ARG":
                name, _, default = rest.partition("=")
                arguments.setdefault(name, default)
            if word == "FROM" and not _filled(rest, arguments).strip():
                _fail(f"ERROR: failed to solve: base name ({rest}) should not be blank")
            if word == "COPY":
                *sources, _ = _filled(rest, arguments).split()
                content += [_read(Path(given.context) / source) for source in sources]
        self._keep("images", given.tag, hashlib.sha256("\0".join(content).encode()).hexdigest())

    def push(self, words: list[str]) -> None:
        """Pushes an image that was built here."""
        (reference,) = words
        named = REFERENCE.fullmatch(reference)
        if named is None or reference not in self._state["images"]:
            _fail(f"An image does not exist locally with the tag: {reference.partition(':')[0]}")
        if named["host"] not in self._state["logins"]:
            _fail("no basic auth credentials")
        _push(named["name"], named["tag"], self._state["images"][reference])

    def _keep(self, what: str, key: str, value: str) -> None:
        self._state[what][key] = value
        self._file.write_text(json.dumps(self._state))


def _push(repository: str, tag: str, content: str) -> None:
    """As a push of one layer. https://docs.aws.amazon.com/AmazonECR/latest/userguide/image-push-iam.html"""
    import boto3
    from botocore.exceptions import ClientError

    try:
        print(_pushed(boto3.client("ecr"), repository, tag, content.encode()))
    except ClientError as error:
        _fail(f"denied: {error}")


def _pushed(ecr: Any, repository: str, tag: str, layer: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    ecr.batch_check_layer_availability(repositoryName=repository, layerDigests=[digest])
    upload = ecr.initiate_layer_upload(repositoryName=repository)["uploadId"]
    ecr.upload_layer_part(
        repositoryName=repository, uploadId=upload, partFirstByte=0, partLastByte=len(layer) - 1, layerPartBlob=layer
    )
    ecr.complete_layer_upload(repositoryName=repository, uploadId=upload, layerDigests=[digest])
    one = {"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": len(layer), "digest": digest}
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "size": len(layer), "digest": digest}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [one]}
    made = ecr.put_image(repositoryName=repository, imageManifest=json.dumps(manifest), imageTag=tag)
    return f"{tag}: digest: {made['image']['imageId']['imageDigest']} size: {len(layer)}"


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """(instruction, argument) pairs of a Dockerfile, with continued lines joined."""
    lines = [line for line in dockerfile.splitlines() if line and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def _filled(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values.get(found[1], ""), text)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        _fail(f"ERROR: failed to read {file}: {error.strerror}")


def _fail(said: str) -> NoReturn:
    print(said, file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
