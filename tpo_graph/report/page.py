"""One run as one HTML file: nothing is loaded from anywhere, and a text of a model can be nothing but text.

Jinja2 escapes all that is put in; the content security policy allows the one style and the one script whose hashes it
names, and no request at all. Without its script the page shows the same, by links.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from tpo_graph._storable import storable_text
from tpo_graph.accounting import total
from tpo_graph.report.chart import HEIGHT, draw
from tpo_graph.report.differences import Piece, word_differences
from tpo_graph.report.document import RunDocument
from tpo_graph.report.words import FAILURES, STOP_REASONS, format_reward
from tpo_graph.settings import TPOSettings

if TYPE_CHECKING:
    from jinja2 import Template

_PHASES = ("sample", "score", "select", "loss", "gradient", "update")
_OPEN_STEPS = 3
_LONGEST_TITLE = 80


def report_page(run: RunDocument) -> str:
    """The page of a run: a whole HTML document.

    Args:
        run: the document of the run.
    """
    from markupsafe import Markup

    folder = files("tpo_graph.report")
    chart = draw(run)
    style = (folder / "page.css").read_text("utf-8")
    if chart is not None:
        # a style attribute would need a hole in the content security policy
        style += f"#plot {{ min-width: {chart.narrowest}px; }}\n"
    script = (folder / "page.js").read_text("utf-8")
    page = _template().render(
        run=run,
        title=" ".join(run.question.split())[:_LONGEST_TITLE],
        policy=f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),  # our own files, with nothing of the run in them but a number
        script=Markup(script),
        data=_data(run),
        chart=chart,
        height=HEIGHT,
        candidates=_candidates(run),
        index_of=_places(run),
        answer_index=_answer_index(run),
        first_draft=next((candidate for candidate in run.cache if candidate.step == 0), None),
        ending=_ending(run),
        steps=_steps(run),
        revises=(run.settings or {}).get("mode") == "revision",
        open_steps=_OPEN_STEPS,
        usage=[(phase, run.usage[phase]) for phase in sorted(run.usage, key=_phase_order)],
        total=total({phase: cost.model_dump() for phase, cost in run.usage.items()}),  # type: ignore[misc]  # same fields
        settings=_settings(run),
        failure_words=FAILURES,
    )
    # halves of surrogate pairs, which JSON can hold and no file
    return storable_text(page)


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tpo_graph.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False}
    environment.filters |= {"reward": format_reward, "plural": _plural}
    return environment.get_template("page.html.jinja")


def _source(text: str) -> str:
    """An inline style or script as a source of a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _places(run: RunDocument) -> Mapping[str, int]:
    """Where a candidate stands in the list, by id: ids are anybody's text, places make safe anchors."""
    return {candidate.id: place for place, candidate in reversed(list(enumerate(run.candidates)))}


def _answer_index(run: RunDocument) -> int | None:
    return _places(run).get(run.best.id) if run.best else None


def _data(run: RunDocument) -> Mapping[str, Any]:
    """What the script needs: who came from whom, by place, with rewards and steps to walk by."""
    places = _places(run)
    return {
        "answer": _answer_index(run),
        "candidates": [
            {
                "id": candidate.id,
                "step": candidate.step,
                "reward": candidate.reward,
                "parent": places[parent.id] if (parent := run.parent(candidate)) else None,
            }
            for candidate in run.candidates
        ],
    }


def _candidates(run: RunDocument) -> list[Mapping[str, Any]]:
    """Every candidate with its parent and its text as pieces."""
    return [
        {
            "candidate": candidate,
            "parent": (parent := run.parent(candidate)),
            "pieces": word_differences(parent.text, candidate.text) if parent else [Piece("same", candidate.text)],
            "words": len(candidate.text.split()),
        }
        for candidate in run.candidates
    ]


def _steps(run: RunDocument) -> list[Mapping[str, Any]]:
    """Every step with the pair that it was written from; last, the one in which the run was broken off."""
    steps: list[dict[str, Any]] = [
        {"number": record.step, "record": record, "loss": record.loss, "gradient": record.gradient}
        for record in run.trajectory
    ]
    if run.trajectory and run.stop_reason is None and (run.loss or run.gradient):
        number = max(record.step for record in run.trajectory) + 1
        steps.append({"number": number, "record": None, "loss": run.loss, "gradient": run.gradient})
    for step in steps:
        step |= {"pair": run.comparison(step["number"]), "before": run.record_before(step["number"])}
    return [step for step in steps if step["pair"]]


def _phase_order(phase: str) -> int:
    return _PHASES.index(phase) if phase in _PHASES else len(_PHASES)


def _settings(run: RunDocument) -> list[tuple[str, str, bool]]:
    """The settings: name, value, and whether it is another one than the default; those first."""
    defaults = TPOSettings().model_dump(mode="json")
    rows = [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), value != defaults.get(name))
        for name, value in (run.settings or {}).items()
    ]
    return sorted(rows, key=lambda row: not row[2])


def _ending(run: RunDocument) -> str:
    """Why the run is over, as a sentence without its full stop."""
    if run.error or run.interrupted or not run.stop_reason:
        how = "Interrupted" if run.interrupted else "Failed" if run.error else "Unfinished"
        return f"{how}: {'the answer is the best candidate so far' if run.best else 'no candidate was scored'}"
    reason = STOP_REASONS.get(run.stop_reason, run.stop_reason)
    return f"{reason[:1].upper()}{reason[1:]}"
