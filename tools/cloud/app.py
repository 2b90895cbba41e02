"""The cloud as one WSGI application: reads a request, judges it as its caller, and answers or lets moto answer."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from typing import Any
from unittest.mock import patch

from moto.iam.access_control import PermissionResult
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import FakeBucket

from tools.cloud.actions import NoRow
from tools.cloud.answers import Answer, Error, as_json, as_xml, error_answer, nobody
from tools.cloud.backends import Backends
from tools.cloud.callers import ACCOUNT, ADMINISTRATOR, ANYBODY, Caller, Callers, Unknown
from tools.cloud.judge import Judge
from tools.cloud.rules import Rules
from tools.cloud.storage import judged_deletion, require_storage
from tools.cloud.wire import Call, Environ, NotFound, buffered, read_call, signed_by, with_body

#: Controls for tests. GET of the first is every decision, of the second the nodes of a region (`?us-west-2`): labels,
#: taints, and what each offers to pods.
CONTROLS = "/modelfleet-cloud/"
TRAIL = f"{CONTROLS}trail"
NODES = f"{CONTROLS}nodes"
#: PUT of the others, as JSON. The instances that the account is short of: lists of instance type, zone and, for one way
#: to buy, purchase. Calls that take longer, as seconds by `service:Operation` or `*`. What happens to a build's
#: commands.
SHORTAGE = f"{CONTROLS}shortage"
SLOW = f"{CONTROLS}slow"
MISHAPS = f"{CONTROLS}mishaps"
#: Quotas by code. The IP address of whoever runs Pulumi. Real API servers by cluster, as URL and certificate authority.
#: Seconds that the slowest pod of a node group takes to leave a node, by start of the group's name.
QUOTAS = f"{CONTROLS}quotas"
HERE = f"{CONTROLS}here"
API_SERVERS = f"{CONTROLS}api-servers"
DRAINS = f"{CONTROLS}drains"
#: What a body's sums say is of the body that was sent.
_SUMS = ("HTTP_CONTENT_MD5", "HTTP_X_AMZ_CONTENT_SHA256")

Start = Callable[..., Any]


@dataclass
class Cloud:
    """moto behind a judge. `administrators` are access keys that no identity policy limits."""

    administrators: frozenset[str]
    judge: Judge = field(default_factory=Judge)
    rules: Rules = field(default_factory=Rules)
    callers: Callers = field(init=False)
    backends: Backends = field(init=False)

    def __post_init__(self) -> None:
        self.callers = Callers(self.administrators)
        self.backends = Backends(self.callers, self.rules)
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        """Answers one request."""
        path = environ.get("PATH_INFO", "")
        if path.startswith(CONTROLS):
            return _sent(self._control(path, environ), start_response)
        if path.startswith("/moto-api"):  # moto's own controls, which AWS does not have
            if path == "/moto-api/reset":
                self.backends.forget()
            return _sent(self._of_moto(environ), start_response)
        body = buffered(environ)
        try:
            call = read_call(environ, body, signed_by(environ))
        except NotFound:
            return _sent(as_xml("<Error><Code>UnknownOperationException</Code></Error>", 404), start_response)
        try:
            return self._answer(environ, call, start_response)
        except Error as error:
            return _sent(error_answer(call, error), start_response)
        except NoRow as error:
            return _sent(error_answer(call, Error(501, "NotImplemented", str(error))), start_response)

    def _answer(self, environ: Environ, call: Call, start_response: Start) -> Iterable[bytes]:
        caller = self._caller(call)
        if (call.service, call.operation) == ("s3", "DeleteObjects"):
            return self._delete_objects(environ, caller, call, start_response)
        time.sleep(self.rules.delay(call))
        self.judge.require_all(caller, call, self.backends.values(call))
        if call.service == "s3":
            require_storage(self.judge, caller, call)
        self.rules.check(call)
        own = _administrator(caller, call) or self.backends.answer(call, f"http://{environ['HTTP_HOST']}")
        if own is not None:
            return _sent(own, start_response)
        answer = self._of_moto(environ)
        if answer.status == HTTPStatus.OK:
            self.backends.after(call)
            self._keep_tags(call, answer)
        return _sent(answer, start_response)

    def _caller(self, call: Call) -> Caller:
        if call.signed is None:
            return ANYBODY
        try:
            return self.callers.find(call.signed.key_id, call.signed.token)
        except Unknown as error:
            raise nobody(call, error.kind) from None

    def _delete_objects(self, environ: Environ, caller: Caller, call: Call, start_response: Start) -> Iterable[bytes]:
        deletion = judged_deletion(self.judge, caller, call)
        if deletion.body is None:
            empty = as_xml('<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></DeleteResult>')
            return _sent(Answer(200, empty.headers, deletion.answer(empty.body)), start_response)
        kept = {name: value for name, value in environ.items() if not name.startswith((*_SUMS, "HTTP_X_AMZ_CHECKSUM"))}
        answer = self._of_moto(with_body(kept, deletion.body))
        if answer.status != HTTPStatus.OK:
            return _sent(answer, start_response)
        headers = tuple(pair for pair in answer.headers if pair[0].lower() != "content-length")
        return _sent(Answer(200, headers, deletion.answer(answer.body)), start_response)

    def _of_moto(self, environ: Environ) -> Answer:
        started: list[tuple[str, list[tuple[str, str]]]] = []
        chunks = self._moto(environ, lambda status, headers, *_: started.append((status, headers)))
        body = b"".join(chunks)
        status, headers = started[0]
        return Answer(int(status.partition(" ")[0]), tuple(headers), body)

    def _keep_tags(self, call: Call, answer: Answer) -> None:
        """A new session's tags, which moto does not keep."""
        key_id = re.search(rb"<AccessKeyId>([^<]+)</AccessKeyId>", answer.body)
        if key_id and (call.service, call.operation) == ("sts", "AssumeRole"):
            tags = {str(pair["Key"]): str(pair["Value"]) for pair in call.params.get("Tags") or ()}
            self.callers.tag(key_id[1].decode(), tags)

    def _control(self, path: str, environ: Environ) -> Answer:
        if path == TRAIL:
            return as_json([asdict(entry) for entry in list(self.judge.trail.entries)])
        if path == NODES:
            return as_json(self.backends.eks.node_groups.nodes(environ["QUERY_STRING"]))
        self._switches()[path](json.loads(buffered(environ)))
        return as_json({})

    def _switches(self) -> Mapping[str, Callable[[Any], None]]:
        """What a test can set, by path."""
        eks = self.backends.eks
        return {
            SHORTAGE: lambda missing: self.rules.short_of(*map(tuple, missing)),
            SLOW: lambda slow: setattr(self.rules, "slow", slow),
            MISHAPS: lambda mishaps: setattr(self.backends.codebuild, "mishaps", mishaps),
            QUOTAS: lambda quotas: setattr(self.rules, "quotas", quotas),
            HERE: lambda address: setattr(eks.servers, "here", address),
            API_SERVERS: lambda real: setattr(eks.servers, "real", {name: tuple(one) for name, one in real.items()}),
            DRAINS: lambda drains: setattr(eks.node_groups, "drains", drains),
        }


