"""Masks: the user's keep the geometry of the prepared images, weak ones find planted changes and admit finding none."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from synthgen.config import PrepareSection
from synthgen.dataset.decode import prepare_pixels
from synthgen.dataset.masks import WeakMaskRules, _principal_components, read_masks, weak_masks
from synthgen.dataset.raw import RawContent
from synthgen.errors import SourceError, TrainingError

REPOSITORY = Path(__file__).parents[2]
SECTION = PrepareSection(image_size=32, channels=1)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def test_masks_lie_where_prepared_pictures_show_the_region(tmp_path):
    for name, (width, height) in {"wide": (200, 90), "tall": (70, 301), "small": (16, 20), "same": (32, 32)}.items():
        picture = np.zeros((height, width), np.uint8)
        picture[height // 4 : height // 2, width // 2 : width - width // 4] = 255
        save(tmp_path / "masks" / "hole" / f"{name}.png", picture)
        encoded = io.BytesIO()
        Image.fromarray(picture).save(encoded, "PNG")
        prepared, *size, _ = prepare_pixels(RawContent(encoded.getvalue(), ""), SECTION)
        (mask,) = read_masks(tmp_path / "masks", [f"hole/{name}.jpg"], [tuple(size)], SECTION, min_share=0.5)
        bright = prepared[..., 0] > 127
        assert (mask.pixels != bright).mean() < 0.02, name
        assert mask.n_components == 1 and mask.area == pytest.approx(mask.pixels.mean())


def test_masks_are_found_by_path_then_by_bare_name_and_may_be_missing(tmp_path):
    full, empty = np.full((8, 8), 255, np.uint8), np.zeros((8, 8), np.uint8)
    save(tmp_path / "a" / "one.png", full)
    save(tmp_path / "two.png", full)
    save(tmp_path / "none.png", empty)
    masks = read_masks(tmp_path, ["a/one.jpeg", "b/two.jpg", "b/three.jpg", "b/none.jpg"], [(8, 8)] * 4, SECTION)
    assert [mask is not None for mask in masks] == [True, True, False, False]
    with pytest.raises(SourceError, match=r"no mask for any of 1 .* c/four\.png"):
        read_masks(tmp_path, ["c/four.jpg"], [(8, 8)], SECTION)
    assert read_masks(tmp_path, [], [], SECTION) == []


def test_a_line_thinner_than_a_prepared_pixel_survives(tmp_path):
    line = np.zeros((640, 640), np.uint8)
    line[:, 333] = 255
    save(tmp_path / "x.png", line)
    (mask,) = read_masks(tmp_path, ["x.jpg"], [(640, 640)], SECTION)
    assert np.array_equal(np.flatnonzero(mask.pixels.any(axis=0)), [16]) and mask.pixels[:, 16].all()


@pytest.mark.parametrize(
    "mode, inside", [("1", True), ("L", 255), ("P", 3), ("RGB", (255, 255, 255)), ("I;16", 65535), ("LA", (255, 255))]
)
def test_every_layout_of_a_mask_is_understood(tmp_path, mode, inside):
    picture = Image.new(mode, (32, 32))
    if mode == "P":
        picture.putpalette([0, 0, 0, 9, 9, 9, 20, 20, 20, 30, 30, 30])
    picture.paste(inside, (4, 5, 12, 15)) if mode != "I;16" else [
        picture.putpixel((x, y), inside) for x in range(4, 12) for y in range(5, 15)
    ]
    picture.save(tmp_path / "x.png")
    (mask,) = read_masks(tmp_path, ["x.jpg"], [(32, 32)], SECTION)
    expected = np.zeros((32, 32), bool)
    expected[5:15, 4:12] = True
    assert np.array_equal(mask.pixels, expected)


def test_wrong_masks_are_refused_by_name(tmp_path):
    save(tmp_path / "size.png", np.zeros((8, 9), np.uint8))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "jpeg.png").write_bytes(b"")
    (tmp_path / "link.png").symlink_to(tmp_path / "size.png")
    os.mkfifo(tmp_path / "pipe.png")
    save(tmp_path / "big.png", np.zeros((40, 40), np.uint8))
    small = SECTION.model_copy(update={"max_pixels": 1000})
    for name, text in {
        "size": r"9 x 8, its picture 8 x 8",
        "text": "cannot be read",
        "jpeg": "text|empty|read|used",
        "link": "symlink",
        "pipe": "not_regular",
        "big": "over prepare.max_pixels 1000",
    }.items():
        with pytest.raises(SourceError, match=text):
            read_masks(tmp_path, [f"{name}.jpg"], [(8, 8)], small)
    with pytest.raises(SourceError, match="leaves the mask folder"):
        read_masks(tmp_path, ["../size.jpg"], [(8, 8)], SECTION)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_damaged_masks_are_refused_and_nothing_else_happens(tmp_path_factory, noise, at):
    folder = tmp_path_factory.mktemp("masks")
    save(folder / "x.png", np.eye(8, dtype=np.uint8) * 255)
    good = (folder / "x.png").read_bytes()
    (folder / "x.png").write_bytes(good[:at] + noise + good[at + len(noise) :])
    try:
        (mask,) = read_masks(folder, ["x.jpg"], [(8, 8)], SECTION)
    except SourceError:
        return
    assert mask is None or mask.pixels.any()


def textures(n, side, rng, channels=1):
    """Smooth random shading with streaks and grain: what a plentiful class looks like."""
    shading = gaussian_filter(rng.standard_normal((n, side, side)), (0, side / 4, side / 4)) * side * 4
    streaks = gaussian_filter(rng.standard_normal((n, 1, side)), (0, 0, 1)) * 8
    x = 120 + shading + streaks + rng.standard_normal((n, side, side)) * 3
    return np.repeat(x.clip(0, 255).astype(np.uint8)[..., None], channels, axis=3)


@pytest.mark.parametrize("side, channels", [(28, 1), (64, 1), (32, 3)])
def test_planted_spots_are_found_and_good_images_give_few(side, channels):
    rng = np.random.default_rng(0)
    plentiful, images, good = (textures(n, side, rng, channels) for n in (120, 30, 60))
    truth = np.zeros((30, side, side), bool)
    for mask in truth:
        top, left = rng.integers(2, side - 6, 2)
        mask[top : top + side // 10 + 1, left : left + side // 10 + 1] = True
    images[truth] -= np.minimum(images[truth], 50)
    found = weak_masks(images, plentiful, np.random.default_rng(1))
    pairs = zip(found, truth, strict=True)
    hits = [mask is not None and (mask.pixels & one).sum() >= 0.5 * one.sum() for mask, one in pairs]
    assert np.mean(hits) >= 0.9
    assert np.mean([mask.area for mask in found if mask is not None]) < 0.2
    assert all(mask.strength > 1.0 and 1 <= mask.n_components <= 3 for mask in found if mask is not None)
    # one in five is what the quantile asks for; the sampling error of 60 and 60 images is 10 points
    assert np.mean([mask is not None for mask in weak_masks(good, plentiful, np.random.default_rng(1))]) <= 0.5


def test_equal_seeds_give_equal_masks_and_a_find_too_large_is_none():
    rng = np.random.default_rng(0)
    plentiful, images = textures(40, 28, rng), textures(4, 28, rng)
    images[:, 8:14, 8:14] = 0
    first, second = (weak_masks(images, plentiful, np.random.default_rng(3)) for _ in range(2))
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, second, strict=True))
    assert weak_masks(images, plentiful, np.random.default_rng(3), WeakMaskRules(max_area=0.001)) == [None] * 4


def test_flat_images_have_no_region():
    flat = np.full((20, 16, 16, 1), 90, np.uint8)
    assert weak_masks(flat[:3], flat, np.random.default_rng(0)) == [None] * 3
    assert weak_masks(flat[:0], flat, np.random.default_rng(0)) == []


def test_too_few_or_unequal_plentiful_images_are_refused():
    flat = np.full((20, 16, 16, 1), 90, np.uint8)
    with pytest.raises(TrainingError, match="15 plentiful images, at least 16"):
        weak_masks(flat, flat[:15], np.random.default_rng(0))
    with pytest.raises(TrainingError, match="one size"):
        weak_masks(flat[:, :8, :8], flat, np.random.default_rng(0))


def test_principal_components_agree_with_scikit_learn():
    from sklearn.decomposition import PCA

    x = np.random.default_rng(0).standard_normal((30, 80)).astype(np.float32) * np.linspace(
        3, 0.1, 80, dtype=np.float32
    )
    basis, mean = _principal_components(x, 5)
    reference = PCA(5, svd_solver="full").fit(x)
    assert np.allclose(mean, x.mean(axis=0))
    assert np.allclose(basis @ basis.T, np.eye(5), atol=1e-4)
    assert np.allclose(basis.T @ basis, reference.components_.T @ reference.components_, atol=1e-3)


def bench_archive(name):
    """A file of the real benchmark data, or a skip that says where it was looked for."""
    places = [Path(os.environ["SYNTHGEN_BENCH_DATA"])] if os.environ.get("SYNTHGEN_BENCH_DATA") else []
    places += [REPOSITORY.parent / "shared" / "data", REPOSITORY / ".bench-data"]
    for place in places:
        if (place / name).is_file():
            return place / name
    pytest.skip(f"{name} is in none of {', '.join(map(str, places))}; set SYNTHGEN_BENCH_DATA")


@pytest.mark.slow
def test_weak_masks_cover_blowholes_of_real_tiles():
    section = PrepareSection(image_size=64, channels=1)
    images, truth = {"free": [], "blowhole": []}, []
    with (
        tarfile.open(bench_archive("magnetic-tile.tar")) as tiles,
        tarfile.open(bench_archive("magnetic-tile-masks.tar.gz")) as masks,
    ):
        marked = {m.name.split("/", 1)[1]: masks.extractfile(m).read() for m in masks if "/blowhole/" in m.name}
        for member in tiles:
            parts = Path(member.name).parts
            if len(parts) == 3 and parts[1] in images:
                content = RawContent(tiles.extractfile(member).read(), "")
                images[parts[1]].append(prepare_pixels(content, section)[0])
                if parts[1] == "blowhole":
                    picture = Image.open(io.BytesIO(marked[f"blowhole/{Path(parts[2]).stem}.png"])).convert("L")
                    truth.append(np.asarray(picture.resize((64, 64), Image.Resampling.BOX)) >= 64)
    found = weak_masks(np.stack(images["blowhole"]), np.stack(images["free"]), np.random.default_rng(0))
    covered = [0.0 if m is None else (m.pixels & t).sum() / max(t.sum(), 1) for m, t in zip(found, truth, strict=True)]
    assert np.mean(covered) > 0.8  # 0.88 measured; the other classes are at 0.14 to 0.32
