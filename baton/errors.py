"""Everything that can go wrong, as one tree.

    BatonError
      InvalidRequestError     the caller's input is wrong; says which field and what to do
      UnknownModelError       no such model
      UnauthenticatedError    the caller shows no key that is known
      ForbiddenError          the caller's key does not allow it
      OverloadedError         shed or over a limit; says when to come back
      UnavailableError        nobody can serve this now (no worker, a peer died)
      DeadlineError           the request's time is up
      CancelledByPeerError    the other side ended the request
      PreconditionError       wrong role, unknown peer, refused registration
        RegistrationError     a worker does not fit the fleet
      TransferError           KV did not arrive; retrying from prefill can help
      KvMismatchError         KV arrived but is not what was reserved
      InternalError           a bug
    ConfigError, StartupError  before serving: the process refuses to start

Each class fixes the gRPC status that it becomes at the edge (baton/rpc/status.py).
"""

from typing import ClassVar


class BatonError(Exception):
    """Root of all errors that cross a service boundary.

    `reason` is UPPER_SNAKE_CASE and stable, for machines; the message is for people and
    says what to do. `field` is the request field at fault. `retry_after_s` is in seconds.
    """

    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.field = field
        self.retry_after_s = retry_after_s


class InvalidRequestError(BatonError):
    """The caller's input is wrong."""

    default_reason = "INVALID_REQUEST"


class UnknownModelError(BatonError):
    """The fleet does not serve the model asked for."""

    default_reason = "UNKNOWN_MODEL"


class UnauthenticatedError(BatonError):
    """The caller shows no key that is known."""

    default_reason = "UNAUTHENTICATED"


class ForbiddenError(BatonError):
    """The caller is known and may not do this."""

    default_reason = "FORBIDDEN"


class OverloadedError(BatonError):
    """The request was shed or is over a limit; `retry_after_s` says when to come back."""

    default_reason = "OVERLOADED"


class UnavailableError(BatonError):
    """Nobody can serve the request at the moment."""

    default_reason = "UNAVAILABLE"


class DeadlineError(BatonError):
    """The request's deadline passed."""

    default_reason = "DEADLINE_EXCEEDED"


class CancelledByPeerError(BatonError):
    """The other side ended the request."""

    default_reason = "CANCELLED"


class PreconditionError(BatonError):
    """The system is not in the state that the request needs."""

    default_reason = "FAILED_PRECONDITION"


class RegistrationError(PreconditionError):
    """A worker does not fit the fleet that it wants to join."""

    default_reason = "REGISTRATION_MISMATCH"


class TransferError(BatonError):
    """KV did not arrive; trying again from prefill can help."""

    default_reason = "TRANSFER_FAILED"


class KvMismatchError(BatonError):
    """KV arrived but is not what was reserved; it must not be used."""

    default_reason = "KV_MISMATCH"


class InternalError(BatonError):
    """A bug in Baton."""

    default_reason = "INTERNAL"


class ConfigError(Exception):
    """The configuration is unusable; the process refuses to start."""


class StartupError(Exception):
    """Something the process needs at start is missing; says what and what to do."""
