"""What an error of a model provider means: how its kinds are told apart, and what to do about each."""

import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet

from tpo_graph.errors import TPOError

__all__ = ["hint_for", "may_refuse_n", "names_n", "one_line", "refused_knob", "smaller_n", "status_of"]

# what servers answer to more completions than they give; 404 is a wrong model or address
_NOT_TAKEN = frozenset({400, 413, 422, 501})
_SERVER_ERROR = 500
_HINTS = {
    401: "Check the API key: the provider does not accept it.",
    403: "Check the API key: the provider does not accept it.",
    404: "Check the model name and the address: the provider does not know them.",
    429: "The provider limits the rate or the quota: wait, or ask for less at a time.",
}
_CONTEXT = re.compile(r"context (length|size|window)|maximum context|too many tokens|prompt is too long", re.IGNORECASE)
_TOO_LONG = (
    "Prompt and answers do not fit into the model's context: lower max_shown_tokens, the phases' max_new_tokens or n, "
    'or give the server a larger context (load_policy("local", context_tokens=...)).'
)
# of two that a provider does not take together, top_p goes first
_KNOB_WORDS = {
    "top_p": ("top_p",),
    "temperature": ("temperature",),
    "max_new_tokens": ("max_tokens", "max_completion_tokens", "max_output_tokens"),
    "seed": ("seed",),
}


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error of any client library, where it has one."""
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def may_refuse_n(error: object) -> bool:
    """Whether a failed request for several completions may be one that asks for too many."""
    if isinstance(error, TypeError | ValueError | NotImplementedError) and not isinstance(error, TPOError):
        return True
    if not isinstance(error, Exception):
        return False
    status = status_of(error) or 0
    return status in _NOT_TAKEN or (status >= _SERVER_ERROR and _has_word_n(error))


def names_n(error: Exception, n: int) -> bool:
    """Whether the error of a request for `n` completions speaks of their number."""
    return _has_word_n(error) or re.search(rf"\b{n}\b", _said(error)) is not None


def smaller_n(error: Exception, n: int) -> int:
    """How many completions to ask for after `n` were refused.

    The most that the error names; else half, or one where the server calls it a failure of its own.
    """
    named = [int(number) for number in re.findall(r"\b\d{1,4}\b", _said(error)) if 0 < int(number) < n]
    return max(named, default=1 if (status_of(error) or 0) >= _SERVER_ERROR else n // 2)


def _has_word_n(error: Exception) -> bool:
    # a line break in a quoted text is no n
    return getattr(error, "param", None) == "n" or re.search(r"(?<!\\)\bn\b", _said(error)) is not None


def _said(error: Exception) -> str:
    """What the provider says, without the status that OpenAI's client puts before it."""
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, Mapping) else None
    return str(message or error)


def refused_knob(error: Exception, knobs: AbstractSet[str]) -> str | None:
    """The one of `knobs` that the provider says it does not take, or None."""
    return next((knob for knob in _named_knobs(error) if knob in knobs), None)


def _named_knobs(error: Exception) -> Iterator[str]:
    """The knobs that an error names as not taken; `seed` is one that is never left out by itself."""
    if status_of(error) not in (400, 422):
        return
    # OpenAI's errors name the parameter; a text may also repeat the request
    text = getattr(error, "param", None) or str(error)
    for knob, words in _KNOB_WORDS.items():
        if any(re.search(rf"\b{word}\b", text) for word in words):
            yield knob


def one_line(error: BaseException) -> str:
    """An error as one line: its kind and what it says."""
    if _is_refused_connection(error):
        return "the connection was refused"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}".rstrip(": .") if text else type(error).__name__


def hint_for(error: Exception, address: str = "") -> str:
    """What a person can do about a provider's error; "" where there is nothing to say.

    Args:
        error: what the provider's client raised.
        address: where the provider was asked, if that is known.
    """
    no_server = (
        f"Is the server at {address} running?" if address else "Is the server running, and is its address right?"
    )
    hint = _HINTS.get(status_of(error) or 0, "") or _hint_for_request(error)
    if hint:
        return hint
    if _is_refused_connection(error):
        return no_server
    name = type(error).__name__
    if "Timeout" in name:
        return "The provider did not answer in time: try again, or raise the model's timeout."
    return no_server if "Connect" in name else ""


def _hint_for_request(error: Exception) -> str:
    """What to change in a request that the provider refused, or that was too much for it."""
    if status_of(error) is None:
        return ""
    if _CONTEXT.search(_said(error)):
        return _TOO_LONG
    knob = next(_named_knobs(error), "")
    if knob == "seed":
        return "The provider takes no seed: set seed to none."
    if knob:
        return f"Set {knob} of the phase to none to leave it to the provider, as in sample_{knob}=none."
    param = getattr(error, "param", None)
    return f"The provider does not take {param!r} as it was sent." if param else ""


def _is_refused_connection(error: BaseException) -> bool:
    """Whether there is no server; aiohttp's transport tells that as a timeout, so its causes are looked at."""
    return any(
        isinstance(cause, ConnectionRefusedError) or type(cause).__name__.startswith("ClientConnector")
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
