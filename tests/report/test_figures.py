import base64
import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from synthgen.report.grids import GAP_PIXELS, evenly_spaced, example_grid
from synthgen.report.plots import Axis, bar_length, curve_plot, forest_axis, forest_mark, nice_ticks

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


@given(FINITE, FINITE, st.integers(2, 8))
def test_ticks_are_even_ascending_and_enclose(low: float, high: float, n: int) -> None:
    ticks = nice_ticks(low, high, n)
    steps = np.diff(ticks)
    assert (steps > 0).all()
    assert np.allclose(steps, steps[0], rtol=1e-6)
    assert len(ticks) <= n + 3
    span = ticks[-1] - ticks[0]
    assert ticks[0] <= min(low, high) + 1e-6 * span
    assert ticks[-1] >= max(low, high) - 1e-6 * span


@given(st.lists(FINITE, max_size=20))
def test_positions_stay_on_the_axis_and_keep_their_order(values: list[float]) -> None:
    axis = Axis.around(values, 10.0, 90.0)
    positions = [axis.at(value) for value in sorted(values)]
    assert positions == sorted(positions)
    assert all(10.0 <= position <= 90.0 for position in positions)


def test_forest_positions_are_linear_in_points() -> None:
    gain = {"mean": 0.05, "low": 0.0, "high": 0.1}
    axis = forest_axis([gain], [], 380.0)
    mark = forest_mark(gain, [0.025], axis)
    assert mark is not None and mark.whisker is not None
    assert mark.centre == pytest.approx((mark.whisker[0] + mark.whisker[1]) / 2, abs=0.02)
    assert mark.whisker[0] == axis.at(0)
    assert mark.dots[0] == pytest.approx((mark.whisker[0] + mark.centre) / 2, abs=0.02)


def test_one_wide_interval_does_not_flatten_the_others() -> None:
    usual = [{"mean": 0.03, "low": 0.01, "high": 0.05}] * 3
    wide = {"mean": 0.02, "low": -1.0, "high": 1.0}
    axis = forest_axis([*usual, wide], [], 380.0)
    assert axis.high - axis.low < 60
    mark = forest_mark(wide, [], axis)
    assert mark is not None
    assert mark.whisker == (axis.start, axis.stop)


def test_what_is_not_known_is_not_drawn() -> None:
    axis = forest_axis([{"mean": None, "low": None, "high": None}], [], 100.0)
    assert axis.low <= 0 <= axis.high
    assert forest_mark({"mean": None, "low": -1.0, "high": 1.0}, [], axis) is None
    mark = forest_mark({"mean": 0.0, "low": None, "high": None}, [math.nan], axis)
    assert mark is not None and mark.whisker is None and mark.dots == []
    assert curve_plot("Loss", [1.0, 2.0], [("d", "a", [math.nan, 1.0])]) is None


def test_curves_leave_out_what_is_not_finite() -> None:
    plot = curve_plot("Loss", [1.0, 2.0, 3.0], [("d", "a", [1.0, math.nan, 3.0]), ("g", "b", [2.0, 2.0, 2.0])])
    assert plot is not None
    assert [len(curve.points.split()) for curve in plot.curves] == [2, 3]
    assert "d from 1.00 to 3.00" in plot.summary


@given(st.floats(0, 1e6), st.floats(1, 1e6))
def test_bars(value: float, largest: float) -> None:
    length = bar_length(min(value, largest), largest, 200.0)
    assert 0 <= length <= 200
    assert (length > 0) == (value > 0)


@given(st.integers(0, 500), st.integers(1, 40))
def test_examples_are_distinct_and_spread(n_rows: int, n_wanted: int) -> None:
    rows = evenly_spaced(n_rows, n_wanted)
    assert len(rows) == len(set(rows.tolist())) == min(n_rows, n_wanted)
    if len(rows):
        assert rows[0] == 0
        assert rows[-1] < n_rows
        assert np.diff(rows).max(initial=0) - np.diff(rows).min(initial=10**9) <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_are_enlarged_without_smoothing(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, channels)).astype(np.uint8)
    sprite = example_grid(images, 3)
    assert sprite is not None and sprite.n_tiles == 5
    picture = Image.open(io.BytesIO(base64.b64decode(sprite.uri.partition(",")[2])))
    assert picture.size == (sprite.width, sprite.height)
    canvas = np.asarray(picture.convert("RGBA"))
    side = 56 + GAP_PIXELS
    for index, image in enumerate(images):
        top, left = side * (index // 3), side * (index % 3)
        tile = canvas[top : top + 56, left : left + 56]
        expected = np.broadcast_to(np.kron(image, np.ones((7, 7, 1), np.uint8)), (56, 56, 3))
        assert np.array_equal(tile[..., :3], expected)
        assert (tile[..., 3] == 255).all()
    assert (canvas[56:60, :, 3] == 0).all()


def test_no_image_no_sprite() -> None:
    assert example_grid(np.zeros((0, 8, 8, 1), np.uint8), 6) is None
