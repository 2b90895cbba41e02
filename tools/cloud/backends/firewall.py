"""What AWS WAF does and moto does not: a resource has one web ACL, so an association takes it from another one.

https://docs.aws.amazon.com/waf/latest/APIReference/API_DisassociateWebACL.html
"""

from __future__ import annotations

from moto.wafv2.models import wafv2_backends

from tools.cloud.callers import ACCOUNT
from tools.cloud.wire import Call


def associated(call: Call) -> None:
    """Takes the resource from every web ACL that it had before."""
    for web_acl in wafv2_backends[ACCOUNT][call.region].wacls.values():
        if web_acl.arn != call.params["WebACLArn"] and call.params["ResourceArn"] in web_acl.associated_resources:
            web_acl.associated_resources.remove(call.params["ResourceArn"])
