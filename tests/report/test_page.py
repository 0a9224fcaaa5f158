"""The page of a run: text stays text, nothing is asked for, and what it shows and does in a browser."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.hostile_texts import HOSTILE
from tests.report.browser import CHROMIUM, browser_page
from tests.report.conftest import QUESTION, candidate, document, record
from tpo_graph.report import RunDocument, report_page

MARKUP = [
    "</script><script>document.title = 'taken'</script>",
    "<img src=http://outside.test/x onerror=\"document.title='taken'\">",
    "<!-- <script> ]]> &lt; &amp; &#x41; </style> </textarea>",
    "<style>@import 'http://outside.test/s.css'</style><link rel=stylesheet href=//outside.test/t>",
    "\"onmouseover='x' '/><svg onload=x>",
    "half a pair: \ud83d and NUL\0",
]
TEXTS = [*HOSTILE, *MARKUP]
VOID = {"meta", "link", "input", "line", "circle", "br", "img"}


class Parsed(HTMLParser):
    """The page as a browser reads it: the texts, without what a revision removed, and every tag and attribute."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._open: list[tuple[str, bool]] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            is_text = "text" in (dict(attrs).get("class") or "").split()
            if is_text:
                self.texts.append("")
            self._open.append((tag, is_text))
            if tag in self.raw:
                self.raw[tag].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        if self._open and self._open[-1][0] in self.raw:
            self.raw[self._open[-1][0]][-1] += data
        elif any(is_text for _, is_text in self._open) and self._open[-1][0] != "del":
            self.texts[-1] += data

    @property
    def policy(self) -> str:
        (policy,) = [value for tag, name, value in self.attributes if name == "content" and "default-src" in value]
        return policy


def page_of(**changes) -> str:
    return report_page(RunDocument.model_validate(document(**changes)))


def hostile_document(text: str) -> dict:
    """A run that has the text wherever a text can be."""
    drafts = [candidate("0-0", text, 1.0), candidate("0-1", "plain", 0.0), candidate("1-0", f"more {text}", 2.0)]
    for draft in drafts:
        draft |= {"id": draft["id"] + text, "finish_reason": text}
    return document(
        answer=f"given {text}",
        stop_reason=text,
        best=drafts[2],
        cache=drafts,
        unscored=[candidate("1-1", f"late {text}")],
        trajectory=[
            record(0, f"0-0{text}", 1.0, 0.0),
            record(1, f"1-0{text}", 2.0, 0.0, loss=f"loss {text}", gradient=f"gradient {text}"),
        ],
        failures=[{"phase": text, "step": 1, "reason": text, "detail": f"detail {text}", "text": f"failed {text}"}],
        choices=[{"step": 0, "best": f"best {text}", "worst": f"worst {text}", "critique": f"critique {text}"}],
        warnings=[{"kind": text, "message": f"warning {text}"}],
        usage={text: {"requests": 1}},
        messages=[{"role": text, "content": f"system {text}"}, {"role": "user", "content": f"question {text}"}],
        models={text: text},
        variant=text,
        prompts=text,
        settings={text: f"setting {text}", "list": [text]},
        error={"kind": text, "message": f"message {text}", "hint": text},
    )


@pytest.mark.parametrize("text", TEXTS)
def test_hostile_text_stays_text(text):
    parsed = Parsed(report_page(RunDocument.model_validate(hostile_document(text))))
    shown = text.encode("utf-8", "replace").decode().replace("?", "\ufffd") if "\ud83d" in text else text
    shown = shown.replace("\0", "\ufffd")
    places = "question given loss gradient detail failed critique warning system setting late more"
    for place in places.split():
        assert f"{place} {shown}" in parsed.texts, place
    plain = Parsed(report_page(RunDocument.model_validate(hostile_document("plain"))))
    # `text` adds no element and no attribute to the page
    assert parsed.tags.count("script") == plain.tags.count("script") == 2
    assert set(parsed.tags) - {"del"} == set(plain.tags) - {"del"}
    assert {(tag, name) for tag, name, _ in parsed.attributes} == {(tag, name) for tag, name, _ in plain.attributes}
    assert json.loads(parsed.raw["script"][0])["candidates"][0]["id"].replace("\0", "\ufffd") == f"0-0{shown}"


