"""Errors in the form of the service that is called: status, code, message, XML or JSON.

Each protocol has its form, and S3 and EC2 have their own; botocore's models name the protocol.
https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-error-responses.html
https://smithy.io/2.0/aws/protocols/aws-restjson1-protocol.html#operation-error-serialization
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from tools.cloud.wire import Call

REQUEST_ID = "00000000-0000-4000-8000-000000000000"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Error(Exception):
    """A refusal, as AWS answers it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.status, self.code, self.message = status, code, message


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    """A JSON answer."""
    more = tuple((name.replace("_", "-"), text) for name, text in headers.items())
    return Answer(status, (("Content-Type", "application/json"), *more), json.dumps(value).encode())


def as_xml(text: str, status: int = 200) -> Answer:
    """An XML answer."""
    return Answer(status, (("Content-Type", "text/xml"),), f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode())


def error_answer(call: Call, error: Error) -> Answer:
    """The error in the form of the call's service."""
    code, message = escape(error.code), escape(error.message)
    inner = f"<Code>{code}</Code><Message>{message}</Message>"
    if call.service == "s3":
        if call.method == "HEAD":  # no body, so an SDK knows the status only
            return Answer(error.status, (("Content-Length", "0"),), b"")
        return as_xml(f"<Error>{inner}<RequestId>{REQUEST_ID}</RequestId></Error>", error.status)
    if call.service == "ec2":
        errors = f"<Errors><Error>{inner}</Error></Errors>"
        return as_xml(f"<Response>{errors}<RequestID>{REQUEST_ID}</RequestID></Response>", error.status)
    if call.protocol == "query":
        sender = "Sender" if error.status < 500 else "Receiver"
        text = f"<Error><Type>{sender}</Type>{inner}</Error><RequestId>{REQUEST_ID}</RequestId>"
        return as_xml(f"<ErrorResponse>{text}</ErrorResponse>", error.status)
    return as_json({"__type": error.code, "message": error.message}, error.status, x_amzn_ErrorType=error.code)


@dataclass(frozen=True)
class _Words:
    """How one kind of service says one thing: status and code."""

    status: int
    code: str


#: By kind of service: may not; nobody's key; a session's token is wrong; a session has ended.
#: EC2, query: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html (UnauthorizedOperation,
#: AuthFailure, RequestExpired); https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html. JSON services
#: answer AccessDeniedException with 400 (ministryofjustice/modernisation-platform#1296 quotes KMS), REST ones with 403.
_WORDS: Mapping[str, Mapping[str, _Words]] = {
    "s3": {
        "denied": _Words(403, "AccessDenied"),
        "key": _Words(403, "InvalidAccessKeyId"),
        "token": _Words(400, "InvalidToken"),
        "expired": _Words(400, "ExpiredToken"),
    },
    "ec2": {
        "denied": _Words(403, "UnauthorizedOperation"),
        "key": _Words(401, "AuthFailure"),
        "token": _Words(401, "AuthFailure"),
        "expired": _Words(400, "RequestExpired"),
    },
    "query": {
        "denied": _Words(403, "AccessDenied"),
        "key": _Words(403, "InvalidClientTokenId"),
        "token": _Words(403, "InvalidClientTokenId"),
        "expired": _Words(403, "ExpiredToken"),
    },
    "sns": {  # https://docs.aws.amazon.com/sns/latest/api/API_CreateTopic.html#API_CreateTopic_Errors
        "denied": _Words(403, "AuthorizationError"),
        "key": _Words(403, "InvalidClientTokenId"),
        "token": _Words(403, "InvalidClientTokenId"),
        "expired": _Words(403, "ExpiredToken"),
    },
    "json": {
        "denied": _Words(400, "AccessDeniedException"),
        "key": _Words(400, "UnrecognizedClientException"),
        "token": _Words(400, "UnrecognizedClientException"),
        "expired": _Words(400, "ExpiredTokenException"),
    },
    "rest-json": {
        "denied": _Words(403, "AccessDeniedException"),
        "key": _Words(403, "UnrecognizedClientException"),
        "token": _Words(403, "UnrecognizedClientException"),
        "expired": _Words(403, "ExpiredTokenException"),
    },
}
_SAYS = {
    "key": "The security token included in the request is invalid.",
    "token": "The security token included in the request is invalid.",
    "expired": "The security token included in the request is expired",
}


def words(call: Call, kind: str) -> tuple[int, str]:
    """Status and code of a refusal of some kind, as the service has it."""
    found = _WORDS.get(call.service) or _WORDS[call.protocol]
    return found[kind].status, found[kind].code


def nobody(call: Call, kind: str) -> Error:
    """The refusal of a request whose credentials are nobody's: `key`, `token` or `expired`."""
    return Error(*words(call, kind), _SAYS[kind])


def not_authorized(call: Call, arn: str, action: str, resource: str, reason: str) -> Error:
    """AWS's message for a request that no policy allows, or that a policy denies.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html; S3 quotes the resource
    (aws-ia/terraform-aws-bedrock#41, trendmicro/cloudone-filestorage-deployment-templates#144).
    """
    if arn == "anonymous":
        return Error(*words(call, "denied"), "Access Denied")
    shown = f'"{resource}"' if call.service == "s3" and action.startswith("s3:") else resource
    text = f"User: {arn} is not authorized to perform: {action} on resource: {shown} {reason}"
    if call.service == "ec2":
        text = f"You are not authorized to perform this operation. {text}."
    return Error(*words(call, "denied"), text)
