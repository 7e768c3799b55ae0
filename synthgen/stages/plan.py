"""`synthgen plan`: which classes are scarce, what is made for them, and which fold tests which image.

Owns plan.yaml and folds.csv. A class is scarce if it has fewer pool images than `plan.scarce_below` times the
median over classes, or if the user lists it. Refuses to touch files whose content would not change.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from synthgen.artifacts import atomic_file
from synthgen.classifier.arms import classical_arm, split_arm
from synthgen.classifier.pretrained import build_network, load_weights
from synthgen.config import POLICIES, SEARCHED_POLICY, Config, MixingSection, PlanSection, read_yaml
from synthgen.dataset.folds import KnownImage, format_folds, read_folds
from synthgen.dataset.scarcity import nearest_name
from synthgen.errors import ConfigError, PlanError
from synthgen.records import (
    FINAL,
    NOTHING_SEARCHED,
    PLAN_COMMAND,
    SEARCH_RESULT,
    SEARCH_RUN,
    ClassPlan,
    Plan,
    load_plan,
    save_plan,
)
from synthgen.stages.dvc_params import check_params_complete
from synthgen.stages.survey import (
    Survey,
    count_groups,
    count_images,
    count_test_groups,
    scratch_folder,
    survey_source,
)
from synthgen.stages.translation import check_generator, check_sources
from synthgen.stages.unlabelled import check_unlabelled
from synthgen.stages.workspace import Workspace
from synthgen.versions import VERSIONS

PLAN_VERSION = 1


def run_plan(workspace: Workspace, *, reassign: bool = False) -> Plan:
    """Scans the raw data and writes plan.yaml and folds.csv; unchanged files keep their bytes and their time.

    Args:
        workspace: the project.
        reassign: forget folds.csv and draw all folds again.
    Returns:
        The plan as written.
    Raises:
        SynthgenError: see `survey_source`, `build_plan`, `check_generator`, `check_sources`, `check_weights`.
        PlanError: folds.csv is damaged or was drawn for another number of folds.
    """
    config = workspace.config
    check_arms(config)
    check_unlabelled(config)
    check_generator(config)
    check_params_complete(config, workspace.root)
    previous = {} if reassign else known_images(workspace)
    with scratch_folder(workspace.root) as scratch:
        survey = survey_source(config, workspace.root, previous, scratch)
        plan = with_search(build_plan(config.plan, survey), config)
        check_sources(config, plan)
        check_weights(config, workspace.root, len(plan.slugs))
        table = format_folds(survey.known)
    if not _is_written(workspace.plan_file, plan):
        save_plan(workspace.plan_file, plan)
    if not workspace.folds_file.exists() or workspace.folds_file.read_text(encoding="utf-8") != table:
        with atomic_file(workspace.folds_file) as temporary:
            temporary.write_text(table, encoding="utf-8")
    return plan


def check_arms(config: Config) -> None:
    """Looks at the arms before hours of training, not after.

    Raises:
        ConfigError: an arm that does not exist, or one that needs a GAN which the strategy does not train.
    """
    for name in config.evaluate.arms:
        classical_arm(name)
    # what is searched for is never a pool that there is not
    policies = {**POLICIES, **config.challenge.policies, SEARCHED_POLICY: MixingSection()}
    for name in config.challenge.arms:
        _, policy = split_arm(name, policies)
        if policies[policy].pool == "shared" and config.plan.strategy == "scratch":
            raise ConfigError(
                f"challenge.arms: {name} needs a shared GAN, which plan.strategy scratch has not; remove it"
            )
        if policies[policy].pool == "morphed" and config.synthesize.morphs is None:
            raise ConfigError(
                f"challenge.arms: {name} needs the pool morphed, which is made under synthesize.morphs; write "
                "`morphs: {}` there, or remove the arm"
            )
    unknown = [name for name in config.search.candidates if name not in policies]
    if config.challenge.searched_arms and unknown:
        raise ConfigError(
            f"search.candidates: {unknown[0]!r} is no policy; there are {', '.join(sorted(policies))} "
            "(challenge.policies)"
        )


def check_weights(config: Config, root: Path, n_classes: int) -> None:
    """Looks whether `classifier.weights` can be had and fit, before hours of training, not after.

    Raises:
        ConfigError: see `load_weights` and `build_network`.
    """
    if config.classifier.weights is None:
        return
    prepare, weights = config.prepare, load_weights(root, config.classifier)
    build_network(config.classifier, prepare.image_size, prepare.channels, n_classes, weights)


def with_search(plan: Plan, config: Config) -> Plan:
    """The plan with what is asked for beside the data: the stage `search`, and unlabelled images in `pretrain`."""
    wanted = bool(config.challenge.searched_arms)
    return plan.model_copy(
        update={
            "search_runs": [SEARCH_RUN] if wanted else [],
            "searched_policies": SEARCH_RESULT if wanted else NOTHING_SEARCHED,
            "unlabelled_in_pretrain": config.pretrain.unlabelled,
        }
    )


def check_scarce(plan: Plan) -> None:
    """Says before any training that there is no class to help.

    Raises:
        ConfigError: no class is scarce, by the rule or by the user's list.
    """
    if not plan.scarce_slugs:
        counts = ", ".join(f"{entry.class_name} {entry.images}" for entry in plan.classes.values())
        raise ConfigError(
            f"no class is scarce: every one has at least plan.scarce_below times the median of images ({counts}). Name "
            "the classes you care about in plan.scarce, or raise plan.scarce_below"
        )


def known_images(workspace: Workspace) -> dict[str, KnownImage]:
    """What folds.csv remembers, checked against the number of folds in params.yaml.

    Raises:
        PlanError: folds.csv is damaged, or was drawn for another number of folds than params.yaml has.
    """
    previous = read_folds(workspace.folds_file)
    if previous and workspace.plan_file.exists():
        n_drawn = _folds_drawn(workspace.plan_file)
        if n_drawn not in (None, workspace.config.plan.folds):
            raise PlanError(
                f"plan.folds is {workspace.config.plan.folds}, but folds.csv was drawn for {n_drawn} folds; set it "
                f"back, or draw all folds again with `{PLAN_COMMAND} --reassign` (results are then not comparable)"
            )
    return previous


def _folds_drawn(path: Path) -> int | None:
    """Number of parts in plan.yaml; None if it is damaged or of an older form, for it is about to be written again."""
    try:
        return load_plan(path).parts
    except (PlanError, ConfigError):
        return None


def _is_written(path: Path, plan: Plan) -> bool:
    try:
        # compared as written: dvc.yaml knows none of the defaults that load_plan fills in
        return path.exists() and bool(read_yaml(path) == plan.model_dump(mode="json"))
    except (PlanError, ConfigError):
        return False


def build_plan(section: PlanSection, survey: Survey) -> Plan:
    """The plan for what the survey found.

    Args:
        section: params.yaml, `plan`.
        survey: scanned and grouped images.
    Raises:
        ConfigError: `section.scarce` names a class that does not exist.
    """
    images = count_images(survey).get("pool", Counter())
    groups = count_groups(survey).get("pool", Counter())
    counts = {name: images[name] for name in survey.class_names}
    scarce = choose_scarce(section, counts)
    least = _least_training_images(section.folds, count_measured(section, frozen=survey.frozen), survey)
    served = [name for name in survey.class_names if least[name] >= section.min_train_images]
    target = target_count(section, {name: counts[name] for name in served}, scarce)
    classes = {}
    for label, name in enumerate(survey.class_names):
        classes[survey.slugs[name]] = ClassPlan(
            class_name=name,
            label=label,
            images=counts[name],
            groups=groups[name],
            scarce=name in scarce,
            target=target if name in served else 0,
            generator=_generator(section, own=name in scarce and name in served),
        )
    folds = [f"f{j}" for j in range(count_measured(section, frozen=survey.frozen))] + [FINAL]
    scratch = section.strategy == "scratch"
    served_slugs = [slug for slug, entry in classes.items() if entry.target > 0]
    return Plan(
        version=PLAN_VERSION,
        mode="frozen" if survey.frozen else "folds",
        strategy=section.strategy,
        folds=folds,
        parts=section.folds,
        pretrain_folds=[] if scratch else folds,
        scarce_slugs=[slug for slug, entry in classes.items() if entry.scarce],
        adapt_slugs=[slug for slug, entry in classes.items() if entry.generator == "adapted"],
        scratch_slugs=served_slugs if scratch else [],
        targets={slug: entry.target for slug, entry in classes.items()},
        class_names={slug: entry.class_name for slug, entry in classes.items()},
        versions=dict(VERSIONS),
        test_groups={survey.slugs[name]: n_groups for name, n_groups in count_test_groups(survey).items()},
        classes=classes,
    )


def count_measured(section: PlanSection, *, frozen: bool) -> int:
    """Number of measured folds: `folds`, or `generator_seeds` where the user has a test set.

    Raises:
        ConfigError: generator seeds without a test set, or more of them than folds.
    """
    if section.generator_seeds is None:
        return section.folds
    if not frozen:
        raise ConfigError(
            f"plan.generator_seeds is {section.generator_seeds}, but the data have no test side of their own: every "
            "fold is tested on another part and needs its own generator; remove generator_seeds"
        )
    if section.generator_seeds > section.folds:
        raise ConfigError(
            f"plan.generator_seeds is {section.generator_seeds}, over plan.folds = {section.folds}; raise plan.folds"
        )
    return section.generator_seeds


def _generator(section: PlanSection, *, own: bool) -> Literal["adapted", "shared", "scratch"]:
    if section.strategy == "adapted":
        return "adapted" if own else "shared"
    return section.strategy


def choose_scarce(section: PlanSection, counts: Mapping[str, int]) -> list[str]:
    """Names of the scarce classes, in the order of `counts`.

    The user's list if there is one, else the classes with fewer images than `scarce_below` times the median class.

    Raises:
        ConfigError: the list names a class that does not exist; names the nearest one.
    """
    if section.scarce is None:
        limit = section.scarce_below * float(np.median(list(counts.values())))
        return [name for name, count in counts.items() if count < limit]
    for name in section.scarce:
        if name not in counts:
            raise ConfigError(f"plan.scarce: class {name!r} does not exist{nearest_name(name, list(counts))}")
    return [name for name in counts if name in section.scarce]


def target_count(section: PlanSection, counts: Mapping[str, int], scarce: list[str]) -> int:
    """How many synthetic images each class gets: one number for all, so that origin cannot tell the label.

    `median`: the largest deficit of a scarce class against the median of the plentiful ones, and at least the
    number of real images in the smallest class, so that there is something to measure where nothing is scarce.

    Args:
        section: params.yaml, `plan`.
        counts: class name -> pool images, of the classes that get synthetic images.
        scarce: names of the scarce classes.
    """
    if not counts:
        return 0
    if section.target != "median":
        return section.target
    plentiful = [count for name, count in counts.items() if name not in scarce]
    level = int(np.median(plentiful if plentiful else list(counts.values())))
    deficits = [level - count for name, count in counts.items() if name in scarce]
    return max([min(counts.values()), *deficits])


def _least_training_images(n_folds: int, n_measured: int, survey: Survey) -> dict[str, int]:
    """Class name -> training images in the measured fold that has the fewest."""
    by_fold: dict[str, Counter[int]] = defaultdict(Counter)
    for name, role, fold in zip(survey.column(survey.scan.class_names), survey.roles, survey.folds, strict=True):
        if role == "pool":
            by_fold[name][int(fold)] += 1
    own_val = "val" in survey.roles
    least = {}
    for name in survey.class_names:
        counts = by_fold[name]
        held_out = [
            (0 if own_val else counts[j]) if survey.frozen else counts[j] + counts[(j + 1) % n_folds]
            for j in range(n_measured)
        ]
        least[name] = sum(counts.values()) - max(held_out)
    return least
