"""Random numbers for data and network that depend only on the seed, the rank and the position in the training.

A resumed training then gets the same augmented images and the same dropout as an uninterrupted one, with any number of
data loading workers.
"""
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import Dataset, Sampler

from .naming_dataset import NamingDataset


def seed_all(*key: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators from several numbers."""
    python, numpy, pytorch = _seeds(key)
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(pytorch)


def _seeds(key: tuple[int, ...]) -> tuple[int, int, int]:
    words = np.random.SeedSequence(key).generate_state(3, np.uint64).tolist()
    return words[0], words[1] % (1 << 32), words[2] >> 1  # the largest seed that each generator accepts


@contextmanager
def random_stream(*key: int) -> Iterator[None]:
    """Within this context, the global CPU generators are seeded by several numbers; afterwards they are restored."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    python, numpy, pytorch = _seeds(key)
    random.seed(python)
    np.random.seed(numpy)
    torch.default_generator.manual_seed(pytorch)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Draw(int):
    """An index of a data set with the time when it was drawn.

    Args:
        index: The index.
        time: Epoch and position in the epoch of this process; the epoch is 0 if the sampler never ends.
    """

    time: tuple[int, int]

    def __new__(cls, index: int, time: tuple[int, int]):
        draw = super().__new__(cls, index)
        draw.time = time
        return draw

    def __getnewargs__(self) -> tuple:
        return int(self), self.time


@DATA_SAMPLERS.register_module()
class DrawSampler(Sampler):
    """Yields the indices of another sampler as :class:`Draw`.

    Args:
        sampler: Config of the other sampler.
        dataset: The data set.
        seed: Seed of the other sampler. Defaults to None.
    """

    def __init__(self, sampler: dict, dataset: Dataset, seed: int | None = None):
        self.sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.position = 0
        if hasattr(self.sampler, 'skip'):  # MMEngine calls it to resume without loading data
            self.skip = self._skip

    def _skip(self, num_samples: int) -> None:
        self.sampler.skip(num_samples)
        self.position = num_samples

    def __iter__(self) -> Iterator[Draw]:
        epoch, start = getattr(self.sampler, 'epoch', 0), self.position
        for position, index in enumerate(self.sampler, start):
            yield Draw(index, (epoch, position))

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str):
        if name == 'sampler':  # does not exist yet during unpickling
            raise AttributeError(name)
        return getattr(self.sampler, name)


@DATASETS.register_module()
class SeededDataset(NamingDataset):
    """A data set whose samples are augmented with random numbers that depend only on ``seed``, rank and draw.

    Args:
        dataset: The data set, or its config.
        seed: Seed of the training.
    """

    def __init__(self, dataset: Dataset | dict, seed: int):
        super().__init__(dataset)
        self.seed, self.rank = seed, get_rank()

    def __getitem__(self, index: int):
        if not isinstance(index, Draw):
            return super().__getitem__(index)
        with random_stream(self.seed, self.rank, *index.time):
            return super().__getitem__(int(index))


class SeedIterationHook(Hook):
    """Seeds dropout and all other randomness of an iteration by seed, rank and iteration.

    Args:
        seed: Seed of the training.
    """

    priority = 'VERY_HIGH'

    def __init__(self, seed: int):
        self.seed = seed

    def before_train_iter(self, runner, batch_idx: int, data_batch: dict | Sequence | None = None) -> None:
        seed_all(self.seed, get_rank(), runner.iter)
