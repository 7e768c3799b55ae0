"""Two GAN trainings on a core each, as the flows run them, against one after the other on both cores."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch
from bare_loop import BareLoop
from gan_case import make_case
from ratios import Measured, compare

CPU = torch.device("cpu")


def _train(steps: int, n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    BareLoop(make_case(steps, CPU)).train()


def side_by_side_against_in_turn(steps: int, rounds: int) -> Measured:
    """Both in processes that stand already: what is timed is the training."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context) as two, ProcessPoolExecutor(1, context) as one:

        def side_by_side() -> None:
            list(two.map(_train, [steps, steps], [1, 1]))

        def in_turn() -> None:
            list(one.map(_train, [steps, steps], [2, 2]))

        return compare(side_by_side, in_turn, CPU, rounds=rounds)
