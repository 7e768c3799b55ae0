"""Simulated experiments with a known true gain, for measuring how often the verdicts err.

Logits of K classes are drawn so that folds share training data as the product's folds do: fold j
trains on all parts but j and j + 1, and each part moves the arm's skill by an effect of its own.
Every image has a difficulty that all arms share, each arm and repeat adds noise of its own.
"""

from dataclasses import dataclass

import numpy as np

from synthgen.metrics.experiment import Experiment
from synthgen.metrics.outcomes import ArmFold, measure_arm


@dataclass(frozen=True)
class Scenario:
    """One kind of experiment.

    Attributes:
        gain: added to the challenger's margin on scarce classes, in logits: 0 is the null.
        shift: added to the challenger's logits of the scarce classes on every image: a mere shift of bias.
        shared: spread of skill that comes from training data shared by folds, against 1 for an image's own noise.
        n_test: test images of a scarce class in a fold; a plentiful class has `n_plenty`.
        n_val: validation images of a scarce class in a fold.
        images_per_group: images of one object.
    """

    gain: float = 0.0
    shift: float = 0.0
    shared: float = 0.0
    n_folds: int = 5
    n_repeats: int = 2
    n_scarce: int = 2
    n_plentiful: int = 2
    n_test: int = 6
    n_plenty: int = 30
    n_val: int = 6
    images_per_group: int = 1
    frozen: bool = False


def _skills(scenario: Scenario, generator: np.random.Generator) -> np.ndarray:
    """(arms, J, K) skill that training data give: folds that share parts share effects."""
    n_folds, n_classes = scenario.n_folds, scenario.n_scarce + scenario.n_plentiful
    parts = generator.standard_normal((3, n_folds, n_classes))
    skills = np.empty_like(parts)
    for j in range(n_folds):
        used = [k for k in range(n_folds) if k not in (j, (j + 1) % n_folds)]
        skills[:, j] = parts[:, used].sum(axis=1) / np.sqrt(max(len(used), 1))
    return scenario.shared * skills


def _logits(labels, groups, skill, difficulty, generator, scenario, challenger):
    n_classes = scenario.n_scarce + scenario.n_plentiful
    scarce = np.arange(n_classes) < scenario.n_scarce
    base = np.where(scarce, 1.0, 2.5)[labels] + skill[labels] + difficulty
    if challenger:
        base = base + scenario.gain * scarce[labels]
    logits = 0.7 * generator.standard_normal((scenario.n_repeats, len(labels), n_classes))
    logits[:, np.arange(len(labels)), labels] += base
    logits[:, :, ~scarce] += 0.5  # plentiful classes are favoured, as without balancing
    if challenger:
        logits[:, :, scarce] += scenario.shift
    return logits


def _rows(scenario: Scenario, n_scarce: int, n_plenty: int, name: str):
    n_classes = scenario.n_scarce + scenario.n_plentiful
    counts = [n_scarce if label < scenario.n_scarce else n_plenty for label in range(n_classes)]
    labels = np.repeat(np.arange(n_classes), counts)
    groups = np.concatenate(
        [[f"{name}-{label}-{i // scenario.images_per_group}" for i in range(n)] for label, n in enumerate(counts)]
    )
    return labels, groups


def simulate(scenario: Scenario, generator: np.random.Generator) -> Experiment:
    """One experiment: two classical arms (baseline alternates between them by fold) and a challenger."""
    skills = _skills(scenario, generator)
    arms: dict[str, list[ArmFold]] = {"classical": [], "balanced": [], "best+synthetic": []}
    all_labels, all_groups, chosen = [], [], []
    one_test = None
    for j in range(scenario.n_folds):
        if one_test is None or not scenario.frozen:
            labels, groups = _rows(scenario, scenario.n_test, scenario.n_plenty, f"t{0 if scenario.frozen else j}")
            _, index = np.unique(groups, return_inverse=True)
            difficulty = generator.standard_normal(index.max() + 1)[index]
            one_test = (labels, groups, difficulty)
        labels, groups, difficulty = one_test
        val_labels, val_groups = _rows(
            scenario,
            scenario.n_val,
            scenario.n_plenty,
            f"t{(j + 1) % scenario.n_folds}" if not scenario.frozen else f"v{j}",
        )
        _, val_index = np.unique(val_groups, return_inverse=True)
        val_difficulty = generator.standard_normal(val_index.max() + 1)[val_index]
        for a, arm in enumerate(arms):
            challenger = arm == "best+synthetic"
            skill = skills[a, j]
            arms[arm].append(
                ArmFold(
                    labels,
                    groups,
                    _logits(labels, groups, skill, difficulty, generator, scenario, challenger),
                    val_labels,
                    val_groups,
                    _logits(val_labels, val_groups, skill, val_difficulty, generator, scenario, challenger),
                )
            )
        chosen.append("classical" if j % 2 == 0 else "balanced")
        all_labels.append(labels)
        all_groups.append(groups)
    n_classes = scenario.n_scarce + scenario.n_plentiful
    per_fold = np.asarray([len(np.unique(all_groups[0][all_labels[0] == k])) for k in range(n_classes)], dtype=float)
    return Experiment(
        mode="frozen" if scenario.frozen else "folds",
        folds=[f"f{j}" for j in range(scenario.n_folds)],
        labels=all_labels,
        groups=all_groups,
        n_classes=n_classes,
        scarce=list(range(scenario.n_scarce)),
        train_groups=per_fold * max(scenario.n_folds - 2, 1),
        outcomes={arm: measure_arm(folds, ranking=False) for arm, folds in arms.items()},
        classical=["classical", "balanced"],
        chosen=chosen,
        challenger="best+synthetic",
    )


def null_differences(
    generator: np.random.Generator, n_experiments: int, n_folds: int, n_test: int, discordant: float, shared: float
) -> np.ndarray:
    """Paired differences of test images under a true gain of 0, without logits.

    Args:
        discordant: share of images that one arm gets right and the other wrong.
        shared: part of a fold's variance, below 1, that comes from its training data; folds that train on the
            same parts share it.
    Returns:
        (N, J, n) float64 in {-1, 0, 1}.
    """
    parts = generator.standard_normal((n_experiments, n_folds))
    used = np.asarray([[k not in (j, (j + 1) % n_folds) for k in range(n_folds)] for j in range(n_folds)])
    effect = parts @ used.T / np.sqrt(n_folds - 2)
    effect *= np.sqrt(discordant / n_test * shared / (1 - shared))
    won = (discordant + np.clip(effect, -discordant, discordant))[..., None] / 2
    draw = generator.random((n_experiments, n_folds, n_test))
    return np.where(draw < won, 1.0, np.where(draw < discordant, -1.0, 0.0))
