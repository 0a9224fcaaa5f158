"""Errors as clients see them: an HTTP status, and a body in OpenAI's shape that names the field at fault."""

import logging
from collections.abc import Mapping

from openai.types.shared import ErrorObject
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
from tpo_graph.policies.failures import ProviderFailure
from tpo_graph.types import JSONObject

_log = logging.getLogger(__name__)
_INVALID = "invalid_request_error"
_SERVER = "server_error"
# the first kind that matches counts: a missing dependency is a configuration error as well
_KINDS: Mapping[type[TPOError], tuple[int, str, str | None]] = {
    MissingDependencyError: (500, _SERVER, "missing_dependency"),
    ConfigurationError: (400, _INVALID, "invalid_configuration"),
    PromptError: (400, _INVALID, "invalid_prompt"),
    BudgetError: (400, _INVALID, "budget"),
    PolicyError: (502, "policy_error", "policy_failed"),
    RewardError: (502, "reward_error", "reward_failed"),
    TPOError: (500, _SERVER, None),
}


class RequestRefusedError(TPOError):
    """A request that is not served.

    Args:
        message: what is wrong.
        status: of the HTTP response.
        param: the field of the request that is at fault.
        code: OpenAI's word for what is wrong.
        hint: what to do next.
        headers: of the HTTP response.
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


def status_and_body(error: Exception) -> tuple[int, JSONObject]:
    """An error as HTTP status and in OpenAI's shape, with the hint as one more field.

    What is not an error of ours is a defect: it goes to the log, and the client sees nothing of it.
    """
    if not isinstance(error, TPOError):
        _log.error("A request failed.", exc_info=error)
        error = RequestRefusedError("The server failed.", status=500, hint="The details are in its log.")
    status, kind, code = next(answer for error_type, answer in _KINDS.items() if isinstance(error, error_type))
    param, cause = None, error.__cause__
    if isinstance(error, RequestRefusedError):
        status, code, param = error.status, error.code, error.param
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(status, _SERVER if status >= 500 else _INVALID)
    elif isinstance(error, BudgetError) and error.usage is not None:  # `budget_seconds` were over
        status, kind = 504, _SERVER
    elif isinstance(error, PolicyError) and cause is not None and ProviderFailure.of(cause).kind == "refused":
        # the request itself is at fault: too long a context, an image that the provider can't read
        status, kind, code = 400, _INVALID, "refused_by_policy"
    body = ErrorObject(message=str(error), type=kind, param=param, code=code).to_dict()
    return status, {"error": {**body, "hint": error.hint} if error.hint else body}


def error_response(error: Exception) -> JSONResponse:
    """An error as an HTTP response."""
    status, body = status_and_body(error)
    headers = error.headers if isinstance(error, RequestRefusedError) else {}
    if status >= 500 and not headers:
        # OpenAI's clients retry after any 5xx, but a run that failed has been paid for
        headers = {"x-should-retry": "false"}
    return JSONResponse(body, status, headers=headers)