def test_the_page_is_one_file_that_names_no_other():
    parsed = Parsed(page_of())
    links = {value for _, name, value in parsed.attributes if name in ("href", "src", "srcset", "action", "data")}
    assert links and all(link.startswith("#") for link in links)
    assert not re.search(r"url\(|@import|https?:|//[a-z]", "".join(parsed.raw["style"]))
    assert not re.search(r"https?:|fetch|XMLHttp|innerHTML|eval", parsed.raw["script"][1])


def test_the_policy_allows_one_style_and_one_script_and_nothing_else():
    parsed = Parsed(page_of())

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert parsed.policy.split("; ") == [
        "default-src 'none'",
        f"style-src {source(parsed.raw['style'][0])}",
        f"script-src {source(parsed.raw['script'][1])}",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert not any(name == "style" or name.startswith("on") for _, name, _ in parsed.attributes)


def test_what_is_seen_first():
    page = page_of(warnings=[{"kind": "x", "message": "Look twice."}])
    text = " ".join(
        re.sub(r"</?bdi>|(<[^>]+>)", lambda tag: " " if tag[1] else "", page.partition("<body>")[2]).split()
    )
    assert f"{QUESTION} first draft -1.000 → to answer +2.500 after 2 steps, 1 request, 1,200 tokens read" in text
    assert "340 written, 3.2 s All steps are done. (depth)" in text
    assert "Look twice." in text


def test_loss_and_gradient_stand_beside_best_and_worst():
    page = page_of()
    steps = page[page.index('<section id="steps"') :]
    parsed = Parsed(steps[: steps.index("</section>") + 10])
    assert parsed.texts == [
        *("the sky is blue", "no idea", "the loss", "the gradient"),
        *("the sky scatters blue light", "no idea", "the loss", "the gradient"),
    ]


def test_a_step_in_which_the_run_was_broken_off_shows_its_loss():
    page = page_of(stop_reason=None, interrupted=True, loss="a last loss", gradient="")
    assert 'Step 3</h3>\n<span class="quiet">not finished' in page
    assert "a last loss" in Parsed(page).texts
    assert "a last loss" not in page_of(loss="a last loss")


def test_a_revision_shows_its_word_differences():
    page = page_of()
    article = page[page.index('id="c2"') : page.index("</article>", page.index('id="c2"'))]
    pieces = re.findall(r"<(ins|del|span)>(.*?)</", article)
    assert pieces == [("span", "the sky "), ("del", "is"), ("ins", "scatters"), ("span", " blue"), ("ins", " light")]


def test_a_run_without_a_candidate_has_a_page():
    error = {"kind": "PolicyError", "message": "No such key.", "hint": "Check it."}
    page = page_of(
        answer=None, best=None, cache=[], trajectory=[], usage={}, messages=[], error=error, stop_reason=None
    )
    parsed = Parsed(page)
    assert "No candidate was drawn." in page and "PolicyError No such key. Check it." in parsed.texts
    assert "<svg" not in page


@pytest.mark.subprocess
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
class TestInChromium:
    async def test_nothing_is_asked_for_and_hostile_text_does_nothing(self, tmp_path):
        file = tmp_path / "page.html"
        file.write_text(report_page(RunDocument.model_validate(hostile_document("\n".join(TEXTS)))), "utf-8")
        async with browser_page(tmp_path / "profile") as page:
            await page.open(file.as_uri())
            assert (page.requests, page.log) == ([file.as_uri()], [])
            assert await page.run("document.documentElement.dataset.ready") == "yes"
            assert "taken" not in (await page.run("document.title")).split("question")[0]
            shown = await page.run("document.querySelector('h1').textContent")
            assert "<img src=http://outside.test/x" in shown

    async def test_what_was_not_escaped_would_be_seen(self, tmp_path):
        """The test above can fail: the same text as markup is refused by the policy, and the log says so."""
        file = tmp_path / "page.html"
        file.write_text(page_of().replace("</main>", "".join(MARKUP[:2]) + "</main>"), "utf-8")
        async with browser_page(tmp_path / "profile") as page:
            await page.open(file.as_uri())
            assert sum("Content Security Policy" in line for line in page.log) >= 2
            assert await page.run("document.title") == f"TPO run: {QUESTION}"

    async def test_the_chart_is_walked_with_the_keyboard(self, tmp_path):
        file = tmp_path / "page.html"
        file.write_text(page_of(), "utf-8")
        current = "document.querySelector('.candidate.shown').id + ' ' + document.activeElement.dataset.point"
        async with browser_page(tmp_path / "profile") as page:
            await page.open(file.as_uri())
            await page.run("document.querySelector('nav a:last-child').focus()")
            walk = []
            for key in ("Tab", "ArrowLeft", "ArrowDown", "ArrowUp", "ArrowRight", "ArrowRight", "Home"):
                await page.press(key)
                walk.append(await page.run(current))
            answer, parent, worst, last = "c2 2", "c1 1", "c0 0", "c4 4"
            assert walk == [answer, parent, worst, parent, answer, last, answer]
            await page.run("document.querySelector('th a[href=\"#c3\"]').click()")
            assert await page.run("document.activeElement.id") == "c3"
            assert await page.run("getComputedStyle(document.getElementById('c2')).display") == "none"
            assert page.log == []

    async def test_nothing_is_wider_than_the_screen_and_dark_is_dark(self, tmp_path):
        file = tmp_path / "page.html"
        long = "word" * 200
        many = [candidate(f"0-{place}", long, float(place)) for place in range(100)]
        file.write_text(
            page_of(
                cache=many, best=many[-1], trajectory=[record(0, "0-99", 99.0, 0.0)], models={long: long}, answer=long
            ),
            "utf-8",
        )
        async with browser_page(tmp_path / "profile") as page:
            for width in (320, 390, 1280):
                screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 1000}
                await page.send("Emulation.setDeviceMetricsOverride", **screen)
                await page.open(file.as_uri())
                assert await page.run("document.documentElement.scrollWidth") <= width
                # of a chart that is wider, the answer is in view
                assert 0 <= await page.run("document.querySelector('.is-answer').getBoundingClientRect().left") <= width
            colour = "getComputedStyle(document.body).backgroundColor"
            assert await page.run(colour) == "rgb(255, 255, 255)"
            dark = {"name": "prefers-color-scheme", "value": "dark"}
            await page.send("Emulation.setEmulatedMedia", features=[dark])
            assert await page.run(colour) == "rgb(20, 23, 27)"

    async def test_without_its_script_the_page_shows_the_same_by_links(self, tmp_path):
        file = tmp_path / "page.html"
        file.write_text(page_of(), "utf-8")
        visible = "[...document.querySelectorAll('.candidate')].filter(e => e.offsetParent).map(e => e.id).join()"
        async with browser_page(tmp_path / "profile") as page:
            await page.send("Emulation.setScriptExecutionDisabled", value=True)
            await page.open(file.as_uri())
            assert await page.run(visible) == "c2"
            await page.run("location.hash = '#c4'")
            assert await page.run(visible) == "c4"


def test_a_file_that_contradicts_itself_still_has_a_page():
    twice = [candidate("0-0", "one", 1e308), candidate("0-0", "two", -1e308), candidate("1-0", "three", 0.0)]
    trajectory = [record(0, "1-0", 1e308, -1e308), record(7, "gone", 1.0, 1.0, mean_reward=5e300)]
    cost = {"requests": 10**30, "seconds": 1.7e308}
    page = page_of(cache=twice, trajectory=trajectory, best=candidate("9-9", "x", 1.0), usage={"a": cost, "b": cost})
    assert page.count("data-point=") == 3
    assert "from <a" not in page  # nothing is a revision of itself


def test_the_templates_are_part_of_the_package():
    folder = Path(report_page.__code__.co_filename).parent
    assert {"page.css", "page.html.jinja", "page.js"} <= {file.name for file in folder.iterdir()}
