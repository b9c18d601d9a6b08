"""Errors to gRPC statuses and back: the one place that translates.

A status carries google.rpc details: ErrorInfo (reason, domain "baton.v1"), BadRequest for the
field at fault and RetryInfo where a retry can help.
"""

from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from baton import errors
from baton.v1 import link_pb2

DOMAIN = "baton.v1"

_CODES: dict[type[errors.BatonError], int] = {
    errors.InvalidRequestError: code_pb2.INVALID_ARGUMENT,
    errors.UnknownModelError: code_pb2.NOT_FOUND,
    errors.UnauthenticatedError: code_pb2.UNAUTHENTICATED,
    errors.ForbiddenError: code_pb2.PERMISSION_DENIED,
    errors.OverloadedError: code_pb2.RESOURCE_EXHAUSTED,
    errors.UnavailableError: code_pb2.UNAVAILABLE,
    errors.DeadlineError: code_pb2.DEADLINE_EXCEEDED,
    errors.CancelledByPeerError: code_pb2.CANCELLED,
    errors.RegistrationError: code_pb2.FAILED_PRECONDITION,
    errors.PreconditionError: code_pb2.FAILED_PRECONDITION,
    errors.TransferError: code_pb2.ABORTED,
    errors.KvMismatchError: code_pb2.DATA_LOSS,
    errors.InternalError: code_pb2.INTERNAL,
    errors.BatonError: code_pb2.INTERNAL,
}
# Where two classes share a code, the general one comes back; the reason says the rest.
_ERRORS = {code: kind for kind, code in _CODES.items() if kind is not errors.RegistrationError}
_ERRORS[code_pb2.INTERNAL] = errors.InternalError


def code_of(error: errors.BatonError) -> int:
    """Returns the google.rpc.Code number of an error."""
    return _CODES[type(error)]


def to_status(error: errors.BatonError) -> Any:
    """Returns the gRPC status of an error, for `context.abort_with_status`."""
    return rpc_status.to_status(
        status_pb2.Status(code=code_of(error), message=error.message, details=_details(error))
    )


def from_rpc_error(error: grpc.aio.AioRpcError) -> errors.BatonError:
    """Returns the error that a peer's status stands for; keeps reason, field and retry time."""
    code = error.code().value[0]
    kind = _ERRORS.get(code, errors.InternalError)
    found = kind(error.details() or f"peer answered {error.code().name}")
    status = _rich_status(error)
    for detail in status.details if status else ():
        _apply(detail, found)
    return found


def to_end(error: errors.BatonError) -> link_pb2.LinkEnd:
    """Returns the end frame of a request on a link that failed."""
    return link_pb2.LinkEnd(
        code=code_of(error),
        reason=error.reason,
        message=error.message,
        field=error.field,
        retry_after_s=error.retry_after_s,
    )


def from_end(end: link_pb2.LinkEnd) -> errors.BatonError | None:
    """Returns the error of an end frame, or None for success."""
    if end.code == code_pb2.OK:
        return None
    kind = _ERRORS.get(end.code, errors.InternalError)
    return kind(
        end.message,
        reason=end.reason,
        field=end.field,
        retry_after_s=end.retry_after_s if end.HasField("retry_after_s") else None,
    )


def _rich_status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return status_pb2.Status.FromString(
                value if isinstance(value, bytes) else value.encode()
            )
    return None


def _details(error: errors.BatonError) -> list[any_pb2.Any]:
    messages: list[Any] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message, reason=error.reason
        )
        messages.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        messages.append(error_details_pb2.RetryInfo(retry_delay=duration(error.retry_after_s)))
    packed = []
    for message in messages:
        detail = any_pb2.Any()
        detail.Pack(message)
        packed.append(detail)
    return packed


def _apply(detail: any_pb2.Any, error: errors.BatonError) -> None:
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad = error_details_pb2.BadRequest()
    if detail.Unpack(info):
        error.reason = info.reason
    elif detail.Unpack(retry):
        error.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    elif detail.Unpack(bad) and bad.field_violations:
        error.field = bad.field_violations[0].field


def duration(seconds: float) -> duration_pb2.Duration:
    """Returns seconds as a protobuf Duration."""
    result = duration_pb2.Duration()
    result.FromNanoseconds(round(seconds * 1e9))
    return result
