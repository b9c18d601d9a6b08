"""The three links of the mesh, and the one that clients may use."""

from baton.rpc.link import LinkSpec
from baton.v1 import admission_link_pb2, decode_link_pb2, prefill_link_pb2, router_pb2

ADMISSION_LINK = LinkSpec(
    method="/baton.v1.AdmissionService/Link",
    request=admission_link_pb2.AdmissionServiceLinkRequest,
    response=admission_link_pb2.AdmissionServiceLinkResponse,
    command=admission_link_pb2.AdmissionCommand,
    event=admission_link_pb2.AdmissionEvent,
)
DECODE_LINK = LinkSpec(
    method="/baton.v1.DecodeService/Link",
    request=decode_link_pb2.DecodeServiceLinkRequest,
    response=decode_link_pb2.DecodeServiceLinkResponse,
    command=decode_link_pb2.DecodeCommand,
    event=decode_link_pb2.DecodeEvent,
)
PREFILL_LINK = LinkSpec(
    method="/baton.v1.PrefillService/Link",
    request=prefill_link_pb2.PrefillServiceLinkRequest,
    response=prefill_link_pb2.PrefillServiceLinkResponse,
    command=prefill_link_pb2.PrefillCommand,
    event=prefill_link_pb2.PrefillEvent,
)
ROUTER_LINK = LinkSpec(
    method="/baton.v1.RouterService/Link",
    request=router_pb2.RouterServiceLinkRequest,
    response=router_pb2.RouterServiceLinkResponse,
    command=router_pb2.RouterCommand,
    event=router_pb2.RouterEvent,
    # Each holds what came in a beat of the router's, so this many cover more than half a second.
    window=32,
)
