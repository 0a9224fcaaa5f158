"""What it means when a provider fails: decided here alone, for any client library and for plain HTTP answers."""

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tpo_graph.errors import PolicyError, TPOError
from tpo_graph.policies.error_contents import answer_in, error_chain, headers_of, one_line, seconds_to_wait, words_in
from tpo_graph.types import JSON, PhaseUsage

FailureKind: TypeAlias = Literal[
    "refused",  # the provider does not take this request; another one, or one in another form, may go through
    "unsupported",  # the client library can't send such a request
    "key",  # the API key is not accepted
    "not_found",  # no such model or path
    "transient",  # the same request may go through later: an overload, or an answer that can't be read
    "timeout",  # no answer in time
    "disconnected",  # the server closed the connection before its answer was complete
    "unreachable",  # no connection came about
    "other",
]

_REFUSED = frozenset({400, 413, 422, 424, 501})
_TRANSIENT = frozenset({408, 409, 425, 429})
_RETRYABLE: AbstractSet[FailureKind] = frozenset({"transient", "timeout", "disconnected", "unreachable"})
_SHOWN_CHARACTERS = 300  # of a server's answer, which may be a whole page
_MOST_CHARACTERS = 4000  # of a message, of which a hostile server may send any amount
_CONTEXT = re.compile(
    r"context ?overflow|context[ _](length|size|window)|maximum context|too many tokens|(prompt|input) is too long|"
    r"exceeds the maximum number of tokens",
    re.IGNORECASE,
)
# how providers call the knobs; of two that one of them does not take together, top_p goes first
_KNOB_WORDS: Mapping[str, re.Pattern[str]] = {
    "top_p": re.compile(r"\btop_?p\b", re.IGNORECASE),
    "temperature": re.compile(r"\btemperature\b", re.IGNORECASE),
    "max_new_tokens": re.compile(r"\b(max_?(completion_?|output_?|new_?)?tokens|num_predict)\b", re.IGNORECASE),
    "seed": re.compile(r"\bseed\b", re.IGNORECASE),
}
_UNKNOWN_FIELD = re.compile(
    r"(not|n't|un)[ -]?(support|permit|allow|recogni[sz]|expect)|unknown|\bextra\b|additional propert|\binstead\b",
    re.IGNORECASE,
)
# how providers call the number of completions; the \n of a quoted text does not count
_N_WORDS = re.compile(
    r"(?<!\\)\bn\b|\bcandidate_?count\b|"
    r"\b(multiple|number of|only one|more than one) (candidate|completion|choice|generation)s?\b",
    re.IGNORECASE,
)
# what a garbled answer may repeat of a request, and how a server refuses
_ECHO = re.compile(r"[{\[]|[\"']n[\"']\s*[:=]")
_REFUSING = re.compile(r"support|allow|enabled|implement|\b(must|only|at most|maximum|exceeds?)\b", re.IGNORECASE)
_MOST = re.compile(r"(?:at most|up to|no more than|maximum (?:of|is)|less than or equal to|<=) (\d{1,4})\b")
_ONE_ALONE = re.compile(r"\b(multiple|only one|more than one) (candidate|completion|choice)s?\b", re.IGNORECASE)
# a client library's own words, up to the first text that it quotes
_UNSUPPORTED = re.compile(r"^[^'\"<{]*?(\bargument\b|\bn\b|(not|n't) support|not implemented)", re.IGNORECASE)
_DISCONNECTED = frozenset(
    {
        *("ServerDisconnectedError", "ClientPayloadError", "ClientOSError"),  # aiohttp's
        *("RemoteProtocolError", "ReadError", "WriteError", "CloseError"),  # httpx's
        *("RemoteDisconnected", "IncompleteRead", "ConnectionClosedError"),  # http.client's and botocore's
        *("ConnectionResetError", "ConnectionAbortedError", "BrokenPipeError"),
    }
)
_UNREADABLE = frozenset(
    {
        *("JSONDecodeError", "UnicodeDecodeError", "ValidationError", "DecodingError", "HttpProcessingError"),
        # with a response format, openai's client drops all completions of a request when a filter cut one of them
        "ContentFilterFinishReasonError",
    }
)
# chat templates' words for it, and those of providers that apply one
_SYSTEM_ROLE = re.compile(
    r"roles must alternate|only user,? (and )?assistant|(system|developer).{0,3} is not a (valid|supported) role"
    r"|(un(expected|supported|known)|invalid|not a valid)\b.{0,40}\brole\b.{0,30}\b(system|developer)\b"
    r"|\brole.{0,4}(system|developer).{0,20}(not|n't) (be )?(support|allow|accept)"
    r"|(system|developer) (role|message|prompt|instruction)s?\b.{0,40}(not (be )?(support|enabl|allow|accept))"
    r"|(not|n't) (support|allow|accept) .{0,8}(system|developer).{0,3} (role|message|prompt|instruction)",
    re.IGNORECASE,
)


class NoCompletionError(PolicyError):
    """The provider's answer holds no completion."""


