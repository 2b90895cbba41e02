"""Everything in this folder's imports from Pulumi's SDK that the SDK does not promise to keep.

Before raising `pulumi`, look up these names in the new version. Nothing else in `infra/provider` looks inside the SDK.
"""

from pulumi.provider.experimental.property_value import PropertyValue
from pulumi.provider.experimental.provider import Provider
from pulumi.provider.experimental.server import ProviderServicer
from pulumi.runtime import proto
from pulumi.runtime._grpc_settings import _GRPC_CHANNEL_OPTIONS as GRPC_CHANNEL_OPTIONS
from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc, provider_pb2, provider_pb2_grpc, status_pb2
from pulumi.runtime.rpc import UNKNOWN
from pulumi.runtime.rpc import _special_asset_sig as ASSET_SIGNATURE
from pulumi.runtime.rpc import _special_secret_sig as SECRET_SIGNATURE
from pulumi.runtime.rpc import _special_sig_key as SIGNATURE_KEY

__all__ = [
    "ASSET_SIGNATURE",
    "GRPC_CHANNEL_OPTIONS",
    "SECRET_SIGNATURE",
    "SIGNATURE_KEY",
    "UNKNOWN",
    "PropertyValue",
    "Provider",
    "ProviderServicer",
    "engine_pb2",
    "engine_pb2_grpc",
    "proto",
    "provider_pb2",
    "provider_pb2_grpc",
    "status_pb2",
]
