"""A finished run, small and made up, that shows every verdict; and the same with hostile names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthgen.dataset.acceptance import Acceptance
from synthgen.records import FINAL, ClassPlan, Plan
from synthgen.report.grids import example_grid
from synthgen.report.page import (
    ArmChoice,
    ArmOrigin,
    ClassArea,
    ClassExamples,
    CostRow,
    FoldGain,
    ModelHistory,
    ReportContent,
)

GAIN_FILE = Path(__file__).with_name("gain.json")
HOSTILE = {
    "blowhole": '<img src=x onerror="alert(1)">',
    "break": "{{7*7}}{% raw %}",
    "crack": "\"><script>alert('1')</script>",
    "fray": "\u202etxt.exe' onmouseover='x",
    "free": "a & b </title><!-- -->",
    "uneven": "</style>]]>\x00\u2028",
}


def load_gain() -> dict[str, Any]:
    return json.loads(GAIN_FILE.read_text(encoding="utf-8"))


def make_plan(names: dict[str, str], gain: dict[str, Any]) -> Plan:
    classes = {
        slug: ClassPlan(
            class_name=names[slug],
            label=label,
            images=facts["images"],
            groups=facts["groups"],
            scarce=facts["scarce"],
            target=400,
            generator="adapted" if facts["scarce"] else "shared",
        )
        for label, (slug, facts) in enumerate(gain["data"]["classes"].items())
    }
    folds = [*gain["chosen"], FINAL]
    return Plan.model_validate(
        {
            "version": 1,
            "mode": gain["mode"],
            "strategy": "adapted",
            "folds": folds,
            "pretrain_folds": folds,
            "adapt_slugs": [slug for slug in classes if classes[slug].scarce],
            "scratch_slugs": [],
            "classes": classes,
        }
    )


def make_content(names: dict[str, str] | None = None) -> ReportContent:
    gain = load_gain()
    given = names or {slug: facts["class_name"] for slug, facts in gain["data"]["classes"].items()}
    for slug, facts in gain["data"]["classes"].items():
        facts["class_name"] = given[slug]
    plan = make_plan(given, gain)
    rng = np.random.default_rng(0)
    ticks = np.arange(1, 13) * 4.0
    history = {
        "kimg": ticks.tolist(),
        "d_loss": (1.4 - 0.6 * np.exp(-ticks / 20) + rng.normal(0, 0.02, 12)).tolist(),
        "g_loss": (0.7 + 0.9 * np.exp(-ticks / 20) + rng.normal(0, 0.02, 12)).tolist(),
        "r1": (0.4 * np.exp(-ticks / 30)).tolist(),
        "r2": [float("nan")] * 3 + (0.3 * np.exp(-ticks[3:] / 30)).tolist(),
        "d_real": rng.normal(0.8, 0.1, 12).tolist(),
        "d_fake": rng.normal(-0.7, 0.1, 12).tolist(),
    }
    examples = []
    for slug in plan.slugs:
        tiles = rng.integers(0, 255, (12, 8, 8, 1)).astype(np.uint8)
        made = example_grid(tiles, 6) if slug != "uneven" else None
        examples.append(ClassExamples(slug, example_grid(tiles[: plan.classes[slug].images], 6), made))
    shards = {
        name: Acceptance(
            candidates=600,
            accepted=0 if name == "uneven" else 400,
            rejected={"teacher disagrees": 63, "copy of a training image": 3},
            generator_digest="0123456789abcdef" * 4,
            refused="diversity ratio 0.08 is below 0.2: <b>collapsed</b>" if name == "uneven" else None,
            diversity_ratio=0.08 if name == "uneven" else 0.91,
        )
        for name in [*plan.slugs, *(f"{slug}.shared" for slug in plan.scarce_slugs)]
    }
    arms = [arm for arm in gain["arms"] if arm not in (gain["challenger"], *gain["beside"])]
    hostile_file = "train/" + (names["crack"] if names else "tile 7") + ".png"
    return ReportContent(
        title="Do synthetic images help on magnetic tiles?" if names is None else names["blowhole"],
        gain=gain,
        plan=plan,
        summary={
            "n_images": 1342,
            "n_groups": 201,
            "image_size": 64,
            "channels": 1,
            "simulate_scarcity": {"keep": {given["fray"]: 12}, "surplus": "test"},
            "classes": {
                slug: {"images": entry.images, "groups": entry.groups, "surplus": 20, "val": 0, "test": 0}
                for slug, entry in plan.classes.items()
            },
            "grouping": {"perceptual": 31, "id_gap": 1118, "correlation": 23},
            "warnings": [f"class {given['fray']} has only 7 groups"],
        },
        quarantine=[
            {
                "source": hostile_file,
                "reason": "truncated",
                "detail": "image file is truncated (12 bytes not processed)",
            },
            {"source": "train/crack/exp4_num_1.gif", "reason": "animated", "detail": "12 frames; see prepare.animated"},
        ],
        folds=[
            FoldGain(fold, slug, gain["gain"][slug]["recall"]["mean"] + offset)
            for slug in gain["gain"]
            for fold, offset in zip(gain["chosen"], (-0.03, 0.05, 0.01, -0.02, -0.01), strict=True)
        ],
        acceptance=shards,
        examples=examples,
        histories=[ModelHistory("shared", None, history), ModelHistory("adapted", "fray", history)],
        choices=[
            ArmChoice(fold, arm, {a: 0.6 + 0.02 * i + (0.2 if a == arm else 0.0) for i, a in enumerate(arms)})
            for fold, arm in gain["chosen"].items()
        ],
        origins=[ArmOrigin("best+synthetic", 0.914, 0.0, 0.0), ArmOrigin("best+uneven", 0.871, 0.278, 0.0941)],
        areas=[
            ClassArea(slug, None, None, "4 real objects, at least 5 are needed")
            if slug == "fray"
            else ClassArea(slug, 0.914, 0.012, None)
            for slug in plan.slugs
        ],
        costs=[CostRow("training the shared GAN", "48 kimg", "6 folds", "288 kimg")],
    )


@pytest.fixture
def content() -> ReportContent:
    return make_content()


@pytest.fixture
def hostile_content() -> ReportContent:
    return make_content(HOSTILE)
