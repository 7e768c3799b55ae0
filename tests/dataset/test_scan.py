"""The scan: decoding against formulas, order and digests, the array file, pools, memory."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from synthgen.config import PrepareSection, SourceSection
from synthgen.dataset.decode import judge_payload
from synthgen.dataset.prepared import pixel_sha256
from synthgen.dataset.raw import ArrayPayload, BytesPayload, RawItem, Source
from synthgen.dataset.scan import scan_source
from synthgen.dataset.sources import open_source
from synthgen.errors import ArtifactError, SourceError

GREY = PrepareSection(image_size=8, channels=1)
COLOUR = PrepareSection(image_size=8, channels=3, background=100)


def encode(picture, form="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def prepared(data, section):
    """(S, S, C) pixels of one encoded picture."""
    payload = ArrayPayload(data) if isinstance(data, np.ndarray) else BytesPayload(data)
    image = judge_payload(payload, section)
    side, channels = section.image_size, section.channels
    return np.frombuffer(image.pixels, np.uint8).reshape(side, side, channels)


def noise(*shape, seed=0, high=256, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, high, shape, dtype)


@given(arrays(np.uint8, (8, 8, 3)))
@settings(max_examples=25, deadline=None)
def test_right_sized_pictures_keep_their_pixels(pixels):
    np.testing.assert_array_equal(prepared(encode(Image.fromarray(pixels)), COLOUR), pixels)
    np.testing.assert_array_equal(prepared(pixels, COLOUR), pixels)
    grey = prepared(encode(Image.fromarray(pixels)), GREY)[..., 0]
    luma = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(grey - luma).max() <= 0.51


@given(arrays(np.uint16, (8, 8)), st.sampled_from(["PNG", "TIFF", "PPM"]))
@settings(max_examples=25, deadline=None)
def test_16_bit_greys_are_scaled_by_the_formula(values, form):
    oracle = np.rint(values / 257.0).astype(np.uint8)
    np.testing.assert_array_equal(prepared(encode(Image.fromarray(values), form), GREY)[..., 0], oracle)
    np.testing.assert_array_equal(prepared(values, GREY)[..., 0], oracle)


@given(arrays(np.uint8, (8, 8, 4)), st.integers(0, 255))
@settings(max_examples=25, deadline=None)
def test_alpha_is_composited_by_the_formula(pixels, background):
    section = COLOUR.model_copy(update={"background": background})
    colour, alpha = pixels[..., :3].astype(float), pixels[..., 3:] / 255.0
    oracle = colour * alpha + background * (1.0 - alpha)
    assert np.abs(prepared(encode(Image.fromarray(pixels)), section) - oracle).max() <= 0.51
    assert np.abs(prepared(pixels, section) - oracle).max() <= 0.51


def test_a_wide_picture_is_squashed_so_that_its_edges_stay():
    wide = np.zeros((16, 64), np.uint8)
    wide[:, -8:] = 255
    square = prepared(wide, GREY)[..., 0]
    assert (square[:, -1] > 200).all()
    assert (square[:, :6] <= 2).all()


def test_resizing_respects_areas():
    picture = noise(256, 256)
    section = PrepareSection(image_size=32, channels=1)
    square = prepared(encode(Image.fromarray(picture)), section)[..., 0].astype(float)
    means = picture.reshape(32, 8, 32, 8).mean((1, 3))
    assert np.corrcoef(square.ravel(), means.ravel())[0, 1] > 0.8
    assert abs(square.mean() - picture.mean()) < 0.5
    nearest = picture[4::8, 4::8].astype(float)
    assert square.std() < nearest.std() / 4


def test_large_jpegs_reduced_by_their_decoder_look_like_a_full_decode():
    smooth = np.asarray(Image.fromarray(noise(12, 12)).resize((900, 700), Image.Resampling.BICUBIC))
    data = encode(Image.fromarray(smooth), "JPEG", quality=95)
    full = np.asarray(Image.open(io.BytesIO(data)).resize((32, 32), Image.Resampling.LANCZOS)).astype(int)
    ours = prepared(data, PrepareSection(image_size=32, channels=1))[..., 0].astype(int)
    assert np.abs(ours - full).max() <= 4


def test_raw_width_height_and_digests():
    data = encode(Image.fromarray(noise(20, 30, 3)))
    image = judge_payload(BytesPayload(data), GREY)
    assert (image.width, image.height, image.mode) == (30, 20, "RGB")
    assert image.file_sha256 == hashlib.sha256(data).hexdigest()
    assert image.pixel_sha256 == pixel_sha256(prepared(data, GREY))


def folder(root, n, classes=("a", "b"), side=8):
    for index in range(n):
        path = root / classes[index % len(classes)] / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(Image.fromarray(noise(side, side, 3, seed=index))))
    return open_source(SourceSection(type="imagefolder", path="."), root, COLOUR)


def test_scan_in_this_process_and_in_a_pool_give_the_same(tmp_path):
    source = folder(tmp_path / "raw", 60)
    (tmp_path / "raw" / "a" / "00002.png").write_bytes(b"not a picture")
    scans = [scan_source(source, COLOUR, tmp_path / f"{n}.npy", n_workers=n) for n in (1, 2)]
    assert (tmp_path / "1.npy").read_bytes() == (tmp_path / "2.npy").read_bytes()
    for scan in scans:
        assert scan.images.shape == (59, 8, 8, 3)
        assert scan.images.flags.writeable is False
        assert scan.sources == sorted(scan.sources)
        assert [row.source for row in scan.quarantine] == ["a/00002.png"]
        assert scan.pixel_sha256 == [pixel_sha256(image) for image in scan.images]
        np.testing.assert_array_equal(scan.images[0], noise(8, 8, 3, seed=0))
    assert {**vars(scans[0]), "images": 0} == {**vars(scans[1]), "images": 0}


def test_digits_scan_in_under_a_second(tmp_path):
    source = open_source(SourceSection(type="digits"), tmp_path, GREY)
    started = time.perf_counter()
    scan = scan_source(source, GREY, tmp_path / "images.npy")
    assert time.perf_counter() - started < 1.0
    assert scan.images.shape == (1797, 8, 8, 1)
    assert scan.classes == [str(digit) for digit in range(10)]
    np.testing.assert_array_equal(np.bincount([int(name) for name in scan.class_names]).sum(), 1797)
    assert scan.quarantine == []


def test_every_form_of_source_can_be_scanned_in_a_pool(tmp_path):
    pixels = noise(6, 8, 8, 3)
    labels = ["x", "y"] * 3
    np.savez_compressed(tmp_path / "a.npz", x=pixels, y=np.array(labels))
    images = [encode(Image.fromarray(image)) for image in pixels]
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "a.parquet")
    lines = ["path,label"]
    for index, (data, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / f"{index}.png").write_bytes(data)
        lines.append(f"{index}.png,{label}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    for kind, path in (("npz", "a.npz"), ("parquet", "a.parquet"), ("csv", ".")):
        source = open_source(SourceSection(type=kind, path=path), tmp_path, COLOUR)
        scan = scan_source(source, COLOUR, tmp_path / "images.npy", n_workers=2)
        np.testing.assert_array_equal(scan.images, pixels)
        assert scan.class_names == labels


def test_a_failed_scan_leaves_no_file(tmp_path):
    source = folder(tmp_path / "raw", 4)
    (tmp_path / "out").mkdir(mode=0o700)
    for path in (tmp_path / "raw").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(SourceError, match=r"no usable image; put aside in all: 4 empty_file \(0 bytes\)"):
        scan_source(source, COLOUR, tmp_path / "out" / "images.npy")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "blocked").write_text("a file where a folder should be")
    with pytest.raises(ArtifactError, match="cannot write"):
        scan_source(source, COLOUR, tmp_path / "blocked" / "images.npy")


def test_a_decoder_that_kills_its_process_costs_one_image(tmp_path):
    # In a script of its own, because the workers must be able to import the payload's class.
    script = tmp_path / "killer_scan.py"
    script.write_text(KILLER_SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "images.npy")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["198", "i00070:decoder_crashed", "i00150:decoder_crashed"]


KILLER_SCRIPT = """
import os, signal, sys
from pathlib import Path
import numpy as np
from synthgen.config import PrepareSection
from synthgen.dataset.raw import ArrayPayload, RawItem, Source
from synthgen.dataset.scan import scan_source

