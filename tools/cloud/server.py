"""A cloud that listens: in this process for tests, or as a process of its own (`python -m tools.cloud`)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import boto3
from botocore.config import Config
from moto.moto_server.werkzeug_app import MotoRequestHandler
from werkzeug.serving import BaseWSGIServer, make_server

from tools.cloud.app import Cloud, judged_here
from tools.cloud.backends.pod_identity import service_account_token

LOOPBACK = "127.0.0.1"
#: The administrator's access key, as an id and a secret.
ADMINISTRATOR = "AKIAADMINISTRATOR000"


@dataclass(frozen=True)
class Listening:
    """A cloud on a port of this machine."""

    cloud: Cloud
    url: str

    def client(self, service: str, credentials: Mapping[str, str] | None = None, region: str = "us-west-2") -> Any:
        """A boto3 client with somebody's credentials (boto3's names), by default the administrator's."""
        return _session().client(
            service,
            region_name=region,
            endpoint_url=self.url,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
            **(credentials or {"aws_access_key_id": ADMINISTRATOR, "aws_secret_access_key": ADMINISTRATOR}),
        )

    def assumed(self, role_arn: str) -> dict[str, str]:
        """Credentials of a role as an AWS service gets them that the role trusts, such as EC2 for a node."""
        session = self.cloud.callers.assume(role_arn, "i-0123456789abcdef0", {})
        return _credentials(session.access_key_id, session.secret_access_key, session.session_token)

    def pod(
        self, node: Mapping[str, str], cluster: str, namespace: str, service_account: str, region: str = "us-west-2"
    ) -> dict[str, str]:
        """Credentials of a pod, which the agent on its node gets with the node's credentials."""
        answer = self.client("eks-auth", node, region).assume_role_for_pod_identity(
            clusterName=cluster, token=service_account_token(namespace, service_account, f"{service_account}-x")
        )["credentials"]
        return _credentials(answer["accessKeyId"], answer["secretAccessKey"], answer["sessionToken"])

    def environment(self, credentials: Mapping[str, str], region: str = "us-west-2") -> dict[str, str]:
        """Environment variables for a process with these credentials."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": region,
            "AWS_REGION": region,
            "AWS_EC2_METADATA_DISABLED": "true",
            **{name.upper(): value for name, value in credentials.items()},
        }


@cache
def _session() -> boto3.session.Session:
    """One for all clients: it keeps the services' models, which take long to read."""
    return boto3.session.Session()


def _credentials(key_id: str, secret: str, token: str) -> dict[str, str]:
    return {"aws_access_key_id": key_id, "aws_secret_access_key": secret, "aws_session_token": token}


@contextmanager
def listening(port: int = 0) -> Iterator[Listening]:
    """A cloud in a thread of this process, until the block ends. moto's state is the process's: one at a time.

    It has AWS's managed policies only with `MOTO_IAM_LOAD_MANAGED_POLICIES`; reading them takes seconds.
    """
    cloud = Cloud(frozenset({ADMINISTRATOR}))
    server = _server(cloud, port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    with judged_here():
        thread.start()
        try:
            yield Listening(cloud, f"http://{LOOPBACK}:{server.server_port}")
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def serve(port: int, administrators: frozenset[str]) -> None:
    """A cloud until the process ends."""
    with judged_here():
        _server(Cloud(administrators), port).serve_forever()


def _server(cloud: Cloud, port: int) -> BaseWSGIServer:
    return make_server(LOOPBACK, port, cloud, threaded=True, request_handler=_Quiet)


class _Quiet(MotoRequestHandler):
    """moto's handler, which keeps the spelling of S3's metadata headers, without a line for each request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Says nothing."""
