"""The page as a document: what it says, what it never contains, and that it needs nothing else."""

import base64
import dataclasses
import io
from collections import Counter
from html.parser import HTMLParser

import pytest
from PIL import Image

from synthgen.report.page import CONTENT_POLICY, ReportContent, render_page

VOID = {"meta", "img", "br", "line", "rect", "circle", "polyline"}
ALLOWED_TAGS = {
    *VOID,
    *("html", "head", "title", "style", "body", "a", "header", "div", "p", "h1", "h2", "h3", "ul", "li", "nav"),
    *("main", "section", "article", "span", "small", "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tr"),
    *("th", "td", "details", "summary", "abbr", "bdi", "code", "strong", "em", "figure", "figcaption", "svg", "text"),
    "footer",
}
ALLOWED_ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "class", "href", "id", "role", "width", "height", "viewbox"),
    *("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "rx", "points", "text-anchor", "scope", "colspan", "rowspan"),
    *("tabindex", "open", "src", "alt", "title", "aria-label", "aria-labelledby", "aria-hidden"),
}


class Document(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.text: list[str] = []
        self.comments: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-1:]}"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def test_the_document_is_well_formed_and_accessible(content: ReportContent) -> None:
    document = Document(render_page(content))
    assert document.stack == []
    ids = [attributes["id"] for _, attributes in document.found if "id" in attributes]
    assert max(Counter(ids).values()) == 1
    for tag, attributes in document.found:
        assert tag in ALLOWED_TAGS, tag
        assert set(attributes) <= ALLOWED_ATTRIBUTES, attributes
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes["aria-label"]
        if tag == "th":
            assert attributes["scope"]
        for name in ("href", "aria-labelledby"):
            if name in attributes:
                assert str(attributes[name]).removeprefix("#") in ids


def test_the_page_needs_nothing_else(content: ReportContent) -> None:
    page = render_page(content)
    document = Document(page)
    policies = [a["content"] for _, a in document.found if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [CONTENT_POLICY]
    assert CONTENT_POLICY.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert not [tag for tag, _ in document.found if tag in ("script", "link", "iframe", "object", "base", "form")]
    for tag, attributes in document.found:
        if "src" in attributes:
            assert str(attributes["src"]).startswith("data:image/png;base64,"), tag
    assert "url(" not in page
    assert "@import" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_every_verdict_and_number_is_told(content: ReportContent) -> None:
    words = Document(render_page(content)).words
    for fact in (
        "For some classes yes, for others they do harm.",
        *("helps", "hurts", "promising", "no evidence", "cannot tell"),
        "+7.4 (+2.1 to +12.7)",
        "−6.1 (−10.8 to −1.4)",
        "only 4 test groups",
        "none at all",
        "Expected difference on a new split, 5 grouped folds, 201 groups.",
        "was cut to 32 training images",
        "image file is truncated (12 bytes not processed)",
        "all refused: diversity ratio 0.08 is below 0.2: <b>collapsed</b>",
        "25 % of the draws",
        "288 kimg",
        "best+uneven87.1 %0.0940.278",
        "91.4 % ± 1.2",
        "not measured (4 real objects, at least 5 are needed)",
    ):
        assert fact in words, fact
    for arm in content.gain["arms"]:
        assert arm in words


@pytest.mark.parametrize("content_name", ["content", "hostile_content"])
def test_equal_content_gives_equal_bytes(content_name: str, request: pytest.FixtureRequest) -> None:
    given = request.getfixturevalue(content_name)
    assert render_page(given) == render_page(given)


def test_hostile_names_change_no_tag_and_no_attribute(content: ReportContent, hostile_content: ReportContent) -> None:
    # Row 14 of the fault list: the same elements and attribute names as with harmless names, in the same order.
    harmless, hostile = Document(render_page(content)), Document(render_page(hostile_content))
    assert [(tag, list(attributes)) for tag, attributes in hostile.found] == [
        (tag, list(attributes)) for tag, attributes in harmless.found
    ]
    assert hostile.comments == harmless.comments == []
    words = hostile.words
    for name in ('<img src=x onerror="alert(1)">', "{{7*7}}{% raw %}", "\"><script>alert('1')</script>", "<!-- -->"):
        assert name in words, name
    assert not {"\u202e", "\x00", "\u2028"} & set("".join(hostile.text))
    assert "⟨U+202E⟩txt.exe" in words


def test_sprites_are_real_pngs(content: ReportContent) -> None:
    sources = [str(a["src"]) for tag, a in Document(render_page(content)).found if tag == "img"]
    assert len(sources) == 11
    for source in sources:
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).load()


