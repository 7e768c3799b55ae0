"""`source.unlabelled` in `plan` and `prepare`: where the folder may lie, and who may ask for it.

Owns the checks of params.yaml and the scan of that folder. What may be used of it is `synthgen.dataset.unlabelled`'s.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from synthgen.classifier.arms import needs_unlabelled
from synthgen.config import Config
from synthgen.dataset.folder_sources import open_unlabelled
from synthgen.dataset.raw import QuarantineRow
from synthgen.dataset.scan import Scan, scan_source
from synthgen.dataset.unlabelled import FOLDER, Usable, find_usable, write_unlabelled
from synthgen.errors import ConfigError, SourceError
from synthgen.stages.raw_subfolder import check_raw_subfolder
from synthgen.stages.survey import Survey

MOSTLY = 0.5
"""Share of the folder from which on the user is told that links, not copies, took it."""

log = logging.getLogger(__name__)

NOISE_ARCHITECTURES = ("resnet", "dcgan", "style")
"""Those whose generator starts from latents and a label alone."""


def check_unlabelled(config: Config) -> None:
    """Looks at `source.unlabelled`, and at what asks for it, before anything is read.

    The folder has to lie inside `source.path`: dvc.yaml watches that one and no other.

    Raises:
        ConfigError: something needs unlabelled images and there are none; or the folder lies elsewhere, would be read
            as a class, or holds the masks or lies among them.
    """
    given = config.source.unlabelled
    asking = [
        f"{key}: {name}"
        for key, names in (("evaluate.arms", config.evaluate.arms), ("challenge.arms", config.challenge.arms))
        for name in names
        if needs_unlabelled(name.partition("+")[0])
    ]
    if config.pretrain.unlabelled:
        _check_pretrain(config)
        asking.append("pretrain.unlabelled: true")
    if given is None:
        if asking:
            raise ConfigError(
                f"{asking[0]} needs images without a label, and source.unlabelled is null; name a folder of them "
                f"inside source.path, such as {config.source.path}/.unlabelled, or remove it"
            )
        return
    folder = check_raw_subfolder(config.source, "source.unlabelled", given, ".unlabelled")
    masks = None if config.prepare.masks is None else PurePosixPath(config.prepare.masks)
    if masks is not None and (masks.is_relative_to(folder) or folder.is_relative_to(masks)):
        raise ConfigError(
            f"source.unlabelled {given!r} and prepare.masks {config.prepare.masks!r} overlap; give each a "
            "folder of its own"
        )


def _check_pretrain(config: Config) -> None:
    architecture = config.pretrain.network.architecture
    if architecture not in NOISE_ARCHITECTURES:
        raise ConfigError(
            f"pretrain.unlabelled: {architecture} starts from pictures of known classes, and nobody knows those of "
            f"unlabelled ones; use {', '.join(NOISE_ARCHITECTURES)}, or set pretrain.unlabelled: false"
        )
    if config.plan.strategy == "scratch":
        raise ConfigError(
            "pretrain.unlabelled: plan.strategy scratch trains no shared GAN that could see unlabelled images; use "
            "adapted or shared, or set pretrain.unlabelled: false"
        )


@dataclass(frozen=True)
class FoundUnlabelled:
    """The scanned folder, and which of its images may be used.

    Attributes:
        scan: every readable picture.
        usable: rows of `scan`, and those dropped.
        inside: the folder's path below `source.path`.
        warnings: what the user should know, one line each.
    """

    scan: Scan
    usable: Usable
    inside: PurePosixPath
    warnings: list[str] = field(default_factory=list)

    def quarantined(self, quarantine: list[QuarantineRow]) -> list[QuarantineRow]:
        """`quarantine` with what is not used of the folder, by names inside `source.path`; the folder leaves it."""
        kept = [row for row in quarantine if (row.source, row.reason) != (self.inside.parts[0], "hidden")]
        aside = [*self.scan.quarantine, *self.usable.dropped]
        return sorted([*kept, *(replace(row, source=(self.inside / row.source).as_posix()) for row in aside)])

    @property
    def digests(self) -> list[str]:
        """Pixel sha256 of the images that may be used, in their order."""
        return [self.scan.pixel_sha256[row] for row in self.usable.rows]

    def write(self, prepared: Path) -> dict[str, Any]:
        """Writes them below the prepared folder; what summary.json says."""
        return write_unlabelled(prepared / FOLDER, self.scan, self.usable)


def gather_unlabelled(config: Config, root: Path, survey: Survey, scratch: Path) -> FoundUnlabelled | None:
    """Reads the folder as labelled images are read, and drops what links to an object of one of those.

    Args:
        config: params.yaml.
        root: the project folder.
        survey: of the labelled images.
        scratch: folder for the scanned images; they stay readable while it exists.
    Returns:
        None where `source.unlabelled` is null.
    Raises:
        ConfigError: see `check_unlabelled`.
        SourceError: no folder, no image in it that can be used, or too many of them.
    """
    check_unlabelled(config)
    if config.source.unlabelled is None:
        return None
    folder = root / config.source.unlabelled
    try:
        # a class without an image is an error here: the folder has one class
        section = config.prepare.model_copy(update={"empty_class": "error"})
        scan = scan_source(open_unlabelled(folder), section, scratch / "unlabelled.npy")
    except SourceError as error:
        raise SourceError(f"source.unlabelled: {error}") from error
    usable = find_usable(survey.scan, scan, config.prepare.groups, survey.grouping_settings)
    linked = _warn_of_links(scan, usable, survey.grouping_settings)
    if not len(usable.rows):
        row = usable.dropped[0]
        more = f" {linked[0]}." if linked else ""
        raise SourceError(
            f"source.unlabelled: none of the {len(scan.sources)} images in {folder} can be used, first {row.source!a}: "
            f"{row.reason} ({row.detail}).{more} Bring pictures of objects that no labelled image shows, or set "
            "source.unlabelled: null"
        )
    warnings = [*linked, *usable.warnings]
    for warning in warnings:
        log.warning(warning)
    inside = PurePosixPath(config.source.unlabelled).relative_to(config.source.path)
    return FoundUnlabelled(scan, usable, inside, warnings)


def _warn_of_links(scan: Scan, usable: Usable, settings: Mapping[str, float | int | None]) -> list[str]:
    """A line where links dropped most of the folder: by chains, or because all of its pictures are alike by nature."""
    n_linked = sum(row.reason == "labelled_object" for row in usable.dropped)
    if n_linked <= MOSTLY * len(scan.sources):
        return []
    found = ", ".join(f"{key} {settings.get(key)}" for key in ("correlation", "id_gap"))
    return [
        f"source.unlabelled: {n_linked} of {len(scan.sources)} images are linked to labelled objects and not used "
        f"(found on the labelled images: {found}). Links are not cut here where they chain, so that no view of a test "
        "image stays; if those images really show other objects, set prepare.groups.correlation higher or to off, or "
        "prepare.groups.id_gap lower or to off, then run `synthgen plan`"
    ]
