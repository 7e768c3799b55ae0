"""FAULTS.md, rows 1 to 18 as far as reading raw data is concerned: one test per row, named after it."""

import io
import os
import subprocess
import sys
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin

from synthgen.config import PrepareSection, SourceSection
from synthgen.dataset.decode import Accepted, Refusal, judge_payload
from synthgen.dataset.prepared import pixel_sha256
from synthgen.dataset.raw import REASONS, BytesPayload, FilePayload
from synthgen.dataset.scan import scan_source
from synthgen.dataset.slugs import twin_key
from synthgen.dataset.sources import open_source
from synthgen.errors import LeakError, SourceError

GREY = PrepareSection(image_size=8, channels=1)
COLOUR = PrepareSection(image_size=8, channels=3, background=200)


def encode(picture, form="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def noise(*shape, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def picture(seed=0, side=24):
    return Image.fromarray(noise(side, side, 3, seed=seed))


def judge(data, section=COLOUR):
    return judge_payload(BytesPayload(data), section)


def pixels_of(image, section=COLOUR):
    assert isinstance(image, Accepted), image
    return np.frombuffer(image.pixels, np.uint8).reshape(section.image_size, section.image_size, section.channels)


def scanned(root, section=COLOUR, **options):
    source = open_source(SourceSection(type="imagefolder", path="raw"), root, section)
    return scan_source(source, section, root / "images.npy", **options)


def raw_folder(root, bad=(), n_good=2, class_name="a"):
    folder = root / "raw" / class_name
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(n_good):
        (folder / f"good{index}.png").write_bytes(encode(picture(index)))
    for name, data in dict(bad).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("JPEG2000", {}),
        ("PPM", {}),
    ],
)
def test_fault_01_truncated(form, options):
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    data = encode(picture(side=64), form, **options)
    assert isinstance(judge(data), Accepted)
    for tenth in range(10):
        cut = judge(data[: len(data) * tenth // 10])
        assert isinstance(cut, Refusal), f"{form} cut at {10 * tenth} %"
        assert cut.reason in ("empty_file", "not_image", "damaged")


FUZZ_SCRIPT = """
import io, sys
import numpy as np
from PIL import Image
from synthgen.config import PrepareSection
from synthgen.dataset.decode import Accepted, judge_payload
from synthgen.dataset.raw import REASONS, BytesPayload

rng = np.random.default_rng(int(sys.argv[1]))
section = PrepareSection(image_size=8, channels=3, max_pixels=1_000_000)
reasons = set()
for form in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(stream, form)
    for _ in range(int(sys.argv[2])):
        data = bytearray(stream.getvalue())
        for position in rng.integers(0, len(data), rng.integers(1, 20)):
            data[position] = rng.integers(0, 256)
        verdict = judge_payload(BytesPayload(bytes(data)), section)
        reasons.add("accepted" if isinstance(verdict, Accepted) else verdict.reason)
assert reasons <= {"accepted", *REASONS}, reasons
assert "damaged" in reasons
"""


def test_fault_02_fuzzed_files_in_a_child_process():
    done = subprocess.run(
        [sys.executable, "-c", FUZZ_SCRIPT, "1", "60"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])


def test_fault_02_corrupt_files_leave_the_others(tmp_path):
    data = bytearray(encode(picture(5)))
    data[60:80] = bytes(20)
    raw_folder(tmp_path, {"bad.png": bytes(data)})
    scan = scanned(tmp_path)
    assert scan.sources == ["a/good0.png", "a/good1.png"]
    assert [(row.source, row.reason) for row in scan.quarantine] == [("a/bad.png", "damaged")]


def test_fault_03_a_flipped_byte_shows_in_the_digests(tmp_path):
    folder = raw_folder(tmp_path)
    before = scanned(tmp_path)
    data = bytearray((folder / "good0.png").read_bytes())
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text("note", "x")
    (folder / "good0.png").write_bytes(encode(picture(0), pnginfo=chunk))  # other file, same pixels
    renamed = scanned(tmp_path)
    assert renamed.file_sha256[0] != before.file_sha256[0]
    assert renamed.pixel_sha256 == before.pixel_sha256
    jpeg = bytearray(encode(picture(0), "JPEG"))
    first = judge(bytes(jpeg))
    jpeg[len(jpeg) // 2] ^= 4
    second = judge(bytes(jpeg))
    assert data
    assert not isinstance(second, Accepted) or second.file_sha256 != first.file_sha256
    altered = before.images[0].copy()
    altered[3, 3, 0] ^= 1
    assert pixel_sha256(altered) != before.pixel_sha256[0]


def test_fault_04_16_bit_is_scaled_and_float_refused():
    values = noise(8, 8, dtype=np.uint16)
    for form in ("PNG", "TIFF"):
        got = pixels_of(judge(encode(Image.fromarray(values), form), GREY), GREY)[..., 0]
        np.testing.assert_array_equal(got, np.rint(values / 257.0))
    wide = Image.fromarray(values.astype(np.int32))
    assert wide.mode == "I"
    np.testing.assert_array_equal(pixels_of(judge(encode(wide, "TIFF"), GREY), GREY)[..., 0], np.rint(values / 257.0))
    for bad in (values.astype(np.int32) + 65536, -1 - values.astype(np.int32)):
        refused = judge(encode(Image.fromarray(bad), "TIFF"), GREY)
        assert refused.reason == "out_of_range"
        assert str(bad.min()) in refused.detail
    refused = judge(encode(Image.fromarray(values.astype(np.float32)), "TIFF"), GREY)
    assert refused.reason == "float_pixels"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "1", "P", "CMYK", "RGB"])
def test_fault_05_modes_follow_the_declared_policy(mode):
    data = noise(8, 8, 4)
    rgba = Image.fromarray(data)
    form = "TIFF" if mode == "CMYK" else "PNG"
    made = rgba.convert("RGB").convert(mode) if mode in ("1", "P", "CMYK", "RGB", "L") else rgba.convert(mode)
    image = judge(encode(made, form))
    assert image.mode == mode
    if mode in ("RGBA", "LA"):
        plain = np.asarray(made).astype(float)
        colour, alpha = plain[..., :-1], plain[..., -1:] / 255.0
        oracle = np.broadcast_to(colour * alpha + 200 * (1 - alpha), (8, 8, 3))
    elif mode == "CMYK":
        plain = np.asarray(made).astype(float)
        oracle = (255 - plain[..., :3]) * (255 - plain[..., 3:]) / 255.0
    else:
        oracle = np.asarray(made.convert("RGB")).astype(float)
    assert np.abs(pixels_of(image) - oracle).max() <= 1.01


def test_fault_05_palette_and_colour_key_transparency():
    indices = np.arange(64, dtype=np.uint8).reshape(8, 8) % 3
    made = Image.fromarray(indices).convert("P")
    made.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    alpha = np.array([0, 255, 128])[indices][..., None] / 255.0
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])[indices]
    got = pixels_of(judge(encode(made, transparency=bytes([0, 255, 128]))))
    assert np.abs(got - (colours * alpha + 200 * (1 - alpha))).max() <= 0.51
    keyed = Image.fromarray(np.stack([indices] * 3, -1))
    got = pixels_of(judge(encode(keyed, transparency=(1, 1, 1))))
    assert (got[indices == 1] == 200).all()
    np.testing.assert_array_equal(got[indices != 1], np.asarray(keyed)[indices != 1])


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_fault_06_animated(form):
    frames = [Image.fromarray(noise(8, 8, 3, seed=seed)).quantize(16).convert("RGB") for seed in range(3)]
    options = {"save_all": True, "append_images": frames[1:]}
    data = encode(frames[0], form, **options, **({"lossless": True} if form == "WEBP" else {}))
    refused = judge(data)
    assert refused.reason == "animated"
    assert refused.detail.startswith("3 frames")
    image = judge(data, COLOUR.model_copy(update={"animated": "first_frame"}))
    assert image.mode.endswith(";first_frame")
    np.testing.assert_array_equal(pixels_of(image), np.asarray(frames[0]))


