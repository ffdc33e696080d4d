"""Freed memory is reused, with fewer page faults, and what cannot be reused is given back."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

# The module by itself: the package would import Detectron2 and timm.
ALONE = f"import sys; sys.path.append({str(Path(__file__).resolve().parents[1] / 'maskrcnn_plus')!r})\n"

CODE = """
import resource, torch
from allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else True
torch.ones(16 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(16 * 2**20)  # 64 MB
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_repeated_allocations_cause_fewer_page_faults():
    faults = {}
    for mode in ("keep", "default"):
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", ALONE + CODE, mode], capture_output=True, text=True, check=True
        )
        kept, count = result.stdout.split()
        assert kept == "True"
        faults[mode] = int(count)
    assert faults["keep"] * 2 < faults["default"]


GROWTH = """
import torch
from allocator import HeapLimit, _private_bytes, keep_freed_memory
keep_freed_memory()
before = _private_bytes()
limit = HeapLimit()
limit()  # a first piece of work, which takes nothing
blocks = [torch.ones(4 * 2**20) for _ in range(30)]  # 16 MB each
del blocks
if sys.argv[1] == "limit":
    limit()
print((_private_bytes() - before) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_freed_memory_above_the_limit_is_given_back():
    grown = {
        mode: int(
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", ALONE + GROWTH, mode], capture_output=True, text=True, check=True
            ).stdout
        )
        for mode in ("limit", "none")
    }
    assert grown["limit"] < 100, grown
    assert grown["none"] > 400, grown
