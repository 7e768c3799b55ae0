"""Losses of an arm: of one network, or of K networks that train side by side.

Owns how hard labels, mixed labels and weighted targets become a number. Targets that carry weights are rows of any
non-negative sum: a target of sum 0.5 counts half as much as one of sum 1.
"""

from torch import Tensor
from torch.nn import functional

from synthgen.classifier.arms import ArmSpec


def arm_loss(arm: ArmSpec, logits: Tensor, targets: Tensor, prior: Tensor, smoothing: float) -> Tensor:
    """The arm's loss of one network.

    Args:
        arm: for its loss.
        logits: (N, n_classes) float32.
        targets: (N,) int64 labels, or (N, n_classes) float32: labels that were mixed, made soft or weighted.
        prior: (n_classes,) float32 share of each label among the draws.
        smoothing: share of each target that is spread over all classes, in [0, 1).
    Returns:
        () float32; for labels and for rows of sum 1 what `torch.nn.functional.cross_entropy` gives.
    """
    if targets.is_floating_point() and arm.mixing is not None and not arm.mixing.has_plain_targets:
        return stacked_loss(arm, logits[None], targets[None], prior[None], smoothing)[0]
    if arm.loss == "logit_adjusted":
        return functional.cross_entropy(logits + prior.log(), targets, label_smoothing=smoothing)
    if arm.loss == "weighted":
        weight = 1.0 / (prior * len(prior))
        return functional.cross_entropy(logits, targets, weight=weight, label_smoothing=smoothing)
    return functional.cross_entropy(logits, targets, label_smoothing=smoothing)


def stacked_loss(arm: ArmSpec, logits: Tensor, targets: Tensor, prior: Tensor, smoothing: float) -> Tensor:
    """The arm's loss of each of K networks by itself.

    Args:
        arm: for its loss.
        logits: (K, N, n_classes) float32.
        targets: (K, N) int64 labels, or (K, N, n_classes) float32 as for `arm_loss`.
        prior: (K, n_classes) float32 share of each label among the draws of each network.
        smoothing: share of each target that is spread over all classes, in [0, 1).
    Returns:
        (K,) float32: for labels and rows of sum 1 what `torch.nn.functional.cross_entropy` gives for each network.
    """
    n_classes = logits.shape[2]
    if arm.loss == "logit_adjusted":
        logits = logits + prior.log()[:, None]
    log_p = logits.log_softmax(dim=2)  # (K, N, n_classes)
    is_dense = targets.is_floating_point()
    rows = targets if is_dense else functional.one_hot(targets, n_classes).to(log_p.dtype)
    weight = 1.0 / (prior * n_classes) if arm.loss == "weighted" else prior.new_ones(prior.shape)  # (K, n_classes)
    sums = rows.sum(dim=2, keepdim=True)  # (K, N, 1)
    wanted = (rows * (1.0 - smoothing) + sums * (smoothing / n_classes)) * weight[:, None]
    summed = -(wanted * log_p).sum(dim=(1, 2))
    # torch divides by the weights of the labels, or by the number of images where targets are shares of labels
    return summed / (sums.sum(dim=(1, 2)) if is_dense else (rows * weight[:, None]).sum(dim=(1, 2)))
