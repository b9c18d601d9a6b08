"""The services of a local stack and how each is started."""

import enum
from typing import assert_never

from baton.v1 import admission_pb2, autoscaler_pb2, decode_pb2, prefill_pb2, router_pb2


class Role(enum.StrEnum):
    """What a child process of the stack is."""

    REDIS = "redis"
    ADMISSION = "admission"
    PREFILL = "prefill"
    DECODE = "decode"
    ROUTER = "router"
    GATEWAY = "gateway"
    AUTOSCALER = "autoscaler"

    @property
    def is_worker(self) -> bool:
        """Tells whether it computes with the model."""
        return self in (Role.PREFILL, Role.DECODE)

    @property
    def other_pool(self) -> "Role":
        """The other role of a worker."""
        return Role.DECODE if self is Role.PREFILL else Role.PREFILL

    @property
    def module(self) -> str:
        """The module to run; a name only, for `baton` never imports services."""
        return f"services.{self.value}.main"

    @property
    def health_name(self) -> str:
        """Full name of its gRPC service, as health checks know it; empty for others."""
        match self:
            case Role.REDIS | Role.GATEWAY:
                return ""
            case Role.AUTOSCALER:
                return str(
                    autoscaler_pb2.DESCRIPTOR.services_by_name["AutoscalerService"].full_name
                )
            case Role.ADMISSION:
                return str(admission_pb2.DESCRIPTOR.services_by_name["AdmissionService"].full_name)
            case Role.PREFILL:
                return str(prefill_pb2.DESCRIPTOR.services_by_name["PrefillService"].full_name)
            case Role.DECODE:
                return str(decode_pb2.DESCRIPTOR.services_by_name["DecodeService"].full_name)
            case Role.ROUTER:
                return str(router_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name)
        assert_never(self)


STOP_ORDER = (
    Role.AUTOSCALER, Role.GATEWAY, Role.ROUTER,
    Role.DECODE, Role.PREFILL, Role.ADMISSION, Role.REDIS,
)  # fmt: skip
"""Nobody resizes what stops; then clients' doors, so that running streams finish while what serves
them still lives."""