def test_fault_06_a_phones_mpo_is_one_photograph():
    data = encode(picture(1), "MPO", save_all=True, append_images=[picture(2)])
    assert isinstance(judge(data), Accepted)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_fault_07_exif_rotation(orientation, form):
    # Four flat quarters survive any codec; numpy's own turns and flips are the oracle (EXIF 2.32, tag 274).
    upright = np.kron(np.array([[20, 90], [160, 240]]), np.ones((32, 16))).astype(np.uint8)  # 64 high, 32 wide
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = judge(encode(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif), GREY)
    assert (image.width, image.height) == (32, 64)
    corners = pixels_of(image, GREY)[1::5, 1::5, 0][:2, :2].astype(int)
    assert np.abs(corners - [[20, 90], [160, 240]]).max() <= 12


def chunk(kind, body):
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def bare_png(width, height, data, *more, bits=1):
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, 0, 0, 0, 0])
    chunks = [chunk(b"IHDR", header), *more, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


BOMB = bare_png(16_000, 16_000, zlib.compress(bytes(2001 * 16_000), 9))


def test_fault_08_pixel_bomb(tmp_path, monkeypatch):
    assert len(BOMB) < 40_000
    loaded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", loaded.append)
    for section in (GREY, GREY.model_copy(update={"max_pixels": 255_999_999})):
        assert judge(BOMB, section).reason == "too_many_pixels"
    assert loaded == []
    monkeypatch.undo()
    limit = Image.MAX_IMAGE_PIXELS
    raw_folder(tmp_path, {"bomb.png": BOMB})
    assert [(row.source, row.reason) for row in scanned(tmp_path).quarantine] == [("a/bomb.png", "too_many_pixels")]
    assert limit == Image.MAX_IMAGE_PIXELS


def test_fault_08_a_cap_above_pillows_own_is_kept():
    section = GREY.model_copy(update={"max_pixels": 300_000_000})
    assert isinstance(judge(BOMB, section), Accepted)


def test_fault_08_byte_cap(tmp_path):
    data = encode(picture())
    section = COLOUR.model_copy(update={"max_bytes": len(data)})
    assert isinstance(judge(data, section), Accepted)
    refused = judge(data, COLOUR.model_copy(update={"max_bytes": len(data) - 1}))
    assert refused == Refusal("too_many_bytes", f"{len(data)} bytes, over prepare.max_bytes {len(data) - 1}")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert judge_payload(FilePayload(str(path)), COLOUR.model_copy(update={"max_bytes": 9})).reason == "too_many_bytes"


def test_fault_09_ztxt_bomb(tmp_path):
    bomb = chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(60_000_000), 9))
    data = bare_png(8, 8, zlib.compress(bytes(2 * 8)), bomb)
    with pytest.raises(ValueError, match="too large"):
        Image.open(io.BytesIO(data)).load()
    raw_folder(tmp_path, {"bomb.png": data})
    scan = scanned(tmp_path)
    assert [(row.source, row.reason) for row in scan.quarantine] == [("a/bomb.png", "damaged")]
    assert "ValueError" in scan.quarantine[0].detail


