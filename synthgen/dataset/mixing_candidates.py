"""Which mixing policies a search tries, in one order: the default first, then what departs from it in one or two ways.

Owns the list and the names. The order is that of what goes first where the budget is small, so the last ones are left
out. Refuses to judge: `synthgen.metrics.policy_search` does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from synthgen.config import MEASURED_POLICY, MixingSection
from synthgen.dataset.mixing import MixingPolicy, build_policy
from synthgen.errors import ConfigError

NO_SYNTHETIC = "no synthetic images"
"""The candidate that leaves them all out; with spaces, so that no policy of a user can have its name."""
HIGHEST_SHARE = 0.75
"""Of a class in a variant: beyond it a scarce class would hardly be seen as it is."""
SHARE_FACTORS = (0.0, 0.5, 2.0)
"""What a variant makes of the share of one class."""

DEPARTURES: tuple[dict[str, Any], ...] = (
    {"pool": "morphed", "share": 0.5},
    {"pool": "morphed"},
    {"share": 0.5},
    {"share": 0.1},
    {"share": 0.25},
    {"transforms": "mild"},
    {"schedule": "reals_last"},
    {"loss_weight": 0.5},
    {"pool": "shared"},
    {"labels": "agreement"},
    {"schedule": "falling"},
    {"transforms": "classical"},
    {"classes": "scarce"},
    {"share": 0.5, "schedule": "reals_last"},
    {"share": 0.5, "loss_weight": 0.5},
    {"share": 0.5, "transforms": "mild"},
    {"blend": "mixup"},
    {"blend": "cutmix"},
)


@dataclass(frozen=True)
class Candidate:
    """One policy of a search.

    Attributes:
        name: that of a section of params.yaml, or what it changes in the default.
        policy: None: no synthetic images at all.
    """

    name: str
    policy: MixingPolicy | None


def list_candidates(
    policies: Mapping[str, MixingSection],
    named: Sequence[str],
    class_names: Sequence[str],
    scarce_labels: Sequence[int],
    *,
    has_shared: bool,
    has_morphs: bool = False,
) -> list[Candidate]:
    """The default, no synthetic images, the policies that a person named, then departures from the default.

    Args:
        policies: all there are, by name; the default is `synthetic`.
        named: `search.candidates`.
        class_names: in label order.
        scarce_labels: labels of the scarce classes.
        has_shared: whether there are samples of a shared GAN beside those of each class's own.
        has_morphs: whether there are morphs.
    Returns:
        candidates of different content, names unique; at least 2.
    Raises:
        ConfigError: `named` holds a policy that there is not, or a policy cannot be used (`build_policy`).
    """
    unknown = [name for name in named if name not in policies]
    if unknown:
        raise ConfigError(
            f"search.candidates: {unknown[0]!r} is no policy; there are {', '.join(sorted(policies))} "
            "(challenge.policies)"
        )
    default = policies[MEASURED_POLICY]
    sections = {MEASURED_POLICY: default, **{name: policies[name] for name in named}}
    for change in DEPARTURES:
        if (change.get("pool") == "shared" and not has_shared) or (change.get("pool") == "morphed" and not has_morphs):
            continue
        sections["+".join(f"{key}={value}" for key, value in change.items())] = default.model_copy(update=change)
    found = [
        Candidate(name, build_policy(name, section, class_names, scarce_labels)) for name, section in sections.items()
    ]
    found.insert(1, Candidate(NO_SYNTHETIC, None))
    return _without_doubles(found)


def share_variants(candidate: Candidate, slugs: Sequence[str], scarce_labels: Sequence[int]) -> list[Candidate]:
    """The same policy with none, half or twice the share of one scarce class, one class at a time.

    Args:
        candidate: what to depart from; without synthetic images it has no variants.
        slugs: in label order, for the names.
        scarce_labels: labels of the scarce classes.
    """
    policy = candidate.policy
    if policy is None:
        return []
    found = []
    for label in scarce_labels:
        for factor in SHARE_FACTORS:
            share = min(factor * policy.shares[label], HIGHEST_SHARE)
            shares = tuple(share if k == label else own for k, own in enumerate(policy.shares))
            if any(shares):
                name = f"{candidate.name}, {slugs[label]}={share:g}"
                found.append(Candidate(name, replace(policy, name=name, shares=shares)))
    return _without_doubles([candidate, *found])[1:]


def _without_doubles(candidates: Sequence[Candidate]) -> list[Candidate]:
    seen: set[MixingPolicy | None] = set()
    kept = []
    for candidate in candidates:
        content = None if candidate.policy is None else replace(candidate.policy, name="")
        if content not in seen:
            seen.add(content)
            kept.append(candidate)
    return kept
