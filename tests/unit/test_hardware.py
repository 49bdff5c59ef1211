"""Precision and threads: what `auto` means on each kind of machine, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
import torch

from finetune.errors import ConfigError
from finetune.hardware import KEPT_PRODUCTS, choose_precision, describe, peak_rss_mb, use_threads

pytestmark = pytest.mark.unit


def machine(
    monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False, bf16: bool = False, other: bool = False, amx: bool = False
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: cuda or other)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.parametrize(
    ("cuda", "bf16", "other", "amx", "chosen"),
    [
        (True, True, False, False, "bf16"),
        (True, False, False, True, "fp32"),
        (False, False, False, True, "bf16"),
        (False, False, False, False, "fp32"),
        (False, False, True, True, "fp32"),  # an Apple GPU computes; what the CPU could do does not matter
    ],
)
def test_auto_takes_bf16_only_where_what_computes_has_it(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, bf16: bool, other: bool, amx: bool, chosen: str
) -> None:
    machine(monkeypatch, cuda=cuda, bf16=bf16, other=other, amx=amx)
    assert choose_precision("auto") == chosen


def test_what_was_asked_for_is_taken_or_refused_never_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    assert choose_precision("fp32") == "fp32"
    assert choose_precision("bf16") == "bf16"
    with pytest.raises(ConfigError, match="fp16 needs a CUDA GPU"):
        choose_precision("fp16")
    machine(monkeypatch, cuda=True)
    assert choose_precision("fp16") == "fp16"
    with pytest.raises(ConfigError, match="bf16 is not supported"):
        choose_precision("bf16")


@pytest.mark.parametrize(
    ("physical", "allowed", "local", "threads"), [(8, 16, 1, 8), (8, 2, 1, 2), (8, 16, 3, 2), (2, 2, 4, 1)]
)
def test_auto_threads_are_the_physical_cores_shared_among_local_processes(
    monkeypatch: pytest.MonkeyPatch, physical: int, allowed: int, local: int, threads: int
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: physical)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    try:
        assert use_threads("auto") == torch.get_num_threads() == threads
        assert use_threads(3) == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_description_is_of_this_machine() -> None:
    told = describe(2, 3)
    assert told["cpu"]
    assert told["cores"] == psutil.cpu_count(logical=False)
    assert (told["processes"], told["threads"]) == (2, 3)
    assert 10 < peak_rss_mb() < 100_000


def test_processors_of_one_name_are_told_apart_by_what_they_compute_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual machines call them all the same; records of the two must not become one table."""
    told = []
    for amx in (False, True):
        machine(monkeypatch, amx=amx)
        told.append(describe(1, 1))
    assert told[0]["cpu"] == told[1]["cpu"]
    assert told[0]["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert told[1]["instructions"] == f"{told[0]['instructions']} with bf16"


COMPILED = """
import sys, torch
from finetune.hardware import KEPT_PRODUCTS, keep_few_products
keep_few_products(sys.argv[1] == "wanted")
for rows in [*range(64, KEPT_PRODUCTS + 75), 64]:  # the first is asked for again when too many others came between
    torch.mm(torch.ones(rows, 32, dtype=torch.bfloat16), torch.ones(32, 32, dtype=torch.bfloat16))
"""


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no oneDNN product in bf16 here")
def test_few_compiled_products_are_kept_unless_the_user_set_a_number() -> None:
    def compiled(wanted: str, **others: str) -> int:
        environment = {key: value for key, value in os.environ.items() if "PRIMITIVE_CACHE" not in key}
        environment |= {"ONEDNN_VERBOSE": "profile_create", **others}
        line = [sys.executable, "-c", COMPILED, wanted]
        found = subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout
        return found.count("create:cache_miss")

    different = KEPT_PRODUCTS + 11
    assert compiled("not wanted") == different
    assert compiled("wanted") == different + 1
    assert compiled("wanted", ONEDNN_PRIMITIVE_CACHE_CAPACITY="500") == different
