import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, PngImagePlugin

from synthgen.dataset.provenance import (
    GENERATOR_KEY,
    SYNTHETIC_SOURCE_TYPE,
    XMP_KEYWORD,
    Provenance,
    decode_png,
    encode_png,
    read_provenance,
)
from synthgen.errors import ArtifactError

DIGEST = "0123456789abcdef" * 4
IMAGES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])))


@given(IMAGES, st.none() | st.builds(Provenance, st.just(DIGEST), st.integers(0, 2**63 - 1), st.integers(0, 2**31 - 1)))
def test_pixels_and_provenance_survive(image: np.ndarray, provenance: Provenance | None) -> None:
    png = encode_png(image, provenance)
    assert np.array_equal(decode_png(png), image)
    assert read_provenance(png) == provenance
    assert png == encode_png(image, provenance)


def test_pillow_reads_the_same_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 255, (8, 6, 3)).astype(np.uint8)
    with Image.open(io.BytesIO(encode_png(image, None))) as picture:
        assert np.array_equal(np.asarray(picture), image)
        assert picture.text == {}


def test_xmp_is_well_formed_and_names_the_source_type() -> None:
    png = encode_png(np.zeros((4, 4, 1), np.uint8), Provenance(DIGEST, 5, 7))
    with Image.open(io.BytesIO(png)) as picture:
        packet = picture.text[XMP_KEYWORD]
    root = ET.fromstring(packet)
    found = [node.text for node in root.iter() if node.tag.endswith("}DigitalSourceType")]
    assert found == [SYNTHETIC_SOURCE_TYPE]
    assert any("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}" in node.tag for node in root.iter())


def test_half_a_provenance_is_refused() -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(GENERATOR_KEY, DIGEST)
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, format="PNG", pnginfo=chunks)
    with pytest.raises(ArtifactError, match="incomplete provenance"):
        read_provenance(buffer.getvalue())


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (4, 4, 2)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArtifactError, match="uint8"):
        encode_png(np.zeros(shape, np.uint8), None)


@given(st.binary(max_size=200))
def test_garbage_gives_an_artifact_error(junk: bytes) -> None:
    with pytest.raises(ArtifactError):
        decode_png(junk)


@given(st.data())
def test_a_damaged_png_never_escapes_as_another_error(data: st.DataObject) -> None:
    png = bytearray(encode_png(np.arange(64, dtype=np.uint8).reshape(8, 8, 1), Provenance(DIGEST, 1, 2)))
    for _ in range(3):
        png[data.draw(st.integers(0, len(png) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_png(bytes(png))
        read_provenance(bytes(png))
    except ArtifactError:
        pass
