"""The front door: what leads clients outside the cluster to the gateway, and what the stack file may not open."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network

from modelfleet.infra.planning.network import PRIVATE_ADDRESSES, network_of, subnet_blocks
from modelfleet.infra.planning.plan import FrontDoor
from modelfleet.infra.stack import LoadedStack
from modelfleet.infra.stack.schema import Gateway, Network
from modelfleet.serving.config.errors import Finding, Severity

#: The longest idle time of an Application Load Balancer, in seconds. A Network Load Balancer with TLS ends a silent
#: connection after 350 s, always, and that is how long an answer without a stream may be silent.
#: https://docs.aws.amazon.com/elasticloadbalancing/latest/application/edit-load-balancer-attributes.html
#: https://docs.aws.amazon.com/elasticloadbalancing/latest/network/update-idle-timeout.html
MOST_IDLE_S = 4000
#: The longest that a target may take to end its requests, and how long one takes to hear that it has to, in seconds.
#: https://docs.aws.amazon.com/elasticloadbalancing/latest/application/edit-target-group-attributes.html
MOST_DRAIN_S, LEAVE_S = 3600, 60
#: The gateway's port for the front door: only there is a client's address believed.
PORT = 8081
#: The catalog's names of its price and of that of an address.
LOAD_BALANCER = "application-load-balancer"
PUBLIC_ADDRESS = "public-ipv4"
EVERYBODY = "0.0.0.0/0"
#: Keys that only a load balancer of AWS, or only another cluster's own way in, has.
ONLY_AWS = {"certificate": "certificate", "zone": "zone", "allowCidrs": "allow_cidrs", "webAcl": "web_acl"}
ONLY_INGRESS = {
    "ingressClass": "ingress_class",
    "ingressAnnotations": "ingress_annotations",
    "gatewayClass": "gateway_class",
    "parentGateway": "parent_gateway",
    "tlsSecret": "tls_secret",
}
#: Of these a stack names one.
WAYS_IN = {key: ONLY_INGRESS[key] for key in ("ingressClass", "gatewayClass", "parentGateway")}
#: The name of the stack's own Gateway in its namespace.
OWN_GATEWAY = "gateway"


def front_door(stack: LoadedStack) -> FrontDoor | None:
    """The stack's front door; None where nobody outside the cluster reaches the gateway.

    Its findings are those of `front_door_findings`; a plan with errors has no use for it.
    """
    gateway, target = stack.config.gateway, stack.config.target
    if gateway.expose == "none" or target.on_this_machine:
        return None
    internet = gateway.expose == "internet"
    return FrontDoor(
        internet=internet,
        load_balancer=target.makes_cluster,
        hostname=gateway.hostname,
        tls=_has_tls(stack),
        port=PORT,
        drain_s=min(gateway.timeout_s + LEAVE_S, target.longest_drain_s or MOST_DRAIN_S, MOST_DRAIN_S),
        idle_s=min(gateway.timeout_s, MOST_IDLE_S),
        allow_cidrs=tuple(gateway.allow_cidrs) or _usual(internet=internet),
        addresses=_addresses(stack.config.network, internet=internet) if target.makes_cluster else (),
        **_route(stack),
    )


def _route(stack: LoadedStack) -> dict[str, str]:
    """Which listener of which Gateway leads here, where the stack names one or a class of its own."""
    gateway = stack.config.gateway
    if gateway.parent_gateway:
        namespace, name, listener = gateway.parent_gateway.split("/")
        return {"parent_namespace": namespace, "parent": name, "listener": listener}
    if not gateway.gateway_class:
        return {}
    return {
        "parent_namespace": stack.config.kubernetes.namespace_of(stack.name),
        "parent": OWN_GATEWAY,
        "listener": "https",  # a name that clients use has TLS
        "gateway_class": gateway.gateway_class,
    }


def _has_tls(stack: LoadedStack) -> bool:
    gateway = stack.config.gateway
    if stack.config.target.makes_cluster:
        return bool(gateway.certificate or gateway.zone)
    return bool(gateway.tls_secret or gateway.parent_gateway)  # the preflight looks whether that listener has TLS


def _usual(*, internet: bool) -> tuple[str, ...]:
    return (EVERYBODY,) if internet else tuple(str(block) for block in PRIVATE_ADDRESSES)


def _addresses(network: Network, *, internet: bool) -> tuple[str, ...]:
    """The subnets in which a load balancer of a new network is; of an existing one only AWS knows them."""
    if network.vpc_id:
        return ()
    blocks = subnet_blocks(network.cidr, network.zones)
    return blocks.public if internet else blocks.private


def public_addresses(stack: LoadedStack) -> int:
    """IPv4 addresses on the internet: one for each zone of a load balancer there, at least.

    A load balancer that grows takes more. https://docs.aws.amazon.com/vpc/latest/userguide/vpc-ip-addressing.html
    """
    network = stack.config.network
    if stack.config.gateway.expose != "internet":
        return 0
    return len(network.public_subnet_ids) if network.vpc_id else network.zones


def front_door_findings(stack: LoadedStack) -> list[Finding]:
    """Doors that would be open to strangers, or lead nowhere: errors at the key that has to change."""
    gateway, target = stack.config.gateway, stack.config.target
    if target.on_this_machine:
        return [] if gateway.expose == "none" else [_found(stack, "expose", _LOCAL.format(gateway.expose))]
    if gateway.expose == "none":
        return [_found(stack, key, _NO_DOOR) for key in _set_keys(gateway)]
    found = [*_open_findings(stack), *_name_findings(stack), *_slow_findings(stack)]
    return [*found, *(_aws_findings(stack) if target.makes_cluster else _ingress_findings(stack))]


_LOCAL = "found '{}', but target local listens on this machine's loopback only; remove it, or serve on another target"
_NO_DOOR = "has no effect without a front door; set expose to internal or internet, or remove it"
#: Characters of a certificate's first name (https://docs.aws.amazon.com/acm/latest/APIReference/API_RequestCertificate.html).
LONGEST_CERTIFIED = 64
_NO_KEYS = (
    "found none, but gateway.expose is internet, so anybody would use your GPUs; set `auth: keys` and "
    "`modelfleet key add NAME`, or expose it as internal"
)


#: Only a `dualstack` load balancer has IPv6 addresses, and each of its subnets needs a range of them.
#: https://docs.aws.amazon.com/elasticloadbalancing/latest/application/application-load-balancers.html#ip-address-type
_NO_IPV6 = (
    "an IPv6 network, which never reaches a load balancer whose addresses are IPv4, as those of its subnets are; such "
    "clients come by IPv4, from the network that translates for them"
)


def _set_keys(gateway: Gateway) -> list[str]:
    keys = {"hostname": "hostname", **ONLY_AWS, **ONLY_INGRESS}
    return [key for key, name in keys.items() if getattr(gateway, name)]


def _found(stack: LoadedStack, key: str, message: str, severity: Severity = Severity.ERROR) -> Finding:
    return stack.finding(("gateway", key), message, severity)


def _open_findings(stack: LoadedStack) -> Iterator[Finding]:
    """To the internet only with keys, and never in plain text, which would show the keys to every network between."""
    if stack.config.gateway.expose != "internet":
        return
    if stack.config.auth == "none":
        yield stack.finding(("auth",), _NO_KEYS)
    if not _has_tls(stack):
        way = (
            "name hostname and zone (a Route 53 zone: the certificate is made), or hostname and certificate"
            if stack.config.target.makes_cluster
            else "name hostname and tlsSecret, or a parentGateway with TLS"
        )
        yield _found(stack, "expose", f"found 'internet' without TLS, so keys would travel in plain text; {way}")


def _name_findings(stack: LoadedStack) -> Iterator[Finding]:
    """A certificate is for a name, and a name that a client trusts has a certificate."""
    gateway = stack.config.gateway
    if gateway.hostname and not _has_tls(stack):
        way = "certificate or zone" if stack.config.target.makes_cluster else "tlsSecret, or a parentGateway,"
        yield _found(stack, "hostname", f"found '{gateway.hostname}' without a certificate for it; name {way} too")
    for key, name in {"certificate": "certificate", "zone": "zone", "tlsSecret": "tls_secret"}.items():
        if getattr(gateway, name) and not gateway.hostname:
            yield _found(stack, key, "is for a name that clients use, and there is none; set hostname too")
    if gateway.zone and gateway.hostname and not f".{gateway.hostname}".endswith(f".{gateway.zone}"):
        yield _found(
            stack,
            "hostname",
            f"found '{gateway.hostname}', which is not in zone {gateway.zone}; choose a name that ends in "
            f".{gateway.zone}, or name its own zone",
        )

    if gateway.zone and not gateway.certificate and len(gateway.hostname or "") > LONGEST_CERTIFIED:
        yield _found(
            stack,
            "hostname",
            f"found a name of {len(gateway.hostname or '')} characters; the certificate that is made for it takes at "
            f"most {LONGEST_CERTIFIED}: choose a shorter one, or name a certificate of your own",
        )


def _slow_findings(stack: LoadedStack) -> Iterator[Finding]:
    timeout = stack.config.gateway.timeout_s
    if stack.config.target.makes_cluster and timeout > MOST_IDLE_S:
        yield _found(
            stack,
            "timeoutS",
            f"found {timeout}; the load balancer ends a connection on which nothing was sent for {MOST_IDLE_S} s, so a "
            "longer answer that is not streamed is cut; stream such answers",
            Severity.WARNING,
        )


def _aws_findings(stack: LoadedStack) -> Iterator[Finding]:
    gateway, network = stack.config.gateway, stack.config.network
    for key, name in ONLY_INGRESS.items():
        if getattr(gateway, name):
            yield _found(
                stack, key, "is for an existing cluster's Ingress; target eks makes a load balancer; remove it"
            )
    if gateway.certificate and stack.region and gateway.certificate.split(":")[3] != stack.region:
        message = f"is in {gateway.certificate.split(':')[3]}, but a load balancer uses certificates of its own region "
        yield _found(stack, "certificate", f"{message}{stack.region}; request one there, or name zone instead")
    if gateway.web_acl and stack.region and gateway.web_acl.split(":")[3] != stack.region:
        message = f"is in {gateway.web_acl.split(':')[3]}, but a load balancer takes a web ACL of its own region "
        yield _found(stack, "webAcl", f"{message}{stack.region}; make one there")
    if network.vpc_id and gateway.expose == "internet" and not network.public_subnet_ids:
        message = "are missing, and a load balancer on the internet needs public subnets in two zones; name them"
        yield stack.finding(("network", "publicSubnetIds"), message)
    for index, cidr in enumerate(gateway.allow_cidrs):
        block = network_of(cidr)
        if not isinstance(block, IPv4Network):
            message = f"found '{cidr}', {_NO_IPV6 if block else 'which is not a network'}; write it as 203.0.113.0/24"
            yield stack.finding(("gateway", "allowCidrs", index), message)


def _ingress_findings(stack: LoadedStack) -> Iterator[Finding]:
    gateway = stack.config.gateway
    for key, name in ONLY_AWS.items():
        if getattr(gateway, name):
            message = "is for the load balancer that target eks makes; the Ingress's controller decides here; remove it"
            yield _found(stack, key, f"{message}, or say it in ingressAnnotations")
    named = [key for key, name in WAYS_IN.items() if getattr(gateway, name)]
    if not named:
        message = (
            "is missing, and without it no controller need heed the Ingress; `kubectl get ingressclass` lists them; "
            "or name gatewayClass or parentGateway, where the cluster has the Gateway API"
        )
        yield _found(stack, "ingressClass", message)
    for key in named[1:]:
        yield _found(stack, key, f"is one way in, and {named[0]} another; name one of them")
    if gateway.parent_gateway and gateway.tls_secret:
        yield _found(
            stack, "tlsSecret", "is for a Gateway or an Ingress of the stack; parentGateway has its own; remove it"
        )
    if gateway.ingress_annotations and not gateway.ingress_class:
        yield _found(stack, "ingressAnnotations", "are for an Ingress, and there is none; remove them")
    if not gateway.hostname:
        yield _found(stack, "hostname", "is missing; a cluster's own way in tells stacks apart by their names")