def _administrator(caller: Caller, call: Call) -> Answer | None:
    """Who the administrator is; moto gives a key that it does not know an ARN that no IAM user has."""
    if caller.arn != ADMINISTRATOR or (call.service, call.operation) != ("sts", "GetCallerIdentity"):
        return None
    found = f"<Arn>{ADMINISTRATOR}</Arn><UserId>AIDAADMINISTRATOR000</UserId><Account>{ACCOUNT}</Account>"
    text = f"<GetCallerIdentityResult>{found}</GetCallerIdentityResult>"
    where = 'xmlns="https://sts.amazonaws.com/doc/2011-06-15/"'
    return as_xml(f"<GetCallerIdentityResponse {where}>{text}</GetCallerIdentityResponse>")


def _sent(answer: Answer, start_response: Start) -> Iterable[bytes]:
    names: Mapping[str, str] = {name.lower(): value for name, value in answer.headers}
    length = () if "content-length" in names else (("Content-Length", str(len(answer.body))),)
    try:
        phrase = HTTPStatus(answer.status).phrase
    except ValueError:
        phrase = "Unknown"
    start_response(f"{answer.status} {phrase}", [*answer.headers, *length])
    return [answer.body]


@contextmanager
def judged_here() -> Iterator[None]:
    """moto leaves bucket policies to us: it would ignore their conditions, and "deny without TLS" would deny all."""
    with patch.object(FakeBucket, "get_permission", lambda bucket, action, resource: PermissionResult.PERMITTED):
        yield
