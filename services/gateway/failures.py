"""Errors of the mesh as HTTP statuses with OpenAI's error object."""

import math
from typing import Any

from starlette.responses import JSONResponse

from baton import errors

_STATUSES: dict[type[errors.BatonError], tuple[int, str]] = {
    errors.InvalidRequestError: (400, "invalid_request_error"),
    errors.UnknownModelError: (404, "invalid_request_error"),
    errors.UnauthenticatedError: (401, "authentication_error"),
    errors.ForbiddenError: (403, "authentication_error"),
    errors.OverloadedError: (429, "rate_limit_error"),
    errors.UnavailableError: (503, "service_unavailable"),
    errors.DeadlineError: (504, "timeout"),
    errors.CancelledByPeerError: (503, "service_unavailable"),
    errors.PreconditionError: (503, "service_unavailable"),
    errors.TransferError: (503, "service_unavailable"),
}
_BUG = (500, "server_error")
_CODES: dict[type[errors.BatonError], str] = {errors.UnknownModelError: "model_not_found"}


class DeniedError(Exception):
    """No key, or none that is known or allowed."""

    def __init__(self, message: str, status: int = 401) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


def status_of(error: errors.BatonError) -> int:
    """Returns the HTTP status of an error."""
    return _STATUSES.get(type(error), _BUG)[0]


def body_of(error: errors.BatonError, prompt_field: str) -> dict[str, Any]:
    """Returns OpenAI's error object; `prompt_field` is what the client calls its prompt."""
    kind = _STATUSES.get(type(error), _BUG)[1]
    code = _CODES.get(type(error), error.reason.lower())
    return _body(error.message, kind, _param(error.field, prompt_field), code)


def failure(
    error: errors.BatonError, prompt_field: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Returns the response for an error, with Retry-After where a retry can help."""
    headers = dict(headers or {})
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["retry-after-ms"] = str(max(1, math.ceil(1000 * error.retry_after_s)))
    return JSONResponse(body_of(error, prompt_field), status_of(error), headers)


def denial(error: DeniedError) -> JSONResponse:
    """Returns the response to a request without a right key."""
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
    body = _body(error.message, "authentication_error", None, "invalid_api_key")
    return JSONResponse(body, error.status, headers)


def refusal(message: str, status: int, code: str) -> JSONResponse:
    """Returns the response to what is no request that could be read."""
    return JSONResponse(_body(message, "invalid_request_error", None, code), status)


def _body(message: str, kind: str, param: str | None, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _param(field: str, prompt_field: str) -> str | None:
    name = field.removeprefix("sampling_params.")
    return (prompt_field if name in ("text", "input_ids") else name) or None
