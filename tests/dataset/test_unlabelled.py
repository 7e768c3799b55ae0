"""Unlabelled images: what links to an object of a labelled image is never used, whatever its light or encoding."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from synthgen.config import GroupsSection
from synthgen.dataset import unlabelled as unlabelled_module
from synthgen.dataset.groups import find_groups
from synthgen.dataset.likeness import Subset
from synthgen.dataset.prepared import pixel_sha256
from synthgen.dataset.raw import QuarantineRow
from synthgen.dataset.scan import Scan
from synthgen.dataset.unlabelled import Joined, find_usable, load_unlabelled, write_unlabelled
from synthgen.errors import ArtifactError, SourceError

SIDE = 32
SHARED = 0.65
"""Of the variance of two views of one object."""
NOTHING_FOUND: dict[str, float | int | None] = {"id_gap": None, "correlation": None}


def photograph(seed: int, sigma: float = 2.0) -> np.ndarray:
    smooth = gaussian_filter(np.random.default_rng(seed).standard_normal((SIDE, SIDE)), sigma)
    return (128 + 40 * smooth / smooth.std()).clip(0, 255).astype(np.uint8)[..., None]


def scan_of(pictures: dict[str, np.ndarray], class_name: str = "(unlabelled)") -> Scan:
    names = sorted(pictures)
    images = np.stack([pictures[name] for name in names])
    digests = [pixel_sha256(image) for image in images]
    return Scan(
        images,
        [class_name],
        sources=names,
        class_names=[class_name] * len(names),
        splits=[None] * len(names),
        user_groups=[None] * len(names),
        file_sha256=[f"file of {name}" for name in names],
        pixel_sha256=digests,
        widths=[SIDE] * len(names),
        heights=[SIDE] * len(names),
        modes=["L"] * len(names),
    )


LABELLED = {f"a/l{i:02d}.png": photograph(i) for i in range(24)}
FREE = {f"u{i:02d}.png": photograph(1000 + i) for i in range(8)}


def usable_of(pictures: dict[str, np.ndarray], **changed: object) -> tuple[list[str], dict[str, QuarantineRow]]:
    found_settings = {**NOTHING_FOUND, **{key: changed.pop(key) for key in ("id_gap", "correlation") if key in changed}}
    scan = scan_of(pictures)
    found = find_usable(scan_of(LABELLED, "a"), scan, GroupsSection(**changed), found_settings)  # type: ignore[arg-type]
    return sorted(scan.sources[row] for row in found.rows), {row.source: row for row in found.dropped}


def jpeg(image: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image[..., 0]).save(stream, "JPEG", quality=80)
    return np.asarray(Image.open(io.BytesIO(stream.getvalue())))[..., None]


COPIES = {
    "the same pixels": lambda image: image,
    "encoded again": jpeg,
    "noise": lambda image: (image + np.random.default_rng(0).normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8),
    "other light": lambda image: (0.8 * image + 20).clip(0, 255).astype(np.uint8),
    "moved by a pixel": lambda image: np.roll(image, 1, axis=1),
}


@pytest.mark.parametrize("what", list(COPIES))
def test_a_copy_of_any_labelled_image_is_dropped_and_others_are_kept(what: str) -> None:
    for name in ("a/l03.png", "a/l17.png"):
        kept, dropped = usable_of({**FREE, "planted.png": COPIES[what](LABELLED[name])})
        assert kept == sorted(FREE)
        assert list(dropped) == ["planted.png"]
        assert dropped["planted.png"].reason == "labelled_copy" and name in dropped["planted.png"].detail


@pytest.mark.parametrize("what", list(COPIES))
def test_of_copies_among_the_unlabelled_one_is_kept(what: str) -> None:
    kept, dropped = usable_of({**FREE, "again.png": COPIES[what](FREE["u03.png"])})
    assert len(kept) == len(FREE) and len(set(kept) & {"again.png", "u03.png"}) == 1
    assert [row.reason for row in dropped.values()] == ["unlabelled_copy"]


def test_an_equal_file_is_dropped_though_its_pixels_are_not_equal() -> None:
    # as where one decoder setting changed between two scans: the file is the object
    labelled, scan = scan_of(LABELLED, "a"), scan_of(FREE)
    scan.file_sha256[2] = labelled.file_sha256[5]
    found = find_usable(labelled, scan, GroupsSection(), NOTHING_FOUND)
    assert found.dropped == [QuarantineRow("u02.png", "labelled_copy", "equals a/l05.png")]


def test_names_by_the_users_pattern_tell_an_object() -> None:
    pictures = {"l07_again.png": photograph(77), "l99_new.png": photograph(78)}
    kept, dropped = usable_of(pictures, id_pattern=r"^l(\d+)")
    assert kept == ["l99_new.png"]
    assert dropped["l07_again.png"] == QuarantineRow(
        "l07_again.png", "labelled_object", "shows the object of a/l07.png"
    )
    assert usable_of(pictures)[0] == sorted(pictures)


@pytest.mark.parametrize(("setting", "found", "kept"), [(2, None, 1), ("auto", 2, 1), ("auto", None, 3), ("off", 2, 3)])
def test_numbers_in_a_run_tell_an_object(setting: int | str, found: int | None, kept: int) -> None:
    # labelled are numbered 0 to 23: 25 follows, 27 follows 25, 40 does not
    pictures = {f"{number}.png": photograph(200 + number) for number in (25, 27, 40)}
    changed = {"id_gap": found}
    scan = scan_of(pictures)
    section = GroupsSection(id_gap=setting)  # type: ignore[arg-type]
    usable = find_usable(scan_of(LABELLED, "a"), scan, section, {**NOTHING_FOUND, **changed})
    assert len(usable.rows) == kept
    assert {row.reason for row in usable.dropped} <= {"labelled_object"}


def test_numbers_that_were_counted_anew_mean_nothing_under_auto() -> None:
    pictures = {f"{number}.png": photograph(300 + number) for number in range(24)}
    scan = scan_of(pictures)
    usable = find_usable(scan_of(LABELLED, "a"), scan, GroupsSection(), {**NOTHING_FOUND, "id_gap": 2})
    assert len(usable.rows) == 24
    assert len(usable.warnings) == 1
    assert "file numbers within 2 mean one object" in usable.warnings[0]
    assert "prepare.groups.id_gap" in usable.warnings[0]


@pytest.mark.parametrize(("setting", "found"), [("auto", None), ("off", 2), (2, 2)])
def test_nothing_is_said_of_numbers_that_were_not_found_to_mean_anything(setting: int | str, found: int | None) -> None:
    scan = scan_of({f"{number}.png": photograph(300 + number) for number in range(100, 124)})
    section = GroupsSection(id_gap=setting)  # type: ignore[arg-type]
    assert find_usable(scan_of(LABELLED, "a"), scan, section, {**NOTHING_FOUND, "id_gap": found}).warnings == []
    assert find_usable(scan_of(LABELLED, "a"), scan, GroupsSection(), {**NOTHING_FOUND, "id_gap": 2}).warnings == []


def test_groups_of_the_user_link_no_unlabelled_image_and_a_warning_says_so() -> None:
    labelled = scan_of(LABELLED, "a")
    labelled.user_groups[3:5] = ["tile", "tile"]
    found = find_usable(labelled, scan_of(FREE), GroupsSection(), NOTHING_FOUND)
    assert len(found.rows) == len(FREE)
    assert [warning.partition(" have ")[0] for warning in found.warnings] == ["source.unlabelled: 2 labelled images"]


def test_detail_in_other_light_tells_an_object_and_a_chain_of_views_is_dropped_whole() -> None:
    # views of one tile: fine detail is the tile's, broad shading the lamp's; neighbours share more than ends do
    detail = [photograph(500 + i, 0.7).astype(float) - 128 for i in range(3)]
    near = 0.8 * detail[0] + 0.6 * detail[1]
    far = 0.8 * near + 0.6 * detail[2]
    shading = [3.0 * (photograph(600 + i, 8.0).astype(float) - 128) for i in range(3)]
    view, middle, end = (
        (128 + 0.3 * fine + 0.3 * broad).clip(0, 255).astype(np.uint8)
        for fine, broad in zip((detail[0], near, far), shading, strict=True)
    )
    labelled = scan_of({**LABELLED, "a/tile.png": view}, "a")
    scan = scan_of({**FREE, "middle.png": middle, "end.png": end})
    found = find_usable(labelled, scan, GroupsSection(), {**NOTHING_FOUND, "correlation": 0.65})
    assert {(row.source, row.reason, row.detail) for row in found.dropped} == {
        (name, "labelled_object", "shows the object of a/tile.png") for name in ("middle.png", "end.png")
    }
    # without the one between them the end is not known to be of this tile
    alone = find_usable(
        labelled, scan_of({**FREE, "end.png": end}), GroupsSection(), {**NOTHING_FOUND, "correlation": 0.65}
    )
    assert alone.dropped == []


def test_near_numbers_tell_an_object_where_the_likeness_alone_does_not() -> None:
    """Views k, k+1, k+2 of an object are labelled, k+5 is not: too far for the run, too faint for the correlation."""
    rng = np.random.default_rng(0)

    def texture() -> np.ndarray:
        smooth = gaussian_filter(rng.standard_normal((SIDE, SIDE)), 1.0)
        return smooth / smooth.std()

    def view(base: np.ndarray) -> np.ndarray:
        mixed = SHARED**0.5 * base + (1 - SHARED) ** 0.5 * texture()
        return (128 + 40 * mixed).clip(0, 255).astype(np.uint8)[..., None]

    bases = [texture() for _ in range(40)]
    views = {f"a/{60 * k + i:05d}.png": view(base) for k, base in enumerate(bases) for i in (0, 1, 2)}
    siblings = {f"{60 * k + 5:05d}.png": view(base) for k, base in enumerate(bases)}
    near_but_other = {f"{60 * k + 7:05d}.png": view(texture()) for k in range(40)}
    far = {f"{60 * k + 35:05d}.png": view(base) for k, base in enumerate(bases)}
    labelled = scan_of(views, "a")
    groups = find_groups(
        labelled.images,
        class_names=labelled.class_names,
        sources=labelled.sources,
        pixel_sha256=labelled.pixel_sha256,
        user_groups=labelled.user_groups,
        section=GroupsSection(),
    )
    assert groups.settings["id_gap"] == 1
    scan = scan_of({**siblings, **near_but_other, **far})
    found = find_usable(labelled, scan, GroupsSection(), groups.settings)
    kept = {scan.sources[row] for row in found.rows}
    assert kept == near_but_other.keys() | far.keys()
    assert {(row.reason, row.source[:5]) for row in found.dropped} == {
        ("labelled_object", name[:5]) for name in siblings
    }
    # as with a gap that the user names, and not where numbers mean nothing
    fixed = find_usable(labelled, scan, GroupsSection(id_gap=1), groups.settings)
    assert np.array_equal(fixed.rows, found.rows)
    assert len(find_usable(labelled, scan, GroupsSection(id_gap="off"), groups.settings).rows) == len(scan.sources)


@given(st.permutations(sorted(FREE)), st.integers(0, 7))
@settings(max_examples=15, deadline=None)
def test_names_and_their_order_decide_nothing(order: list[str], planted: int) -> None:
    renamed = {f"{k}.png": FREE[name] for k, name in enumerate(order)}
    renamed[f"z{planted}.png"] = LABELLED[f"a/l{planted:02d}.png"]
    scan = scan_of(renamed)
    found = find_usable(scan_of(LABELLED, "a"), scan, GroupsSection(), NOTHING_FOUND)
    digests = [scan.pixel_sha256[row] for row in found.rows]
    assert digests == sorted(pixel_sha256(image) for image in FREE.values())


def test_more_images_than_are_compared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlabelled_module, "MAX_SWEPT", 30)
    with pytest.raises(SourceError, match=r"8 different images beside 24 labelled.*over the 30.*leave at most 6"):
        usable_of(FREE)
    assert len(usable_of(dict(list(FREE.items())[:6]))[0]) == 6


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_joined_images_read_as_one_array(data: st.DataObject) -> None:
    first, second = np.arange(5 * 4).reshape(5, 2, 2, 1), 100 + np.arange(4 * 4).reshape(4, 2, 2, 1)
    joined = Joined(first.astype(np.uint8), Subset(second.astype(np.uint8), np.array([3, 1, 0])))
    oracle = np.concatenate([first, second[[3, 1, 0]]]).astype(np.uint8)
    assert joined.shape == oracle.shape and len(joined) == 8
    rows = np.array(data.draw(st.lists(st.integers(0, 7), max_size=12)), dtype=np.int64)
    assert np.array_equal(joined[rows], oracle[rows])
    a, b = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))
    assert np.array_equal(joined[a:b], oracle[a:b])


def written(folder: Path) -> Path:
    scan = scan_of(FREE)
    scan.quarantine.append(QuarantineRow("bad.png", "not_image", "text"))
    found = find_usable(scan_of(LABELLED, "a"), scan, GroupsSection(), NOTHING_FOUND)
    found = replace(found, dropped=[QuarantineRow("x.png", "labelled_copy", "equals y")])
    said = write_unlabelled(folder / "unlabelled", scan, found)
    assert (said["n_images"], said["n_dropped"]) == (8, {"labelled_copy": 1, "not_image": 1})
    return folder


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    assert load_unlabelled(tmp_path) is None
    found = load_unlabelled(written(tmp_path))
    assert found is not None
    by_digest = {pixel_sha256(image): image for image in FREE.values()}
    assert found.sha256.tolist() == sorted(by_digest)
    for digest, image in zip(found.sha256, found.verified(), strict=True):
        assert np.array_equal(image, by_digest[digest])


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "manifest"])
def test_altered_files_are_refused(tmp_path: Path, damage: str) -> None:
    folder = written(tmp_path) / "unlabelled"
    images = folder / "images.npy"
    content = bytearray(images.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        images.write_bytes(content)
    elif damage == "cut":
        images.write_bytes(content[:-10])
    elif damage == "gone":
        images.unlink()
    else:
        (folder / "manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match=r"unlabelled.*dvc"):
        found = load_unlabelled(tmp_path)
        assert found is not None
        found.verified()
