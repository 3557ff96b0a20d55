"""The order of images: a permutation an epoch, split over ranks, reached from any step without reading."""

import pytest
from torch.utils.data import Dataset

from pretrain.training.loader import StepBatches, sample_rng, step_batches, steps_per_epoch


def batches(start=0, total=10, rank=0, world_size=1, accumulate=1, seed=0):
    return list(StepBatches(11, 4, seed, start, total, rank, world_size, accumulate))


def test_each_epoch_is_another_permutation_without_its_rest():
    keys = [key for batch in batches() for key in batch]
    by_epoch = {}
    for epoch, index, _ in keys:
        by_epoch.setdefault(epoch, []).append(index)
    assert sorted(by_epoch) == [0, 1, 2, 3, 4]  # floor(11 / 4) = 2 steps an epoch
    assert all(len(set(indexes)) == 8 for indexes in by_epoch.values())
    assert by_epoch[0] != by_epoch[1]
    assert batches(seed=1) != batches()


@pytest.mark.parametrize("start", [1, 2, 7])
def test_starting_later_gives_the_same_rest(start):
    assert batches(start) == batches()[start:]


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (1, 2), (2, 2)])
def test_ranks_and_micro_batches_share_the_global_batch(world_size, accumulate):
    parts = [batches(rank=rank, world_size=world_size, accumulate=accumulate) for rank in range(world_size)]
    for step, whole in enumerate(batches()):
        micro = [parts[r][step * accumulate + a] for a in range(accumulate) for r in range(world_size)]
        assert [key for batch in micro for key in batch] == whole


class Recorder(Dataset):
    def __init__(self):
        self.read = []

    def __getitem__(self, key):
        self.read.append(key)
        return key[1]


def test_seeking_reads_no_image():
    dataset = Recorder()
    loader = step_batches(dataset, num_items=11, batch_size=4, seed=0, start_step=9, total_steps=10, workers=0)
    assert len(list(loader)) == 1
    assert dataset.read == batches()[9]


def test_randomness_of_a_sample_is_its_own():
    draws = {tuple(sample_rng(s, e, i).random(2)) for s in range(2) for e in range(2) for i in range(2)}
    assert len(draws) == 8
    assert sample_rng(1, 2, 3).random() == sample_rng(1, 2, 3).random()


def test_errors():
    with pytest.raises(ValueError, match=r"--batch-size 12 is larger than the data set of 11"):
        steps_per_epoch(11, 12)
    with pytest.raises(ValueError, match="2 x 3"):
        batches(world_size=2, accumulate=3)
