"""Random numbers are functions of their purpose, and the functions stay the same from version to version."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.randomness import fold, numpy_generator, seed_torch

pytestmark = pytest.mark.unit


def test_the_numbers_are_the_same_on_every_machine_and_in_every_version() -> None:
    """A golden: another value here makes every run and every resumed checkpoint another one."""
    assert fold(0) == 4761921975702974394
    assert fold(0, "dropout", 3, 1) == 7556355655149655764


def test_each_purpose_has_numbers_of_its_own() -> None:
    seeds = {fold(seed, name, update) for seed in range(3) for name in ("order", "dropout") for update in range(50)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert fold(1, 23) != fold(12, 3)


def test_torch_gives_the_same_numbers_whatever_ran_before() -> None:
    seed_torch(0, "dropout", 5, 0)
    first = torch.rand(4)
    torch.rand(11)
    seed_torch(0, "dropout", 5, 0)
    assert torch.equal(torch.rand(4), first)
    seed_torch(0, "dropout", 5, 1)
    assert not torch.equal(torch.rand(4), first)


def test_torch_is_seeded_as_by_its_own_function() -> None:
    seed_torch(3, "head")
    ours = torch.rand(4)
    torch.manual_seed(fold(3, "head"))
    assert torch.equal(torch.rand(4), ours)


def test_with_an_accelerator_its_generators_are_seeded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch, "manual_seed", seen.append)
    seed_torch(3, "head")
    assert seen == [fold(3, "head")]


def test_numpy_gives_the_same_numbers_and_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].tolist()
    assert numpy_generator(0, "order", 1).random() == numpy_generator(0, "order", 1).random()
    assert numpy_generator(0, "order", 1).random() != numpy_generator(0, "order", 2).random()
    assert np.random.get_state()[1].tolist() == before
