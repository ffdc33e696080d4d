"""Freed memory is reused: page faults of repeated large allocations more than halve."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch
from maskrcnn_plus.allocator import keep_freed_memory
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
            [sys.executable, "-W", "ignore", "-c", CODE, mode], capture_output=True, text=True, check=True
        )
        kept, count = result.stdout.split()
        assert kept == "True"
        faults[mode] = int(count)
    assert faults["keep"] * 2 < faults["default"]
