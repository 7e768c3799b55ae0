"""What the training loop and the sampler know of a generator and a discriminator.

Owns the two bases, and the settings that change while a training goes on: how much of the class input is let in
(`class_share`), how far a progressive network has grown (`growth`), where random inputs come from (`random`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from synthgen.gan.architectures.layers import within_class_std
from synthgen.gan.architectures.shape import GanShape


class Generator(nn.Module, ABC):
    """Latents, label and, for image-to-image kinds, further tensors to image.

    Attributes:
        shape: what it was built from.
        class_share: 0 (unconditional) to 1; factor on the class embedding.
        growth: level that is shown, see `pyramid.py`; the highest unless a progressive training is going on.
        truncation: in (0, 1]; below 1 trades variety for likeness.
        random: source of random layer inputs while training; None takes fixed ones.
        style_mixing: how often two styles are mixed while training, where the kind has styles.
    """

    def __init__(self, shape: GanShape) -> None:
        super().__init__()
        self.shape = shape
        self.class_share = 1.0
        self.growth = float(shape.n_halvings)
        self.truncation = 1.0
        self.random: torch.Generator | None = None
        self.style_mixing = 0.9

    @abstractmethod
    def forward(self, latents: Tensor, labels: Tensor, *content: Tensor) -> Tensor:
        """Makes images.

        Args:
            latents: (N, latents) float32, standard normal.
            labels: (N,) int64.
            content: what the architecture wants beside them.
        Returns:
            (N, C, H, W) float32 in [-1, 1].
        """

    def finish(self, image: Tensor) -> Tensor:
        """(N, C, H, W) raw output to [-1, 1], by tanh, or by a sigmoid over the same range."""
        return torch.tanh(image) if self.shape.output == "tanh" else torch.sigmoid(image) * 2.0 - 1.0


class Discriminator(nn.Module, ABC):
    """Image and label to one logit: how real the image looks as a member of its class.

    A kind implements `trunk`; judging by features and label is here: projection (Miyato and Koyama 2018,
    arXiv:1802.05637, eq. 3), concatenation of the class embedding (Mirza and Osindero 2014, arXiv:1411.1784; each class
    its own bias and direction through one hidden layer), or none. With `auxiliary` a second head names the class.

    Attributes:
        shape: what it was built from.
        class_share: 0 (unconditional) to 1; factor on what the label adds to the logit.
        growth: as in `Generator`.
    """

    N_FEATURES = 128

    def __init__(self, shape: GanShape) -> None:
        super().__init__()
        self.shape = shape
        self.class_share = 1.0
        self.growth = float(shape.n_halvings)
        n = self.N_FEATURES
        self.unconditional = nn.Linear(n, 1)
        if shape.conditioning == "projection":
            self.project = nn.Embedding(shape.n_classes, n)
            nn.init.normal_(self.project.weight, 0.0, 0.02)
        elif shape.conditioning == "concatenation":
            self.embed = nn.Embedding(shape.n_classes, shape.embedding)
            self.joint = nn.Sequential(nn.Linear(n + shape.embedding, n), nn.LeakyReLU(0.2), nn.Linear(n, 1))
        if shape.auxiliary:
            self.classify = nn.Linear(n, shape.n_classes)

    @abstractmethod
    def trunk(self, images: Tensor, members: Tensor, n_members: int) -> Tensor:
        """(N, C, H, W) images to (N, N_FEATURES); `members` (N,) are the groups whose spread is shown."""

    @abstractmethod
    def stages(self) -> Iterator[nn.Module]:
        """The trunk's parts from the image inwards, for freezing the first of them (FreezeD, arXiv:2002.10964)."""

    def features(self, images: Tensor, labels: Tensor, fakes: Tensor | None = None) -> Tensor:
        """What the heads see.

        Args:
            images: (N, C, H, W) float32 in [-1, 1].
            labels: (N,) int64.
            fakes: (N,) bool; reals and fakes judged in one batch keep a within-class spread of their own.
                None: all images are of one kind.
        Returns:
            (N, N_FEATURES) float32.
        """
        n_classes = self.shape.n_classes
        if fakes is None:
            return self.trunk(images, labels, n_classes)
        if self.shape.d_norm == "batch" and len(images) % 2 == 0:
            # batch statistics over reals and fakes together would tell them apart by the company they keep; the loop
            # hands over reals first, as many fakes after them
            reals, made = images.chunk(2)
            return torch.cat([self.trunk(x, y, n_classes) for x, y in zip((reals, made), labels.chunk(2), strict=True)])
        return self.trunk(images, labels + n_classes * fakes, 2 * n_classes)

    def score(self, features: Tensor, labels: Tensor) -> Tensor:
        """(N, N_FEATURES) and (N,) int64 to (N,) logits."""
        logits: Tensor = self.unconditional(features).squeeze(1)  # (N,)
        if self.shape.conditioning == "none" or self.class_share == 0.0:
            return logits
        if self.shape.conditioning == "projection":
            projected: Tensor = (features * self.project(labels)).sum(1)  # (N,)
            return logits + projected * self.class_share
        joined = torch.cat([features, self.embed(labels)], dim=1)  # (N, N_FEATURES + embedding)
        added: Tensor = self.joint(joined).squeeze(1)
        return logits + added * self.class_share

    def forward(self, images: Tensor, labels: Tensor, fakes: Tensor | None = None) -> Tensor:
        """Judges images: (N,) float32 logits, the same as for two batches; arguments as for `features`."""
        return self.score(self.features(images, labels, fakes), labels)

    def spread(self, x: Tensor, members: Tensor, n_members: int) -> Tensor:
        """(N, C, h, w) to (N, C + 1, h, w): with the within-class standard deviation as a further channel."""
        if self.shape.minibatch_std > 0.0:
            spread = self.shape.minibatch_std * within_class_std(x, members, n_members)
        else:
            spread = torch.zeros_like(x[:, :1])
        return torch.cat([x, spread], dim=1)
