"""An augmented data set as a `torch.utils.data.Dataset`, straight from its Parquet shards.

Owns the view of training code: (image, label) by index, with origin, group and class of every image beside it. The
PNGs of the split are held in memory as they are and decoded when asked for, so workers share them. Refuses shards
that no longer match summary.json: an altered data set never trains anything.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from synthgen.artifacts import read_json, sha256_file
from synthgen.dataset.mixing import MixingPolicy, read_policy
from synthgen.dataset.provenance import decode_png
from synthgen.dataset.shards import REAL, SYNTHETIC, TRAIN, count_rows
from synthgen.errors import ArtifactError, ConfigError

ORIGINS = (REAL, SYNTHETIC)
COLUMNS = ["image", "label", "origin", "split", "group", "teacher_agreement"]


class AugmentedImages(Dataset[tuple[Any, int]]):
    """(image, label) of every image of one split, real ones of all classes first.

    Give synthetic images to training alone, and keep a group on one side of any split of the real ones.

    Attributes:
        class_names: names of all classes, in label order.
        slugs: their names in paths, in label order.
        labels: (n,) int64.
        origins: (n,) `real` or `synthetic`.
        groups: (n,) the object that a real image shows; "" of a synthetic one.
        sureness: (n,) float32 in [0, 1], the teacher's probability of a synthetic image's label; 1 of a real one.
        policy: how synthetic images were mixed in when the gain was measured; `SyntheticMix` applies it.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = TRAIN,
        *,
        origins: Sequence[str] = ORIGINS,
        transform: Callable[[Tensor], Any] | None = None,
        synthetic_transform: Callable[[Tensor], Any] | EllipsisType | None = ...,
    ) -> None:
        """Reads the shards of `folder`.

        Args:
            folder: that `synthgen assemble` wrote, or `dvc get` fetched.
            split: of the shards; an augmented data set has `train` alone.
            origins: which of `real`, `synthetic` to take.
            transform: gets the (C, H, W) uint8 image, gives what training wants.
            synthetic_transform: the same for synthetic images, which the policy does not transform again as reals
                are; by default `transform`.
        Raises:
            ConfigError: an origin that there is not, or a split without images.
            ArtifactError: a shard is missing, altered or of another schema.
        """
        unknown = [origin for origin in origins if origin not in ORIGINS]
        if unknown or not origins or isinstance(origins, str):
            raise ConfigError(f"origins {origins!r} cannot be read; give a list of {', '.join(ORIGINS)}")
        root = Path(folder)
        if not (root / "summary.json").is_file():
            raise ArtifactError(f"{root} has no summary.json, so it is no augmented data set; fetch it with `dvc get`")
        summary = read_json(root / "summary.json")
        self.class_names: list[str] = [str(name) for name in summary["class_names"]]
        self.slugs: list[str] = [str(slug) for slug in summary["slugs"]]
        names = [f"{origin}-{slug}.parquet" for origin in ORIGINS if origin in origins for slug in self.slugs]
        rows = pa.concat_tables([_read_shard(root / name, summary["files"].get(name, {})) for name in names])
        splits = sorted(set(rows.column("split").to_pylist()))
        rows = rows.filter(pc.equal(rows.column("split"), split))
        if not rows.num_rows:
            raise ConfigError(f"{root} has no images of split {split!r}; it has {', '.join(splits) or 'none'}")
        # An Arrow column, not a list: forked workers share its memory without touching a reference count.
        self._png = pc.struct_field(rows.column("image"), "bytes")
        self.labels: NDArray[np.int64] = rows.column("label").to_numpy()
        self.origins: NDArray[np.str_] = np.asarray(rows.column("origin").to_pylist(), dtype=np.str_)
        self.groups: NDArray[np.str_] = np.asarray(
            [group or "" for group in rows.column("group").to_pylist()], dtype=np.str_
        )
        agreement = pc.fill_null(rows.column("teacher_agreement"), 1.0)
        self.sureness: NDArray[np.float32] = agreement.to_numpy().astype(np.float32)
        self.transform = transform
        self.synthetic_transform = transform if isinstance(synthetic_transform, EllipsisType) else synthetic_transform
        self.policy: MixingPolicy = read_policy(summary.get("policy", {"name": "synthetic"}), self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The (C, H, W) uint8 image, or what the transform makes of it, and its label."""
        pixels = np.array(decode_png(self._png[int(index)].as_py()))  # a copy: Pillow's memory is read-only
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (H, W, C) -> (C, H, W)
        transform = self.synthetic_transform if self.origins[index] == SYNTHETIC else self.transform
        return (image if transform is None else transform(image)), int(self.labels[index])

    def indices(self, origin: str) -> list[int]:
        """Ascending indices of the images of one origin, as `torch.utils.data.Subset` takes them.

        Raises:
            ConfigError: neither `real` nor `synthetic`.
        """
        if origin not in ORIGINS:
            raise ConfigError(f"origin {origin!r} is unknown; choose {' or '.join(ORIGINS)}")
        return [int(index) for index in np.flatnonzero(self.origins == origin)]


def _read_shard(path: Path, facts: dict[str, Any]) -> pa.Table:
    if not path.is_file() or sha256_file(path) != facts.get("sha256"):
        raise ArtifactError(
            f"{path} is missing or no longer matches summary.json; run `dvc checkout`, or fetch it again"
        )
    count_rows(path)  # refuses another schema
    # Metadata names the classes in another form; without it shards of all versions can stand together.
    return pq.read_table(path, columns=COLUMNS, partitioning=None).replace_schema_metadata(None)
