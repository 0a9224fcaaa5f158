"""API keys, compared in constant time."""

import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers

from tpo_graph.errors import ConfigurationError
from tpo_graph.serving.errors import RequestRefusedError

__all__ = ["ApiKeys"]


class ApiKeys:
    """The keys that a server takes; none at all lets everybody in.

    Raises:
        ConfigurationError: a key is empty.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        given = list(keys)
        if not all(key.strip() for key in given):
            raise ConfigurationError("An API key is empty.", hint="Leave it out, or give one of some length.")
        # digests have the same length, so that a comparison does not tell that of a key
        self._digests = [_digest(key.strip().encode()) for key in given]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, headers: Headers) -> None:
        """Let a request in, or not.

        Raises:
            RequestRefusedError: it has no key that is known.
        """
        if not self._digests:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip().encode("latin-1"))  # the bytes that came: Starlette reads headers so
        # all are compared, whichever fits
        fits = [hmac.compare_digest(given, each) for each in self._digests]
        if scheme.lower() != "bearer" or not any(fits):
            raise RequestRefusedError(
                "Incorrect API key provided." if key else "No API key provided.",
                status=401,
                code="invalid_api_key",
                hint="Send it as the header Authorization: Bearer KEY.",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