def test_fault_10_text_html_or_nothing_named_png(tmp_path):
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"
    bad = {
        "t.png": b"hello",
        "h.png": b"<html><img src=x></html>",
        "z.png": b"",
        "e.png": postscript,
        "n.png": bytes(99),
    }
    raw_folder(tmp_path, bad)
    scan = scanned(tmp_path)
    assert {row.source: row.reason for row in scan.quarantine} == {
        "a/t.png": "not_image",
        "a/h.png": "not_image",
        "a/e.png": "not_image",
        "a/n.png": "not_image",
        "a/z.png": "empty_file",
    }
    assert len(scan.images) == 2


def test_quarantine_details_are_the_same_every_time(tmp_path):
    raw_folder(tmp_path, {"t.png": b"hello", "cut.png": encode(picture(7))[:300]})
    assert scanned(tmp_path).quarantine == scanned(tmp_path).quarantine
    assert "object at" not in str(scanned(tmp_path).quarantine)


@pytest.mark.timeout(60)
def test_fault_11_symlinks_pipes_and_devices(tmp_path):
    folder = raw_folder(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(encode(picture(9)))
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "dead.png").symlink_to(outside / "nothing")
    (folder / "deep").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    (tmp_path / "raw" / "linked_class").symlink_to(outside)
    os.mkfifo(tmp_path / "raw" / "pipe_class")
    scan = scanned(tmp_path)
    assert scan.sources == ["a/good0.png", "a/good1.png"]
    assert {row.source: row.reason for row in scan.quarantine} == {
        "a/link.png": "symlink",
        "a/dead.png": "symlink",
        "a/deep": "symlink",
        "a/loop": "symlink",
        "a/pipe.png": "not_regular",
        "linked_class": "symlink",
        "pipe_class": "not_regular",
    }
    # Swapped after the listing: the reader judges again on the open handle.
    for name, reason in (("pipe.png", "not_regular"), ("link.png", "symlink"), ("gone.png", "missing")):
        assert judge_payload(FilePayload(str(folder / name)), COLOUR).reason == reason
    assert judge_payload(FilePayload("/dev/zero"), COLOUR).reason == "not_regular"
    assert judge_payload(FilePayload(str(folder)), COLOUR).reason == "not_regular"


@pytest.mark.timeout(60)
def test_fault_11_csv_rows_that_name_pipes_and_devices(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(picture()))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "labels.csv").write_text("path,label\na.png,x\npipe.png,x\n/dev/zero,x\n")
    source = open_source(SourceSection(type="csv", path="."), tmp_path, COLOUR)
    scan = scan_source(source, COLOUR, tmp_path / "images.npy")
    assert [(row.source, row.reason) for row in scan.quarantine] == [
        ("/dev/zero", "outside_root"),
        ("pipe.png", "not_regular"),
    ]