class Killer:
    nbytes = 0
    def read(self, max_bytes):
        os.kill(os.getpid(), signal.SIGKILL)

def items():
    for index in range(200):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8), np.uint8)
        payload = Killer() if index in (70, 150) else ArrayPayload(pixels)
        yield RawItem(f"i{index:05d}", "ab"[index % 2], None, None, payload)

if __name__ == "__main__":
    section = PrepareSection(image_size=8, channels=1)
    scan = scan_source(Source(["a", "b"], 200, items), section, Path(sys.argv[1]), n_workers=2)
    print(len(scan.images), *(f"{row.source}:{row.reason}" for row in scan.quarantine))
"""


ORPHAN_SCRIPT = """
import os, sys, time
from pathlib import Path
from synthgen.config import PrepareSection
from synthgen.dataset.raw import RawItem, RefusedError, Source
from synthgen.dataset.scan import scan_source

class Slow:
    nbytes = 0
    def read(self, max_bytes):
        (Path(sys.argv[1]) / str(os.getpid())).touch()
        time.sleep(0.05)
        raise RefusedError("damaged", "slow")

if __name__ == "__main__":
    items = [RawItem(f"i{index:05d}", "a", None, None, Slow()) for index in range(5000)]
    section = PrepareSection(image_size=8, channels=1)
    scan_source(Source(["a"], 5000, lambda: iter(items)), section, Path(sys.argv[1]) / "images.npy", n_workers=2)
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_decoding_processes_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "orphan_scan.py"
    script.write_text(ORPHAN_SCRIPT, encoding="utf-8")
    (tmp_path / "pids").mkdir()
    with subprocess.Popen([sys.executable, str(script), str(tmp_path / "pids")], stderr=subprocess.DEVNULL) as parent:

        def workers():
            return [int(path.name) for path in (tmp_path / "pids").iterdir() if path.name.isdigit()]

        assert until(lambda: len(workers()) == 2, 60)
        parent.kill()
    assert until(lambda: not any(alive(pid) for pid in workers()), 20)


