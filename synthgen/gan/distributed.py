"""One GAN trained by several processes, started by `torchrun`, that compute what one process would.

Owns whether this process is one of several, joining and leaving them, each one's device and rows, and everything that
crosses from one to another: gradients, statistics of a batch, decisions. Refuses to decide anything itself, to start
processes and to touch files.

Every process draws the same batch and the same random numbers and works on every n-th row, so a state on disk is the
same for all of them and for any number of them. While a part of a batch is worked on (`Peers.as_one`), random numbers
are drawn for the whole part and each process keeps those of its rows, and batch norm and the within-class spread of D
take their statistics over all rows (`synthgen.gan.one_batch`). Gradients are then added up, in one piece.
`DistributedDataParallel` is not used: its hooks expect one forward and one backward per step, and R1 differentiates a
gradient.

Before anything crosses, the processes exchange one number on the CPU: a process without memory says so there, and all
of them leave the step at the same place. Collectives must be the same on all sides, so a process cannot just stop.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor

from synthgen.errors import ConfigError, DeviceError, TrainingError
from synthgen.gan.architectures.interface import Discriminator
from synthgen.gan.one_batch import OneBatch, shared_spread

SILENCE_LIMIT = timedelta(minutes=30)
"""The longest that a process waits for the others; the first one looks at samples and writes while they wait."""
LEAST_ROWS = 4
"""Rows of a process in a part: fewer could not be told from numbers that are drawn once for a batch."""


class PeerOutOfMemoryError(torch.OutOfMemoryError):
    """Another process of this training is out of memory."""


@dataclass(frozen=True)
class Place:
    """Which of how many processes this one is.

    Attributes:
        rank: from 0; n: of all processes; local_rank: from 0 among those of this machine.
    """

    rank: int
    n: int
    local_rank: int


def own_place(environment: Mapping[str, str] = os.environ) -> Place:
    """What `torchrun` says in RANK, WORLD_SIZE and LOCAL_RANK; Place(0, 1, 0) where that is one, or not set.

    Raises:
        ConfigError: they are not whole numbers that fit each other.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        return Place(0, 1, 0)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: environment.get(name, "") for name in names}
    numbers = [int(text) if text.isascii() and text.isdigit() else -1 for text in given.values()]
    place = Place(*numbers)
    if not (0 <= place.rank < place.n and 0 <= place.local_rank <= place.rank):
        raise ConfigError(
            f"{', '.join(f'{name}={text!r}' for name, text in given.items())} do not name one of several processes; "
            "start them with torchrun, or unset WORLD_SIZE for one process"
        )
    return place


def device_of(place: Place, device: torch.device) -> torch.device:
    """The device of one of several processes.

    Args:
        place: of the process.
        device: that all were asked for. `cuda` gives each process a card of its own, `cuda:N` the same to all.
    Raises:
        DeviceError: fewer cards than processes, or a device that processes cannot share.
    """
    if device.type == "cpu" or place.n == 1:
        return device
    if device.type != "cuda":
        raise DeviceError(
            f"{place.n} processes cannot train on {device.type}; use --device cpu or cuda, or one process"
        )
    if _is_named(device):
        return device
    n_cards = torch.cuda.device_count()
    if place.local_rank >= n_cards:
        raise DeviceError(
            f"process {place.local_rank} of this machine has no card of its own, there are {n_cards}; start torchrun "
            f"with --nproc_per_node={max(n_cards, 1)}"
        )
    return torch.device("cuda", place.local_rank)


def _is_named(device: torch.device) -> bool:
    """Whether one card was asked for, `cuda:N`."""
    return ":" in str(device)


