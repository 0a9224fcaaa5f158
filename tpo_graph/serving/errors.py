"""Errors as the OpenAI API tells them: a status, and an object that names the field at fault."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from tpo_graph.errors import (
    BudgetError,
    ConfigurationError,
    MissingDependencyError,
    PolicyError,
    PromptError,
    RewardError,
    TPOError,
)
from tpo_graph.policies.provider_errors import status_of

__all__ = ["RequestRefusedError", "error_object", "error_response", "status_for", "unexpected"]

_INVALID = "invalid_request_error"
_SERVER = "server_error"
# what a provider says when the request itself is at fault: too long a context, an image that it can't see
_REFUSED_BY_POLICY = frozenset({400, 413, 422})


class RequestRefusedError(TPOError):
    """A request that is not served.

    Attributes:
        status: of the HTTP response.
        param: the field of the request that is at fault.
        code: OpenAI's word for what is wrong.
        headers: of the response.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        hint: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


def unexpected() -> RequestRefusedError:
    """What a client is told about a defect; the log has the rest."""
    return RequestRefusedError("The server failed.", status=500, hint="Its log tells more.")


def status_for(error: TPOError) -> int:
    """The HTTP status of an error."""
    return _kind_of(error)[0]


def error_object(error: TPOError) -> dict[str, Any]:  # Any: JSON
    """The error as a JSON document in OpenAI's shape, with the hint as one more field."""
    _, kind, code = _kind_of(error)
    param = error.param if isinstance(error, RequestRefusedError) else None
    told = {"message": str(error), "type": kind, "param": param, "code": code}
    return {"error": {**told, "hint": error.hint} if error.hint else told}


def error_response(error: TPOError) -> JSONResponse:
    """The error as a response."""
    status = status_for(error)
    headers = error.headers if isinstance(error, RequestRefusedError) else {}
    if status >= 500 and not headers:
        # OpenAI's clients repeat what fails with 5xx; a run that failed has been paid for, and repeating is dear
        headers = {"x-should-retry": "false"}
    return JSONResponse(error_object(error), status, headers=headers)


def _kind_of(error: TPOError) -> tuple[int, str, str | None]:
    """Status, type and code."""
    if isinstance(error, RequestRefusedError):
        return error.status, _type_of(error.status), error.code
    if isinstance(error, PolicyError) and _cause_status(error) in _REFUSED_BY_POLICY:
        return 400, _INVALID, "refused_by_policy"
    for kind, status, type_name, code in _KINDS:
        if isinstance(error, kind):
            return status, type_name, code
    return 500, _SERVER, None


def _type_of(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    if status == 401:
        return "authentication_error"
    return _SERVER if status >= 500 else _INVALID


def _cause_status(error: BaseException) -> int | None:
    return status_of(error.__cause__) if error.__cause__ is not None else None


_KINDS: tuple[tuple[type[TPOError], int, str, str], ...] = (
    (MissingDependencyError, 500, _SERVER, "missing_dependency"),
    (ConfigurationError, 400, _INVALID, "invalid_configuration"),
    (PromptError, 400, _INVALID, "invalid_prompt"),
    (BudgetError, 400, _INVALID, "budget"),
    (PolicyError, 502, "policy_error", "policy_failed"),
    (RewardError, 502, "reward_error", "reward_failed"),
)
"""The first kind that fits: a missing dependency is a configuration error as well."""
