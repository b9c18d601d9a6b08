"""Who calls: the tenant that a caller's API key stands for, and what that allows."""

from dataclasses import dataclass
from typing import Any

import grpc

from baton.api_keys import OPERATOR, KeyFile
from baton.errors import ForbiddenError, UnauthenticatedError
from baton.v1 import router_pb2

AUTHORIZATION = "authorization"
_SCHEME = "bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """A known caller. Without keys everybody is an operator, as everybody may do everything."""

    tenant: str
    is_operator: bool = False

    def stamp(self, request: router_pb2.GenerateRequest) -> None:
        """Makes the request its caller's: nobody else's tenant, and a prefix cache of its own.

        Only an operator, such as the gateway, speaks for others.
        """
        if not self.is_operator:
            request.tenant = self.tenant
        # Length and content are checked with the rest of the request.
        request.cache_salt = f"{request.tenant}/{request.cache_salt}"


@dataclass(frozen=True, slots=True)
class Access:
    """Knows callers by their keys; None lets everybody in."""

    keys: KeyFile | None = None

    def caller(self, context: grpc.aio.ServicerContext[Any, Any]) -> Caller | None:
        """Returns who calls, or None where nobody needs a key. Raises UnauthenticatedError."""
        if self.keys is None:
            return None
        tenant = self.keys.current().tenant_of(_key(context))
        if tenant is None:
            raise UnauthenticatedError(
                "an API key that this router knows is needed: metadata "
                "`authorization: Bearer KEY` (the command line sends BATON_API_KEY)"
            )
        return Caller(tenant, tenant == OPERATOR)

    def check_operator(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Raises ForbiddenError unless the caller may see and place what is not its own."""
        caller = self.caller(context)
        if caller is not None and not caller.is_operator:
            raise ForbiddenError(f"this needs a key of the tenant {OPERATOR!r}")


def _key(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == AUTHORIZATION and isinstance(value, str) and value.lower().startswith(_SCHEME):
            return value[len(_SCHEME) :].strip()
    return ""