def test_a_frozen_test_set_and_a_second_look_are_said(content: ReportContent) -> None:
    gain = {**content.gain, "mode": "frozen", "looks": {"test_digest": "9f" * 32, "look": 3, "exploratory": True}}
    words = Document(render_page(dataclasses.replace(content, gain=gain))).words
    assert "This holds on the given test set" in words
    assert "Exploratory." in words
    assert "this is look 3" in words


def test_a_bare_run_still_gives_a_page(content: ReportContent) -> None:
    bare = dataclasses.replace(
        content,
        gain={**content.gain, "beside": {}, "overall": {}},
        summary={k: v for k, v in content.summary.items() if k not in ("grouping", "warnings")}
        | {"simulate_scarcity": None},
        quarantine=[],
        folds=[],
        acceptance={},
        examples=[],
        histories=[],
        choices=[],
        costs=[],
    )
    document = Document(render_page(bare))
    assert document.stack == []
    assert "The scarcity is that of the raw data" in document.words
    assert "None: every file could be read and used." in document.words


def test_a_search_is_told_with_its_choice_gain_and_cost_and_only_where_there_was_one(content: ReportContent) -> None:
    assert "The search for a mixing policy" not in render_page(content)
    gain = {"mean": 0.012, "low": -0.004, "high": 0.028, "n": 40}
    chosen = {fold: {"candidate": "share=0.5", "shrunk": 0.009} for fold in ("f0", "f1", "final")}
    chosen["f1"] = {"candidate": "<b>mine</b>", "shrunk": 0.0}
    search = {
        "default": "synthetic",
        "chosen": chosen,
        "expected_gain": {"score": gain, "balanced_accuracy": gain},
        "cost": {"trainings": 1234, "steps": 9, "seconds": 754.0, "rungs": 3, "stopped": True},
        "budget": {"minutes": 13.0, "seconds_each": 0.6, "trainings": 1300},
        "counts": "all classes",
    }
    page = render_page(dataclasses.replace(content, gain={**content.gain, "search": search}))
    for fact in (
        "chose share=0.5 instead of synthetic",
        "share=0.5 in 1 of 2",
        "+1.2 (\u22120.4 to +2.8) of balanced accuracy",
        "12.6 minutes; the budget held",
        "it stopped there",
        "&lt;b&gt;mine&lt;/b&gt;",
    ):
        assert fact in page, fact
    assert "<b>mine" not in page


def test_unlabelled_images_are_counted_with_what_was_left_out(content: ReportContent) -> None:
    plain = render_page(content)
    assert "unlabelled" not in Document(plain).words
    told = {"sha256": "0", "n_images": 12, "n_dropped": {"labelled_copy": 3, "<b>": 1}}
    page = render_page(dataclasses.replace(content, summary={**content.summary, "unlabelled": told}))
    words = Document(page).words
    assert "Beside them 12 unlabelled images; of their folder were left out: 3 × labelled_copy, 1 × <b>." in words
    assert "<b>" not in page


def test_how_the_classical_arm_was_chosen_is_told_as_it_was(content: ReportContent) -> None:
    def told(crossfit: bool, mode: str = "folds") -> str:
        plan = content.plan.model_copy(update={"mode": mode})
        return Document(render_page(dataclasses.replace(content, crossfit=crossfit, plan=plan))).words

    apart = "its test images had no part in it"
    assert "best cross-fitted score on the fold's own training side" in told(True)
    assert apart in told(True)
    assert "the classical arm is the one with the best cross-fitted score" in told(True)
    rule = dataclasses.replace(content, choice_errors=1.0)
    words = Document(render_page(rule)).words
    assert "is the most regularised of those within 1 standard error of the best cross-fitted score" in words
    assert "before all others" not in words
    arms = content.gain["arms"]
    masks = dataclasses.replace(rule, gain={**content.gain, "arms": {**arms, "paste": next(iter(arms.values()))}})
    told_paste = "(“paste”, which alone uses the masks, before all others) of those within 1 standard error"
    assert told_paste in Document(render_page(masks)).words
    assert "within 1.5 standard errors of" in Document(render_page(dataclasses.replace(rule, choice_errors=1.5))).words
    # without cross-fitting other folds' classifiers, trained on images that this fold tests, take part
    assert "best cross-fitted score" not in told(False)
    assert apart not in told(False)
    assert "were trained on some of the images that this fold is tested on" in told(False)
    # one test set for all folds: no classifier was trained on it
    assert apart in told(False, "frozen")
    assert "were trained on" not in told(False, "frozen")


def test_weights_that_did_not_start_at_random_are_told(content: ReportContent) -> None:
    page = render_page(dataclasses.replace(content, weights="w/<b>resnet.safetensors"))
    assert "The weights are those of the file w/<b>resnet.safetensors;" in Document(page).words
    assert "<b>" not in page
    assert "are those of the file" not in Document(render_page(content)).words
