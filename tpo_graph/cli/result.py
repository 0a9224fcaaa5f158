"""The result of a run on stdout: the answer alone, or all of it as one JSON document."""

import json
import re
import sys
from typing import Any

from tpo_graph.cli.display import clean
from tpo_graph.cli.failures import describe
from tpo_graph.cli.session import Outcome, RunRequest

# json.dumps leaves these as they are; terminals act on some of them, and no encoding can write halves of a pair
_UNSAFE_IN_JSON = re.compile(r"[\x7f-\x9f\ud800-\udfff]")


def as_document(outcome: Outcome, request: RunRequest | None) -> dict[str, Any]:  # Any: plain values
    """All of a run as plain values; the same keys whether it finished, failed or was interrupted.

    Args:
        outcome: how the run ended.
        request: what was asked for; None when that could not be understood.
    """
    state, best = outcome.state, outcome.best
    return {
        "answer": state.get("answer") or (best["text"] if best else None),
        "stop_reason": state.get("stop_reason"),
        "best": best,
        "worst": state.get("worst"),
        "trajectory": state.get("trajectory", []),
        "cache": state.get("cache", []),
        "unscored": outcome.unscored,
        "failures": state.get("failures", []),
        "choices": state.get("choices", []),
        "warnings": state.get("warnings", []),
        "usage": outcome.usage,
        "seconds": round(outcome.seconds, 3),
        "messages": [_message(each) for each in state.get("messages", [])],
        "models": dict(request.models) if request else {},
        "prompts": outcome.prompts or None,
        "settings": request.settings.model_dump(mode="json") if request else None,
        "interrupted": outcome.interrupted,
        "error": describe(outcome.error) if outcome.error else None,
    }


def write_json(document: dict[str, Any]) -> None:  # Any: plain values
    """Print one JSON document."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    text = json.dumps(document, indent=2, ensure_ascii=not unicode, allow_nan=False)
    # such a character can only stand inside a string, where its escape means the same
    print(_UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match.group()):04x}", text), flush=True)


def write_answer(text: str) -> None:
    """Print an answer; on a terminal wrapped between words."""
    text = clean(text)
    if not sys.stdout.isatty():
        print(text, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    Console(file=sys.stdout, force_terminal=True, highlight=False).print(Text(text, tab_size=4))
    sys.stdout.flush()


def write_unscored(outcome: Outcome) -> None:
    """Print candidates that were paid for and have no reward to stderr, where no program takes them for the answer."""
    for place, candidate in enumerate(outcome.unscored, start=1):
        head = f"candidate {candidate['id']} ({place} of {len(outcome.unscored)}, not scored):"
        print(f"\n{head}\n{clean(candidate['text'])}", file=sys.stderr)
    sys.stderr.flush()


def _message(message: Any) -> dict[str, str]:  # Any: a LangChain message
    from tpo_graph.prompts.template import ROLES

    return {"role": ROLES.get(message.type, message.type), "content": message.text}
