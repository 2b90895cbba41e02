"""HTTP requests read as calls of AWS operations, with botocore's service models as moto holds them.

The service is in the credential scope of the signature. The operation is in `Action=`, in `X-Amz-Target`, or follows
from method and path. Signatures themselves are not checked: whoever knows an access key's id may use it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

from moto.core.parse import PROTOCOL_PARSERS
from moto.core.request import Request, determine_request_protocol
from moto.core.routing import get_service_router
from moto.core.utils import get_service_model
from werkzeug.exceptions import NotFound

Environ = dict[str, Any]


@dataclass(frozen=True)
class Signed:
    """Who signed a request, for which service and region; `token` is a session's."""

    key_id: str
    region: str
    service: str
    token: str | None


@dataclass(frozen=True)
class Call:
    """A call of one operation."""

    service: str
    operation: str
    params: Mapping[str, Any]
    region: str
    signed: Signed | None
    #: TLS, as far as the client is concerned. Our own plain HTTP on loopback counts as TLS.
    secure: bool
    method: str
    body: bytes = field(repr=False)

    @property
    def protocol(self) -> str:
        """botocore's name of the service's protocol, such as `rest-xml`."""
        return str(get_service_model(_MODELS.get(self.service, self.service)).protocol)


def buffered(environ: Environ) -> bytes:
    """The request's body; the environment can be read again afterwards."""
    body: bytes = Request(environ).get_data(cache=False)
    environ["wsgi.input"] = io.BytesIO(body)
    environ["CONTENT_LENGTH"] = str(len(body))
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    return body


def with_body(environ: Environ, body: bytes) -> Environ:
    """The request with another body."""
    return {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}


def signed_by(environ: Environ) -> Signed | None:
    """The signature's credential scope and session token, of a header or a presigned URL; None if unsigned.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html
    """
    header = environ.get("HTTP_AUTHORIZATION", "")
    query = parse_qs(environ.get("QUERY_STRING", ""))
    if "Credential=" in header:
        scope = header.partition("Credential=")[2].partition(",")[0].strip()
        token = environ.get("HTTP_X_AMZ_SECURITY_TOKEN")
    elif "X-Amz-Credential" in query:
        scope = unquote(query["X-Amz-Credential"][0])
        token = query.get("X-Amz-Security-Token", [None])[0]
    else:
        return None
    parts = scope.split("/")
    if len(parts) != 5:
        return None
    return Signed(parts[0], parts[2], parts[3], token)


def read_call(environ: Environ, body: bytes, signed: Signed | None) -> Call:
    """The call; raises werkzeug's `NotFound` if the service has no such operation. Unsigned requests are S3's."""
    service = signed.service if signed else "s3"
    request = Request(with_body(environ, body))
    model = get_service_model(_MODELS.get(service, service))
    operation, path_params = get_service_router(model.service_name).match(request)
    protocol = determine_request_protocol(model, request.content_type)
    # S3's bodies are objects, except of operations that take a document.
    payload = b"" if service == "s3" and operation.name in _OBJECTS else body
    params = PROTOCOL_PARSERS[protocol](operation, timestamp_parser=str).parse(
        {
            "method": request.method,
            "values": request.values,
            "headers": request.headers,
            "body": payload,
            "url_path": request.path,
            "url_params": path_params,
        }
    )
    return Call(
        service=service,
        operation=operation.name,
        params=params,
        region=signed.region if signed else "us-east-1",
        signed=signed,
        secure=environ.get("HTTP_X_FORWARDED_PROTO", "https") == "https",
        method=request.method,
        body=body,
    )


#: Where a credential scope does not name botocore's model.
_MODELS = {
    "aps": "amp",
    "elasticloadbalancing": "elbv2",  # also the scope of the Classic Load Balancers' API, which nothing here uses
    "monitoring": "cloudwatch",
    "servicequotas": "service-quotas",
    "tagging": "resourcegroupstaggingapi",
}
_OBJECTS = frozenset({"PutObject", "UploadPart"})

__all__ = ["Call", "Environ", "NotFound", "Signed", "buffered", "read_call", "signed_by", "with_body"]
