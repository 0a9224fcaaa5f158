"""What runs in a child process: the checks that may never end, and the loop that runs them on request.

The file is run as a script, without its package, so that a child is there at once: it imports the standard library
alone, and what a check needs when that check first runs. The other end of the pipe is in `processes`.
"""

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpo_graph._json_schema import JSONSchema
    from tpo_graph.types import JSON

MEMORY_BYTES = 4 * 2**30
"""Address space of a child: an answer such as 9^9^9^9 fills any memory within its time limit."""


def serve() -> None:
    """Answer one line of JSON with one line of JSON until the parent closes the pipe or is gone."""
    # a library that prints must not print into the replies
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Ctrl-C is for the parent, which then closes the pipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no limits, macOS ignores this one
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # what the parent can import can be imported here too
    sys.path[:] = json.loads(sys.stdin.readline())
    functions: dict[str, Callable[..., JSON]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        # the system ends this process if it works on when its parent is no longer there to kill it
        with contextlib.suppress(ImportError, ValueError, OSError):
            import resource

            used = resource.getrusage(resource.RUSAGE_SELF)
            most = int(used.ru_utime + used.ru_stime + request["seconds"]) + 2
            resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        try:
            function = functions.get(path := request["function"])
            if function is None:
                module, _, name = path.partition(":")
                function = functions[path] = getattr(import_module(module), name)
            arguments = request["arguments"]
            reply = {"result": None if arguments is None else function(**arguments)}
        except Exception as error:  # the parent says whose fault it was
            reply = {"error": f"{type(error).__name__}: {error}"[:2000]}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def count_of_matches_is_right(*, pattern: str, whole: bool, at_least: int, at_most: int | None, text: str) -> bool:
    """Whether a pattern is found as often in a text as it should be; see `RegexVerifier`."""
    compiled = _compiled(pattern)
    matches = filter(None, [compiled.fullmatch(text.strip())]) if whole else compiled.finditer(text)
    count = sum(1 for _ in matches)
    return at_least <= count and (at_most is None or count <= at_most)


_compiled = lru_cache(maxsize=64)(re.compile)


def holds_valid_json(*, schema: str, whole: bool, text: str) -> bool:
    """Whether a text is, or holds, JSON that is valid for a schema; see `JSONSchemaVerifier`."""
    from tpo_graph._json_schema import parse_json, strip_code_fence

    checked = _checked_schema(schema)
    if not whole:
        return any(checked.problem(value) is None for value in _objects_and_lists(text))
    try:
        return checked.problem(parse_json(strip_code_fence(text))) is None
    except ValueError:
        return False


@lru_cache(maxsize=64)
def _checked_schema(schema: str) -> "JSONSchema":
    from tpo_graph._json_schema import JSONSchema

    return JSONSchema(json.loads(schema))


# a bracket that can begin JSON; to try every other one as well would take time that grows with the text's square
_OPENING = re.compile(r'\{(?=\s*["}])|\[(?=\s*["{}\[\]\d\-tfn])')


def _objects_and_lists(text: str) -> "Iterator[JSON]":
    """Every object and list in the text that is not inside another one."""
    from tpo_graph._json_schema import STRICT_JSON

    position = 0
    while (opening := _OPENING.search(text, position)) is not None:
        try:
            value, position = STRICT_JSON.raw_decode(text, opening.start())
        except ValueError:
            position = opening.start() + 1
        except RecursionError:
            return  # nested without an end; the same would happen at the next bracket
        else:
            yield value


def check_math(*, references: list[str], response: str, step_seconds: int) -> bool | None:
    """Whether the final answer of a response equals a reference; None when no reference can be read.

    Args:
        references: any of these is right.
        response: where the answer is to be found.
        step_seconds: for parsing, and again for comparing; the library counts in whole seconds.
    """
    from math_verify import parse, verify  # type: ignore[import-untyped]  # the library has no types

    parsed = [expressions for reference in references if (expressions := _parsed_reference(reference))]
    if not parsed:
        return None
    answer = parse(response, parsing_timeout=step_seconds)
    return any(verify(expressions, answer, timeout_seconds=step_seconds) for expressions in parsed)


@lru_cache(maxsize=256)
def _parsed_reference(reference: str) -> list[Any]:
    """SymPy expressions and texts."""
    from math_verify import parse

    # the library reads LaTeX between delimiters only, and data sets leave them out
    delimited = any(mark in reference for mark in ("$", "\\(", "\\[", "\\boxed"))
    expressions: list[Any] = parse(reference if delimited else f"${reference}$") or parse(reference)
    return expressions


if __name__ == "__main__":
    serve()
