"""Which shards of `data/synthetic/FOLD/` fill the synthetic share of a class, pool by pool.

Owns the names of shards and the order in which one stands in for another, so that training, the probe, the release and
the report mean the same images by one word. Opens no file.
"""

from collections.abc import Collection
from typing import Literal

Pool = Literal["default", "shared", "morphed"]
"""`default`: each class's own generator; `shared`: the shared GAN, also for classes with one of their own; `morphed`:
morphs (`synthgen.morphing`)."""


def shard_name(slug: str, pool: Pool) -> str:
    """Name, without ending, of the shard that a pool has of a class: `SLUG`, `SLUG.shared` or `SLUG.morphed`."""
    return slug if pool == "default" else f"{slug}.{pool}"


def shards_for(slug: str, pool: str, present: Collection[str]) -> list[str]:
    """Names of the shards that a class is taken from, the first one that holds an image.

    Samples of the shared GAN stand in for those of an adapted one, which look much alike. Nothing of a GAN stands in
    for morphs: a class of another texture than all others would be told by it.

    Args:
        slug: of the class.
        pool: a `Pool`.
        present: names of the shards that there are.
    """
    if pool == "morphed":
        return [shard_name(slug, "morphed")]
    shared = shard_name(slug, "shared")
    if shared not in present:  # the class's own generator is the shared one
        return [slug]
    return [shared] if pool == "shared" else [slug, shared]
