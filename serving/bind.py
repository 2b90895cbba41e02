"""Keeps Serve's gRPC server between deployments on the node's own address.

Ray Serve 2.60 binds it to all interfaces (`[::]:0` in `ray.serve._private.replica`) and unpickles what it receives, so
whoever reaches the port can run code. Ray has no setting for it. Callers use the node's address, which on a local stack
is 127.0.0.1.
"""

from __future__ import annotations

from typing import Any

ALL_INTERFACES = "[::]:"


def bind_to_node_address_only() -> None:
    """Makes the replica's gRPC server listen on the node's address only; call it before the replica has started."""
    import ray
    from ray.serve._private import replica

    bind = replica.add_port_to_grpc_server
    node_ip = ray.util.get_node_ip_address()
    host = f"[{node_ip}]" if ":" in node_ip else node_ip

    def bind_to_node(server: Any, address: str) -> Any:
        own = address.startswith(ALL_INTERFACES)
        return bind(server, f"{host}:{address.removeprefix(ALL_INTERFACES)}" if own else address)

    replica.add_port_to_grpc_server = bind_to_node
