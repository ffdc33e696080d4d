"""Whether 8-bit arithmetic is exact on this CPU."""

from __future__ import annotations

import platform

import torch

SATURATES = (
    "This CPU has no VNNI: sums of two products of 8 bits saturate at 16 bits in its instructions (AVX2), which can "
    "falsify results."
)


def saturates() -> bool:
    """Whether this is an x86 CPU without VNNI, where 8-bit weights must keep to half of their range."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        return not any(torch.cpu.get_capabilities().get(name) for name in ("avx512_vnni", "avx_vnni"))
    return not torch.cpu._is_vnni_supported()
