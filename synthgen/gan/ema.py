"""The moving average of a generator's weights, which is what samples.

torch's `AveragedModel` reads its step count from the device at every update, which waits for the device and costs a
tenth of a small step; the count here is a plain number.
"""

import copy

import torch

from synthgen.gan.architectures.interface import Generator


class MovingAverage:
    """Exponential moving average of a network, forgetting its first steps sooner.

    Step n uses min(decay, (1 + n) / (10 + n)), so that a short training is not averaged over its own beginning
    (with 0.998 and 750 steps, a third of the weight would be). Batch norm's running statistics are averaged too.

    Source: the ramp of TensorFlow's ExponentialMovingAverage (`num_updates`).

    Attributes:
        network: the average, in train mode as the original was.
        n: updates so far.
    """

    def __init__(self, network: Generator, decay: float, n: int = 0) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay, self.n = decay, n
        self._follow(network)

    def _follow(self, network: Generator) -> None:
        ours, theirs = self.network.state_dict(), network.state_dict()
        self._averaged = [v for v in ours.values() if v.is_floating_point()]
        self._current = [v for v in theirs.values() if v.is_floating_point()]
        self._copied = [(ours[k], theirs[k]) for k in ours if not ours[k].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the network's present weights; integers are copied."""
        rate = min(self.decay, (1.0 + self.n) / (10.0 + self.n))
        torch._foreach_lerp_(self._averaged, self._current, 1.0 - rate)
        for ours, theirs in self._copied:
            ours.copy_(theirs)
        self.n += 1
