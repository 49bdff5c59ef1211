"""What machine this is, how many threads to use, and which precision it computes natively."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from typing import Any, Literal

import psutil
import torch

from finetune.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
# Compiled products that are kept for rows of many lengths: those of the last half a dozen of lengths.
KEPT_PRODUCTS = 128


def use_threads(threads: int | Literal["auto"]) -> int:
    """Set and return this process's CPU threads.

    Launchers set OMP_NUM_THREADS=1 to be safe, which leaves half of a two-core machine idle; `auto` takes the
    physical cores that this process may run on, divided by the processes of this machine.
    """
    count = threads if isinstance(threads, int) else 0
    if not count:
        physical = psutil.cpu_count(logical=False) or 1
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
        count = max(1, min(physical, allowed) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(count)
    return count


def reuse_freed_memory(wanted: bool) -> None:
    """Keep what tensors free for the next ones, where glibc would give it back and fault every page in again.

    A CPU's training step frees and takes the same few large buffers each time; measured on bert_cls with 16 rows an
    update, the step took 0.8 of its time. The process stays at its peak size. Linux with glibc only.
    """
    if not wanted or platform.libc_ver()[0] != "glibc" or has_accelerator():
        return
    libc = ctypes.CDLL(None)
    # Names and numbers of malloc.h: never map a buffer by itself, one arena, never trim, and grow in steps.
    mmap_max, arena_max, trim_threshold, top_pad = -4, -8, -1, -2
    for option, value in ((mmap_max, 0), (arena_max, 1), (trim_threshold, 2**31 - 1), (top_pad, 64 * 2**20)):
        libc.mallopt(option, value)


def keep_few_products(wanted: bool) -> None:
    """Let oneDNN keep `KEPT_PRODUCTS` of the products that it compiled, where its own 1,024 are a tenth of the memory.

    A batch of another length needs a dozen or two of its own, each compiled in 0.4 ms. On bert_cls with 32 rows an
    update, peak memory after 300 updates was 0.92 of what it is with 1,024. In 110 of them 1,558 were compiled and not
    802, about 3 ms an update; two runs of each took 265 ms an update either way. Only for rows that have lengths:
    images are of one size, and a deep convolutional network may need more than these in one update. The results are
    the same to the bit. A number that the user set stays. To be called before anything is computed.
    """
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")
    if wanted and not has_accelerator() and not any(name in os.environ for name in names):
        os.environ[names[0]] = str(KEPT_PRODUCTS)  # oneDNN reads it when it compiles for the first time


def has_accelerator() -> bool:
    """Whether torch sees a GPU or another accelerator."""
    return torch.accelerator.is_available()


def choose_precision(wanted: str) -> Precision:
    """`auto` resolved, and what the machine can't do refused.

    Raises:
        ConfigError: fp16 on a CPU, or bf16 on a GPU without it.
    """
    cuda = torch.cuda.is_available()
    if wanted == "auto":
        if cuda:
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        return "bf16" if not has_accelerator() and _cpu_has_bf16() else "fp32"
    if wanted == "fp16" and not cuda:
        raise ConfigError("train.precision=fp16 needs a CUDA GPU.", "Use train.precision=auto, bf16 or fp32.")
    if wanted == "bf16" and cuda and not torch.cuda.is_bf16_supported():
        raise ConfigError("train.precision=bf16 is not supported by this GPU.", "Use train.precision=fp16 or fp32.")
    return wanted  # type: ignore[return-value]


def describe(processes: int, threads: int) -> dict[str, Any]:
    """The machine, for the run record."""
    return {
        "cpu": _cpu_name(),
        # Virtual machines give processors of many kinds one name; what they compute with is what tells them apart.
        "instructions": torch.backends.cpu.get_cpu_capability() + (" with bf16" if _cpu_has_bf16() else ""),
        "cores": psutil.cpu_count(logical=False) or 1,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "processes": processes,
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
    }


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MiB."""
    # Linux counts what a parent held when it started this process into getrusage's number, but not into this one.
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="utf-8") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return round(int(line.split()[1]) / 2**10, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _cpu_has_bf16() -> bool:
    """Whether products in bf16 have instructions of their own: without them they are slower than in fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _cpu_name() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
