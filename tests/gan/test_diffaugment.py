"""DiffAugment against its definition: shifts are shifts, holes are holes, gradients pass."""

import numpy as np
import torch

from synthgen.config import TransformsSection
from synthgen.gan.diffaugment import color, cutout, diffaugment, jitter_reals, translation


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_translation_is_an_integer_shift_with_zeros_outside() -> None:
    x = torch.randn(64, 2, 8, 8, generator=_generator())
    moved = translation(x, 0.25, _generator(1))
    seen = set()
    for before, after in zip(x, moved, strict=True):
        padded = torch.nn.functional.pad(before, (2, 2, 2, 2))
        matches = [
            (dy, dx) for dy in range(5) for dx in range(5) if torch.equal(padded[:, dy : dy + 8, dx : dx + 8], after)
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 15  # of 25 possible shifts


def test_cutout_removes_one_square_and_nothing_else() -> None:
    x = torch.ones(50, 1, 10, 10)
    cut = cutout(x, 0.4, _generator(2))
    holes = (cut == 0).sum(dim=(1, 2, 3))
    assert set(torch.unique(cut).tolist()) == {0.0, 1.0}
    assert holes.max() == 16
    assert holes.min() >= 4  # a corner of the square at least
    for hole in (cut == 0).squeeze(1):
        rows, columns = np.nonzero(hole.numpy())
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_nothing_changes_at_strength_zero() -> None:
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(diffaugment(x, _generator(), translate=0.0, cut=0.0), x)
    assert torch.equal(jitter_reals(x, TransformsSection(), 0.0, _generator()), x)


def test_gradients_pass_where_pixels_stay() -> None:
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    diffaugment(x, _generator(), with_color=True).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_color_keeps_grey_images_grey() -> None:
    grey = torch.randn(5, 1, 6, 6, generator=_generator()).expand(-1, 3, -1, -1)
    out = color(grey, _generator(3))
    assert torch.allclose(out[:, 0], out[:, 1], atol=1e-6)


def test_jitter_stays_in_range_differs_per_image_and_repeats_with_its_seed() -> None:
    x = torch.rand(16, 1, 16, 16, generator=_generator()) * 2 - 1
    one = jitter_reals(x[:1].expand(16, -1, -1, -1), TransformsSection(), 1.0, _generator(4))
    assert one.abs().max() <= 1.0
    assert len({image.numpy().tobytes() for image in one}) == 16
    again = jitter_reals(x[:1].expand(16, -1, -1, -1), TransformsSection(), 1.0, _generator(4))
    assert torch.equal(one, again)


def test_flip_mirrors_about_half_of_the_images() -> None:
    x = torch.rand(200, 1, 8, 8, generator=_generator()) * 2 - 1
    out = jitter_reals(x, TransformsSection(), 0.0, _generator(5), flip=True)
    mirrored = [torch.allclose(b, a.flip(-1), atol=1e-5) for a, b in zip(x, out, strict=True)]
    kept = [torch.allclose(b, a, atol=1e-5) for a, b in zip(x, out, strict=True)]
    assert all(m or k for m, k in zip(mirrored, kept, strict=True))
    assert 70 <= sum(mirrored) <= 130