def test_decoder_warnings_are_kept_and_logged(tmp_path, caplog):
    # A palette picture with transparency as bytes makes Pillow warn on conversion.
    palette = Image.fromarray(noise(8, 8, high=2)).convert("P")
    data = encode(palette, transparency=bytes([0, 128]))
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x05"  # a directory that is cut off
    items = [
        RawItem("1", "a", None, None, BytesPayload(data)),
        RawItem("2", "a", None, None, BytesPayload(encode(Image.fromarray(noise(8, 8)), "JPEG", exif=exif))),
    ]
    scan = scan_source(Source(["a"], 2, lambda: iter(items)), COLOUR, tmp_path / "images.npy")
    assert len(scan.images) == 2
    assert [name for name, _ in scan.notes] == ["2"]
    assert "were read although their decoder warned" in caplog.text


def bench_data(name):
    beside = Path(__file__).parents[3] / "shared" / "data"
    places = [Path(os.environ["SYNTHGEN_BENCH_DATA"])] if "SYNTHGEN_BENCH_DATA" in os.environ else []
    for place in [*places, beside, Path(__file__).parents[2] / ".bench-data"]:
        if (place / name).exists():
            return place / name
    pytest.skip(f"{name} is in none of $SYNTHGEN_BENCH_DATA, ../shared/data, .bench-data/")


def test_magnetic_tiles(tmp_path):
    with tarfile.open(bench_data("magnetic-tile.tar")) as archive:
        # Python before 3.11.4 has no filters
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(tmp_path)
    section = PrepareSection(image_size=64, channels=1)
    source = open_source(SourceSection(type="imagefolder", path="magnetic-tile"), tmp_path, section)
    scan = scan_source(source, section, tmp_path / "images.npy")
    assert scan.images.shape == (1344, 64, 64, 1)
    counts = {name: scan.class_names.count(name) for name in scan.classes}
    assert counts == {"blowhole": 115, "break": 85, "crack": 57, "fray": 32, "free": 952, "uneven": 103}
    assert scan.quarantine == []


def test_mnist_archive_streams(tmp_path):
    path = bench_data("mnist.npz")
    source = open_source(SourceSection(type="npz", path=str(path)), tmp_path, GREY)
    first = next(item for item in source.items() if item.split == "train")
    with np.load(path, allow_pickle=False) as archive:
        np.testing.assert_array_equal(first.payload.read(10**6).value, archive["x_train"][0])
        assert first.class_name == str(archive["y_train"][0])
    assert source.n_items == 70_000


MEMORY_SCRIPT = """
import resource, sys, tracemalloc
from pathlib import Path
from synthgen.config import PrepareSection, SourceSection
from synthgen.dataset.scan import scan_source
from synthgen.dataset.sources import open_source

if __name__ == "__main__":
    root, n_workers = Path(sys.argv[1]), int(sys.argv[2])
    section = PrepareSection(image_size=64, channels=3)
    source = open_source(SourceSection(type="imagefolder", path="raw"), root, section)
    scan = scan_source(source, section, root / "images.npy", n_workers=n_workers)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(len(scan.sources), peak, children)
"""


@pytest.mark.slow
def test_peak_memory_grows_by_the_index_alone(tmp_path):
    """10 times the images: 18,000 x 12 kB of pixels are 221 MB, the index may take 2 kB an image."""
    script = tmp_path / "measure.py"
    script.write_text(MEMORY_SCRIPT, encoding="utf-8")
    peaks = {}
    for n_images in (2_000, 20_000):
        root = tmp_path / str(n_images)
        for index in range(n_images):
            path = root / "raw" / "ab"[index % 2] / f"{index:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(Image.fromarray(noise(8, 8, 3, seed=index)), compress_level=1))
        for n_workers in (1, 2):
            command = [sys.executable, str(script), str(root), str(n_workers)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
            n_scanned, parent, _ = map(int, done.stdout.split())
            assert n_scanned == n_images
            peaks[n_images, n_workers] = parent
    for n_workers in (1, 2):
        grown = peaks[20_000, n_workers] - peaks[2_000, n_workers]
        assert grown < 18_000 * 2, f"{grown} kB more for 18,000 more images ({peaks})"