@dataclass(frozen=True)
class ProviderFailure:
    """What the failure of a request means, whichever client library or server reported it.

    Attributes:
        kind: what is wrong, in one word.
        summary: the kind of error and its message as one line, for people.
        message: the provider's own words.
        status: of the HTTP answer, or the one that an answer of status 200 has inside; 200 where an answer can't be
            read; None where there was none.
        param: the field of the request that the provider names as the cause.
        retry_after: seconds that the provider asks to wait before the next attempt; None where it does not say.
        is_retryable: whether the same request may go through later.
    """

    kind: FailureKind
    summary: str
    message: str
    status: int | None = None
    param: str | None = None
    retry_after: float | None = None
    is_retryable: bool = False

    @classmethod
    def of(cls, error: BaseException) -> "ProviderFailure":
        """What an exception of any client library means."""
        name, text = type(error).__name__, one_line(str(error))
        if isinstance(error, NoCompletionError):
            return cls("transient", error.message.rstrip("."), error.message, status=200, is_retryable=True)
        if isinstance(error, TPOError):
            return cls("other", f"{name}: {text}".rstrip(": ."), text)
        chain = error_chain(error)
        for cause in chain:
            status, body = answer_in(cause)
            if status is not None and status >= 400:
                own_param = getattr(cause, "param", None)
                return cls._of_answer(
                    status,
                    body if body is not None else str(cause),
                    headers=headers_of(cause),
                    name="" if type(error).__module__ == "builtins" else f"{name}: ",
                    param=own_param if isinstance(own_param, str) else None,
                )
        kind = _kind_of_errors(chain)
        summary = f"{name}: {text}".rstrip(": .")
        if kind == "transient":
            return cls(kind, f"the answer can't be read ({_shown(summary)})", text, status=200, is_retryable=True)
        if kind == "disconnected":
            summary = "the server closed the connection before its answer was complete"
        elif any(isinstance(cause, ConnectionRefusedError) for cause in chain):
            summary = "the connection was refused"
        elif kind == "unreachable":  # the innermost says which host, and why
            summary = _shown(next((words for cause in reversed(chain) if (words := one_line(str(cause)))), summary))
        return cls(kind, _shown(summary), text, is_retryable=kind in _RETRYABLE)

    @classmethod
    def of_response(cls, status: int, body: str, headers: Mapping[str, str] | None = None) -> "ProviderFailure":
        """What an answer with a status of 400 or more means.

        Args:
            status: of the answer.
            body: its text.
            headers: those of the answer.
        """
        return cls._of_answer(status, body, headers=headers or {})

    @classmethod
    def _of_answer(
        cls, status: int, body: JSON, *, headers: Mapping[str, str], name: str = "", param: str | None = None
    ) -> "ProviderFailure":
        found = list(words_in(body))
        param = param or next((field for field, _ in found if field), None)
        said = [text if not field or _has_word(text, field) else f"{field}: {text}" for field, text in found]
        message = "; ".join(dict.fromkeys(said))[:_MOST_CHARACTERS]
        kind = _kind_of_status(status)
        # servers that let the error of a template or an engine through say so plainly
        refuses_n = any(_names_n(text) and _REFUSING.search(text) for text in re.split(r"[.;]\s", message))
        if status >= 500 and ((refuses_n and not _ECHO.search(message)) or _SYSTEM_ROLE.search(message)):
            kind = "refused"
        return cls(
            kind=kind,
            summary=f"{name}status {status}: {_shown(message)}".rstrip(": ."),
            message=message,
            status=status,
            param=param,
            retry_after=seconds_to_wait(headers),
            is_retryable=kind in _RETRYABLE and headers.get("x-should-retry") != "false",
        )

    @property
    def is_unreadable(self) -> bool:
        """Whether there was an answer that can't be read."""
        return self.status == 200

    @property
    def refuses_system_role(self) -> bool:
        """Whether the model's chat template takes no system message."""
        return self.kind == "refused" and _SYSTEM_ROLE.search(self.message) is not None

    def hint(self, address: str = "") -> str:
        """What to do about it; "" where there is nothing to say.

        Args:
            address: where the provider was asked, if that is known.
        """
        if self.status == 429:
            return "The provider limits the rate or the quota: wait, or ask for less at a time."
        if self.kind == "unreachable" and address:
            return f"Is the server at {address} running?"
        hints: Mapping[FailureKind, str] = {
            "key": "Check the API key: the provider does not accept it.",
            "not_found": "Check the model name and the address: the provider does not know them.",
            "timeout": "The provider did not answer in time: try again, or raise timeout.",
            "disconnected": "Try again, and see the log of the server or of a proxy before it.",
            "unreachable": "Is the server running, and is its address right?",
        }
        return hints.get(self.kind, "")

    def settings_hint(self) -> str:
        """Which setting of a run to change, where the request asked for what the provider does not take."""
        if self.status is None or self.is_unreadable:
            return ""
        if self.is_context_overflow:
            return (
                "Prompt and answers do not fit into the model's context: lower max_shown_tokens, the phases' "
                "max_new_tokens or n, or give the server a larger context "
                '(load_policy("local", context_tokens=...)).'
            )
        knob = self.refused_knob(_KNOB_WORDS.keys())
        if knob == "seed":
            return "The provider takes no seed: set seed to none."
        if knob:
            return f"Set {knob} of the phase to none to leave it to the provider, as in sample_{knob}=none."
        return f"The provider does not take {self.param!r} as it was sent." if self.param else ""

    def refused_knob(self, knobs: AbstractSet[str]) -> str | None:
        """The one of `knobs` that the provider says it does not take, or None."""
        if self.status not in (400, 422):
            return None
        text = self.param or self.message  # a message may also repeat the request
        return next((knob for knob, word in _KNOB_WORDS.items() if knob in knobs and word.search(text)), None)

    def refuses_field(self, field: str) -> bool:
        """Whether the provider says that it does not know a field of the request, or not in this form."""
        is_named = self.param == field or (not self.param and _has_word(self.message, field))
        return self.status in (400, 422) and is_named and _UNKNOWN_FIELD.search(self.message) is not None

    @property
    def is_context_overflow(self) -> bool:
        """Whether the provider says that the request does not fit into the model's context."""
        is_answer = self.status is not None and not self.is_unreadable
        # the error's name may say it
        return is_answer and (_CONTEXT.search(self.message) or _CONTEXT.search(self.summary)) is not None

    @property
    def is_too_long(self) -> bool:
        """Whether the prompt and the token limit are more than the provider takes."""
        return self.is_context_overflow or self.refused_knob({"max_new_tokens"}) is not None

    @property
    def may_refuse_n(self) -> bool:
        """Whether a request for several completions may have failed because it asked for too many."""
        names_field = self.param or self.refused_knob(_KNOB_WORDS.keys())
        is_about_n = not names_field or _names_n(self.param or self.message)
        return self.kind in ("refused", "unsupported") and is_about_n

    def names_n(self, n: int) -> bool:
        """Whether the failure of a request for `n` completions is about their number."""
        return (
            _names_n(self.param or "")
            or _names_n(self.message)
            or re.search(rf"(?<![\w.-]){n}\b", self.message) is not None
        )

    def smaller_n(self, n: int) -> int:
        """How many completions to ask for after `n` were refused.

        The most that the message allows, or that one about their number names; else half, or one where it is several
        that are refused, or the server calls it a failure of its own.
        """
        numbers = (re.compile(r"\b\d{1,4}\b") if self.names_n(n) else _MOST).findall(self.message)
        named = [int(number) for number in numbers if 0 < int(number) < n]
        is_one = _ONE_ALONE.search(self.message) or (self.status is not None and self.status >= 500)
        return max(named, default=1 if is_one else n // 2)


def policy_failed(error: Exception, *, address: str = "", usage: PhaseUsage | None = None) -> PolicyError:
    """The error to raise for one of a policy's provider.

    Args:
        error: what the provider's client raised; of a `PolicyError` the message and the hint are kept.
        address: where the provider was asked, if that is known.
        usage: what the failed requests cost.
    """
    if isinstance(error, PolicyError):
        return PolicyError(error.message, hint=error.hint, usage=usage)
    failure = ProviderFailure.of(error)
    hint = failure.hint(address) or failure.settings_hint()
    return PolicyError(f"The policy failed: {failure.summary}.", hint=hint, usage=usage)


def _kind_of_status(status: int) -> FailureKind:
    if status in _REFUSED:
        return "refused"
    if status in (401, 403):
        return "key"
    if status in (404, 405):
        return "not_found"
    return "transient" if status in _TRANSIENT or status >= 500 else "other"


def _kind_of_errors(chain: list[BaseException]) -> FailureKind:
    """The kind of an error without a status. Client libraries share no base class, so names have to do."""
    names = {base.__name__ for cause in chain for base in type(cause).__mro__}
    kinds: Mapping[FailureKind, bool] = {
        # aiohttp's transport reports these two as timeouts
        "unreachable": "ConnectionRefusedError" in names or any(name.startswith("ClientConnector") for name in names),
        "disconnected": bool(names & _DISCONNECTED),
        "transient": bool(names & _UNREADABLE),
    }
    if kind := next((kind for kind, applies in kinds.items() if applies), None):
        return kind
    for cause in chain:
        name = type(cause).__name__
        is_timeout = "Timeout" in name and "Connect" not in name
        # httpx and its forks have a base of their own for what goes wrong underneath
        is_transport_error = any(base.__name__ == "TransportError" for base in type(cause).__mro__)
        if is_timeout or "Connect" in name or isinstance(cause, ConnectionError) or is_transport_error:
            return "timeout" if is_timeout else "unreachable"
    # what reading an answer of another form raises; a client library that can't send a request says so
    may_be_answer = isinstance(chain[0], TypeError | ValueError | AttributeError | LookupError)
    is_said = may_be_answer and _UNSUPPORTED.search(str(chain[0]))
    if is_said or isinstance(chain[0], NotImplementedError):
        return "unsupported"
    return "transient" if may_be_answer and not isinstance(chain[0], UnicodeError) else "other"


def _names_n(message: str) -> bool:
    return _N_WORDS.search(message) is not None


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
