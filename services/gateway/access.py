"""Who asks: the tenant that a request's key stands for."""

from dataclasses import dataclass

from starlette.requests import Request

from baton.api_keys import OPERATOR, ApiKeys, KeyFile
from services.gateway.failures import DeniedError

_SCHEME = "bearer "


@dataclass(frozen=True, slots=True)
class Access:
    """Without keys everybody may do everything, as nobody."""

    keys: ApiKeys | KeyFile | None

    def tenant(self, request: Request) -> str:
        """Returns the tenant; empty without keys. Raises DeniedError."""
        if self.keys is None:
            return ""
        header = request.headers.get("authorization", "")
        if not header.lower().startswith(_SCHEME):
            raise DeniedError("an API key is needed: Authorization: Bearer KEY")
        tenant = self.keys.current().tenant_of(header[len(_SCHEME) :].strip())
        if tenant is None:
            raise DeniedError("the API key is not known")
        return tenant

    def check_operator(self, request: Request) -> None:
        """Raises DeniedError unless the key is an operator's."""
        if self.keys is not None and self.tenant(request) != OPERATOR:
            raise DeniedError(f"the console needs a key of the tenant {OPERATOR!r}", 403)