def test_fault_11_unreadable_file(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    folder = raw_folder(tmp_path)
    (folder / "good0.png").chmod(0)
    assert [(row.source, row.reason) for row in scanned(tmp_path).quarantine] == [("a/good0.png", "unreadable")]


def fits_a_folder(name):
    plain = name not in ("", ".", "..") and not name.startswith(".") and "/" not in name and "\0" not in name
    written = all(unicodedata.category(character) not in ("Cc", "Cs") for character in name)
    return plain and written and bool(name.strip()) and len(name.encode("utf-8", "surrogatepass")) <= 200


class_names = st.lists(
    st.one_of(
        st.text(min_size=1, max_size=60),
        st.sampled_from(
            ["-rf", "--help", "CON", "a b", "$(touch P)", "`touch P`", "; touch P", "| touch P", "x" * 200]
        ),
    ).filter(fits_a_folder),
    min_size=1,
    max_size=4,
    unique_by=twin_key,
)


@given(class_names)
@example(["$(touch canary)", "`touch canary`", "; touch canary ;", "& touch canary"])
@example(["train", "plane"])
@example(["-rf", "--", "con", "nul.png", "\u202egnp.exe"])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fault_12_and_13_hostile_class_folders_are_scanned_and_never_executed(tmp_path_factory, names):
    splits = {"train", "val", "valid", "validation", "test"}
    if {name.lower() for name in names} <= splits:
        return
    root = tmp_path_factory.mktemp("hostile")
    for index, name in enumerate(names):
        raw_folder(root, {"x.png": encode(picture(100 + index))}, n_good=0, class_name=name)
    executed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for module, call in ((subprocess, "Popen"), (os, "system"), (os, "posix_spawn"), (os, "fork"), (os, "execve")):
            patch.setattr(module, call, lambda *args, **kwargs: executed.append(args))
        scan = scanned(root)
    assert executed == []
    assert sorted(path.name for path in root.iterdir()) == ["images.npy", "raw"]
    assert sorted(scan.class_names) == sorted(scan.classes) == sorted(names)


def test_fault_12_class_names_that_cannot_be_used(tmp_path):
    raw_folder(tmp_path, class_name="Crack")
    raw_folder(tmp_path, class_name="crack")
    with pytest.raises(SourceError, match="'Crack' and 'crack'"):
        scanned(tmp_path)
    (tmp_path / "twin").mkdir()
    for name in ("caf\u00e9", "cafe\u0301"):
        raw_folder(tmp_path / "twin", class_name=name)
    with pytest.raises(SourceError, match=r"'cafe\\u0301' and 'caf\\xe9'"):
        scanned(tmp_path / "twin")
    (tmp_path / "bytes").mkdir()
    raw_folder(tmp_path / "bytes", class_name=os.fsdecode(b"bad\xff"))
    with pytest.raises(SourceError, match=r"bad\\\\xff.* is not UTF-8"):
        scanned(tmp_path / "bytes")


def test_fault_12_labels_that_no_folder_could_have(tmp_path):
    labels = ["..", "/", "/etc/passwd", "x" * 5000, "a,b", "-rf"]
    lines = ["path,label"]
    for index, label in enumerate(labels):
        (tmp_path / f"{index}.png").write_bytes(encode(picture(index)))
        lines.append(f'{index}.png,"{label}"')
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    source = open_source(SourceSection(type="csv", path="."), tmp_path, COLOUR)
    scan = scan_source(source, COLOUR, tmp_path / "images.npy")
    assert scan.class_names == labels
    assert not (tmp_path / "x").exists()


def test_fault_12_hostile_file_names(tmp_path):
    folder = raw_folder(tmp_path, n_good=1)
    names = ["-rf.png", "$(touch canary).png", "a\nb.png", "<img onerror=alert(1)>.png", "x" * 250, "日本.png"]
    for index, name in enumerate(names):
        (folder / name).write_bytes(encode(picture(10 + index)))
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff.png")).write_bytes(encode(picture(99)))
    scan = scanned(tmp_path)
    assert set(scan.sources) == {"a/good0.png", *(f"a/{name}" for name in names)}
    assert [(row.source, row.reason) for row in scan.quarantine] == [("a/bad\\xff.png", "bad_name")]


def test_fault_15_empty_class_folder(tmp_path):
    raw_folder(tmp_path)
    (tmp_path / "raw" / "empty").mkdir()
    (tmp_path / "raw" / "void" / "deeper").mkdir(parents=True)
    with pytest.raises(SourceError, match=r"without an image to train on: 'empty', 'void'") as caught:
        scanned(tmp_path)
    assert "\n" not in str(caught.value)
    scan = scanned(tmp_path, COLOUR.model_copy(update={"empty_class": "skip"}))
    assert scan.classes == ["a"]
    assert [(row.source, row.reason) for row in scan.quarantine] == [
        ("empty", "class_skipped"),
        ("void", "class_skipped"),
    ]


def test_fault_15_class_whose_images_are_all_bad(tmp_path):
    raw_folder(tmp_path)
    raw_folder(tmp_path, {"x.png": b"nothing"}, n_good=0, class_name="b")
    with pytest.raises(SourceError, match=r"class without a usable training image: 'b'; put aside in all: 1 not_image"):
        scanned(tmp_path)
    assert not (tmp_path / "images.npy").exists()
    assert scanned(tmp_path, COLOUR.model_copy(update={"empty_class": "skip"})).classes == ["a"]


def test_fault_15_skipping_a_class_takes_its_test_images_along(tmp_path):
    for split, name, seed in (
        ("train", "a", 1),
        ("train", "c", 2),
        ("test", "a", 3),
        ("test", "b", 4),
        ("test", "c", 5),
    ):
        raw_folder(tmp_path, {f"{seed}.png": encode(picture(seed))}, n_good=0, class_name=f"../raw/{split}/{name}")
    raw_folder(tmp_path, {"bad.png": b"nothing"}, n_good=0, class_name="../raw/train/b")
    with pytest.raises(SourceError, match="class without a usable training image: 'b'"):
        scanned(tmp_path)
    scan = scanned(tmp_path, COLOUR.model_copy(update={"empty_class": "skip"}))
    assert scan.classes == ["a", "c"]
    assert scan.sources == ["test/a/3.png", "test/c/5.png", "train/a/1.png", "train/c/2.png"]
    assert scan.splits == ["test", "test", "train", "train"]
    assert scan.pixel_sha256 == [pixel_sha256(image) for image in scan.images]
    assert {row.source: row.reason for row in scan.quarantine} == {
        "train/b/bad.png": "not_image",
        "test/b/4.png": "class_skipped",
    }


@pytest.mark.parametrize("n_images", range(9))
def test_fault_16_class_of_0_to_8_images(tmp_path, n_images):
    raw_folder(tmp_path, n_good=3)
    folder = raw_folder(tmp_path, n_good=0, class_name="few")
    for index in range(n_images):
        (folder / f"{index}.png").write_bytes(encode(picture(50 + index)))
    scan = scanned(tmp_path, COLOUR.model_copy(update={"empty_class": "skip"}))
    assert scan.class_names.count("few") == n_images
    assert scan.class_names.count("a") == 3
    assert scan.classes == (["a", "few"] if n_images else ["a"])
    assert scan.images.shape == (3 + n_images, 8, 8, 3)


def test_fault_18_same_pixels_two_labels(tmp_path):
    raw_folder(tmp_path, {"x.png": encode(picture(5))})
    raw_folder(tmp_path, {"y.bmp": encode(picture(5), "BMP")}, n_good=0, class_name="b")
    with pytest.raises(LeakError) as caught:
        scanned(tmp_path)
    assert "1 pairs" in str(caught.value)
    assert "'a/x.png' ('a') = 'b/y.bmp' ('b')" in str(caught.value)
    assert not (tmp_path / "images.npy").exists()


def test_fault_18_names_up_to_ten_pairs(tmp_path):
    raw_folder(tmp_path, n_good=12)
    raw_folder(tmp_path, n_good=12, class_name="b")
    with pytest.raises(LeakError) as caught:
        scanned(tmp_path)
    assert "12 pairs" in str(caught.value)
    assert str(caught.value).count(" = ") == 10


def test_the_same_picture_twice_in_one_class_is_no_fault(tmp_path):
    raw_folder(tmp_path, {"again.png": encode(picture(0))})
    assert len(scanned(tmp_path).images) == 3


def test_every_reason_is_documented():
    names = ("raw", "decode", "decode_pool", "folder_sources", "array_sources", "parquet_source", "torchvision_source")
    package = Path(sys.modules["synthgen.dataset.raw"].__file__).parent
    text = "".join((package / f"{name}.py").read_text(encoding="utf-8") for name in names)
    for reason in REASONS:
        assert text.count(f'"{reason}"') >= 2, reason
