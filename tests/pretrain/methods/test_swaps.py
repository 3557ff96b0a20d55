"""What a monitor exchanges within a crop: all of it moves, the same way each time, and nothing else changes."""

import pytest
import torch

from pretrain.methods.swaps import fixed_cycle, swap_contents


@pytest.mark.parametrize("length", [2, 3, 8, 98])
def test_a_cycle_leaves_nothing_in_its_place(length):
    order = fixed_cycle(length).tolist()
    assert sorted(order) == list(range(length)) and order == fixed_cycle(length).tolist()
    place, visited = 0, []
    for _ in range(length):
        visited.append(place)
        place = order[place]
    assert place == 0 and len(set(visited)) == length  # one cycle, so no fixed point
    assert length < 20 or sum(order[i] == (i + 1) % length for i in range(length)) < length / 10  # not neighbours


def test_a_cycle_of_one_and_of_none():
    assert fixed_cycle(1).tolist() == [0] and fixed_cycle(0).tolist() == []


def test_contents_are_swapped_pixel_by_pixel():
    torch.manual_seed(0)
    images, size = torch.randn(3, 3, 12, 20), 4
    ids = torch.stack([torch.randperm(15)[:7].sort().values for _ in range(3)])
    found, order = swap_contents(images, ids, size), fixed_cycle(7).tolist()
    expected = images.clone()
    for b in range(3):
        for k in range(7):
            to, source = ids[b, k].item(), ids[b, order[k]].item()
            for y in range(size):
                for x in range(size):
                    at = to // 5 * size + y, to % 5 * size + x
                    come = source // 5 * size + y, source % 5 * size + x
                    expected[b, :, at[0], at[1]] = images[b, :, come[0], come[1]]
    assert torch.equal(found, expected) and not torch.equal(found, images)