class Peers:
    """The processes of one training, seen from one of them; of a single one, every method costs nothing.

    Attributes:
        rank: of this process; n: of all; leads: this one writes, shows progress and looks at samples.
    """

    def __init__(self, rank: int = 0, n: int = 1, side: Any = None) -> None:
        """Keeps the place; `side` is a group that talks over the CPU, None for the default one."""
        self.rank, self.n, self.side = rank, n, side
        self.leads = rank == 0

    def require_even(self, batch: int) -> None:
        """Refuses a batch that the processes cannot share evenly.

        Raises:
            ConfigError: they would have different numbers of rows, or fewer than `LEAST_ROWS`.
        """
        if self.n > 1 and (batch % self.n or batch // self.n < LEAST_ROWS):
            raise ConfigError(
                f"pretrain.batch {batch} cannot be shared by {self.n} processes; take a multiple of {self.n}, at least "
                f"{LEAST_ROWS * self.n}, or another --nproc_per_node"
            )

    def own_rows(self, rows: Tensor) -> Tensor:
        """(N,) rows of a part of a batch to every n-th of them: a part stands in the order of its labels."""
        return rows if self.n == 1 else rows[self.rank :: self.n]

    @contextmanager
    def as_one(self, n_rows: int, noise: torch.Generator, discriminator: Discriminator) -> Iterator[None]:
        """While the block runs, draws from `noise` and statistics of batches are those of all `n_rows` rows.

        Args:
            n_rows: of the part of the batch that the processes share.
            noise: in the same state in all of them, before and after.
            discriminator: shows its within-class spread over all rows.
        """
        if self.n == 1:
            yield
            return
        own_spread = partial(shared_spread, discriminator, self.add_up)
        discriminator.spread = own_spread  # type: ignore[method-assign]  # for this block only
        try:
            with OneBatch(self.rank, self.n, self.add_up, noise, n_rows):
                yield
        finally:
            del discriminator.__dict__["spread"]

    def agree(self, *, out_of_memory: bool = False) -> None:
        """Meets the others before something crosses, and once more at the end of a step.

        Args:
            out_of_memory: what this process says; the others leave the step.
        Raises:
            PeerOutOfMemoryError: another process said so, and not this one.
            TrainingError: another process is gone.
        """
        if self.n == 1:
            return
        said = torch.tensor(float(out_of_memory))
        self._cross(lambda distributed: distributed.all_reduce(said, group=self.side))
        if said.item() and not out_of_memory:
            raise PeerOutOfMemoryError("another process of this training is out of memory")

    def report_out_of_memory(self, error: torch.OutOfMemoryError) -> None:
        """Tells the others that this process is out of memory, unless that is where it knows it from."""
        if not isinstance(error, PeerOutOfMemoryError):
            self.agree(out_of_memory=True)

    def add_up(self, tensor: Tensor) -> Tensor:
        """Replaces a contiguous tensor, in place, by its sum over the processes; returns it."""
        if self.n > 1:
            self.agree()
            self._cross(lambda distributed: distributed.all_reduce(tensor))
        return tensor

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Adds up the gradients of all processes, whose losses carry the share of their rows as a factor."""
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.n == 1 or not grads:
            return
        flat = self.add_up(torch.cat([grad.reshape(-1) for grad in grads]))  # (sum of sizes,)
        pieces = torch.split(flat, [grad.numel() for grad in grads])
        for grad, piece in zip(grads, pieces, strict=True):
            grad.copy_(piece.view(grad.shape))

    @torch.no_grad()
    def means(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) logits of this process's reals and fakes to the () means over the rows of all."""
        if self.n == 1:
            return real_logits.mean(), fake_logits.mean()
        count = real_logits.new_tensor(float(len(real_logits)))
        found = self.add_up(torch.stack([real_logits.sum(), fake_logits.sum(), count]))  # (3,)
        return found[0] / found[2], found[1] / found[2]

    @torch.no_grad()
    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor, in place, by its mean over the processes."""
        if self.n == 1 or not tensors:
            return
        flat = self.add_up(torch.cat([tensor.reshape(-1) for tensor in tensors])).div_(self.n)
        pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view(tensor.shape))

    def mean_numbers(self, numbers: dict[str, float]) -> dict[str, float]:
        """The mean of each number over the processes; NaN where one of them has it."""
        if self.n == 1 or not numbers:
            return numbers
        self.agree()
        values = torch.tensor(list(numbers.values()), dtype=torch.float64)
        self._cross(lambda distributed: distributed.all_reduce(values, group=self.side))
        return dict(zip(numbers, (values / self.n).tolist(), strict=True))

    def from_first(self, value: Any) -> Any:
        """What the first process hands in, as JSON brings it to the others; theirs is ignored."""
        if self.n == 1:
            return value
        text = json.dumps(value).encode() if self.leads else b""
        length = torch.tensor(len(text))
        self._cross(lambda distributed: distributed.broadcast(length, 0, group=self.side))
        letters = torch.zeros(int(length), dtype=torch.uint8)
        if self.leads:
            letters.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        self._cross(lambda distributed: distributed.broadcast(letters, 0, group=self.side))
        return json.loads(bytes(letters.tolist()))

    def require_equal(self, what: str, tensors: Sequence[Tensor]) -> None:
        """Makes sure that the processes have not drifted apart.

        Args:
            what: for the message.
            tensors: compared, as sums, with those of the first process; NaN equals NaN.
        Raises:
            TrainingError: they differ.
        """
        if self.n == 1:
            return
        sums = torch.stack([tensor.detach().double().sum().cpu() for tensor in tensors])  # (len(tensors),)
        first = sums.clone()
        self._cross(lambda distributed: distributed.broadcast(first, 0, group=self.side))
        differs = torch.tensor(float(not torch.equal(sums.nan_to_num(), first.nan_to_num())))
        self._cross(lambda distributed: distributed.all_reduce(differs, group=self.side))
        if differs.item():
            raise TrainingError(
                f"{what} differ between the {self.n} processes of this training; let all of them read the same "
                "project folder with the same version of torch on machines of one kind, or train with one process"
            )

    def _cross(self, exchange: Callable[[Any], Any]) -> None:
        from torch import distributed

        try:
            exchange(distributed)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise TrainingError(
                f"process {self.rank} of {self.n} no longer hears the others ({str(error).splitlines()[0][:120]}); one "
                "of them has ended or hangs, its message stands above; start the same command again, it goes on from "
                "the last state kept"
            ) from error


ALONE = Peers()
"""The one process of a training that no `torchrun` started."""


@contextmanager
def join_peers(device: torch.device, limit: timedelta = SILENCE_LIMIT) -> Iterator[tuple[Peers, torch.device]]:
    """Joins the processes that `torchrun` started beside this one, and leaves them after the block.

    Args:
        device: that was asked for.
        limit: the longest that one waits for another.
    Yields:
        the peers, `ALONE` where there are none, and this process's device.
    Raises:
        ConfigError, DeviceError: see `own_place` and `device_of`.
        TrainingError: the others do not answer.
    """
    place = own_place()
    if place.n == 1:
        yield ALONE, device
        return
    from torch import distributed

    own = device_of(place, device)
    # NCCL takes one process per card
    backend = "nccl" if own.type == "cuda" and not _is_named(device) else "gloo"
    if own.type == "cuda":
        torch.cuda.set_device(own)
    try:
        distributed.init_process_group(backend, rank=place.rank, world_size=place.n, timeout=limit)
        side = distributed.new_group(backend="gloo", timeout=limit) if backend == "nccl" else None
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"process {place.rank} of {place.n} cannot join the others ({str(error).splitlines()[0][:120]}); start "
            "all of them with torchrun"
        ) from error
    peers = Peers(place.rank, place.n, side)
    try:
        yield peers, own
        peers.agree()  # the first one has written what it had to
    finally:
        distributed.destroy_process_group()
