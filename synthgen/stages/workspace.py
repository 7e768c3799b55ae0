"""Where every stage's inputs and outputs lie inside one project folder.

Owns the paths that dvc.yaml names; refuses slugs and folds that are not of the plan.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from synthgen.config import Config, load_config
from synthgen.errors import PlanError
from synthgen.records import PLAN_COMMAND, SEARCH_RESULT, Plan, load_plan
from synthgen.versions import VERSIONS


@dataclass(frozen=True)
class Workspace:
    """A project folder: the one with params.yaml, plan.yaml and dvc.yaml.

    Attributes:
        root: the folder; every other path hangs below it.
    """

    root: Path

    @cached_property
    def config(self) -> Config:
        """params.yaml, checked."""
        return load_config(self.root / "params.yaml")

    @cached_property
    def plan(self) -> Plan:
        """plan.yaml, checked.

        Raises:
            PlanError: missing, damaged, or written by another version of synthgen.
        """
        plan = load_plan(self.plan_file)
        if plan.versions != VERSIONS:
            changed = [part for part in VERSIONS if plan.versions.get(part) != VERSIONS[part]]
            raise PlanError(
                f"{self.plan_file} was written for other versions of {', '.join(changed) or 'synthgen'}; run "
                f"`{PLAN_COMMAND}`, then `dvc repro`"
            )
        return plan

    @property
    def plan_file(self) -> Path:
        """plan.yaml (git-tracked)."""
        return self.root / "plan.yaml"

    @property
    def folds_file(self) -> Path:
        """folds.csv (git-tracked)."""
        return self.root / "folds.csv"

    @property
    def raw(self) -> Path:
        """The raw data as params.yaml names it."""
        return self.root / self.config.source.path

    @property
    def prepared(self) -> Path:
        """Output of `prepare`."""
        return self.root / "data" / "prepared"

    def fold_index(self, fold: str) -> Path:
        """Index folder of one fold inside the prepared data."""
        return self.prepared / "folds" / self.known_fold(fold)

    def shared_model(self, fold: str) -> Path:
        """Output of `pretrain@FOLD`."""
        return self.root / "models" / self.known_fold(fold) / "shared"

    def adapted_model(self, fold: str, slug: str) -> Path:
        """Output of `adapt@FOLD-SLUG`."""
        return self.root / "models" / self.known_fold(fold) / f"adapted-{self.known_slug(slug)}"

    def scratch_model(self, fold: str, slug: str) -> Path:
        """Output of `scratch@FOLD-SLUG`."""
        return self.root / "models" / self.known_fold(fold) / f"scratch-{self.known_slug(slug)}"

    def model_of(self, fold: str, slug: str) -> Path:
        """The GAN that makes the images of a class, as the plan says."""
        generator = self.plan.classes[self.known_slug(slug)].generator
        if generator == "shared":
            return self.shared_model(fold)
        return self.adapted_model(fold, slug) if generator == "adapted" else self.scratch_model(fold, slug)

    def synthetic(self, fold: str) -> Path:
        """Output of `synthesize@FOLD`."""
        return self.root / "data" / "synthetic" / self.known_fold(fold)

    @property
    def scratch(self) -> Path:
        """Unfinished work of killed stages (git-ignored, unknown to DVC)."""
        return self.root / ".synthgen" / "scratch"

    @property
    def augmented(self) -> Path:
        """Output of `assemble`."""
        return self.root / "data" / "augmented"

    def evaluation(self, arm: str) -> Path:
        """Output of `evaluate@ARM` (classical arms) or `challenge@ARM` (arms with synthetic images)."""
        kind = "challenge" if arm in self.config.challenge.arms else "evaluation"
        return self.root / "data" / kind / arm

    @property
    def search_result(self) -> Path:
        """Output of `search`."""
        return self.root / SEARCH_RESULT

    @property
    def metrics(self) -> Path:
        """Outputs of `compare` (git-tracked)."""
        return self.root / "metrics"

    @property
    def worth(self) -> Path:
        """Output of `worth` (git-tracked)."""
        return self.metrics / "worth.json"

    @property
    def reports(self) -> Path:
        """Output of `report`."""
        return self.root / "reports"

    def known_fold(self, fold: str) -> str:
        """`fold`, if the plan has it.

        Raises:
            PlanError: naming the folds there are.
        """
        if fold not in self.plan.folds:
            raise PlanError(f"fold {fold!r} is not in plan.yaml; it has {', '.join(self.plan.folds)}")
        return fold

    def known_slug(self, slug: str) -> str:
        """`slug`, if the plan has it.

        Raises:
            PlanError: naming the slugs there are.
        """
        if slug not in self.plan.classes:
            raise PlanError(f"class {slug!r} is not in plan.yaml; it has {', '.join(self.plan.slugs)}")
        return slug
