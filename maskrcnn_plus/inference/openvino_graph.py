"""An OpenVINO graph as a function of PyTorch's tensors on the CPU.

Shape shorthand: R rows, of which a graph may see a few at a time.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn_plus.errors import UserError

__all__ = ["Graph", "import_openvino", "to_arrays"]

HINTS = {"float32": "f32", "bfloat16": "bf16"}
"""Precision in which a graph computes what is not quantised -> OpenVINO's name of it."""

_STEP = 8  # every new number of rows costs the compilation of kernels


def import_openvino() -> Any:
    """The package `openvino`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise UserError("OpenVINO is not installed: pip install 'maskrcnn_plus[export]'") from error
    return openvino


class Graph:
    """A compiled graph. Tensors of four dimensions are channels-last in it, and [N, C, H, W] outside."""

    def __init__(self, source: str | Path | Any, precision: str = "float32", rows: int | None = None) -> None:
        """Compile for the CPU, with as many threads as PyTorch has.

        Args:
            source: the .xml file beside its .bin, or an `openvino.Model`.
            precision: key of `HINTS`. It is always said, as OpenVINO would choose bfloat16 where the CPU has it.
            rows: most rows (first dimension) at once; None for all.

        Raises:
            UserError: the file is no graph that this OpenVINO can read.
        """
        openvino = import_openvino()
        options = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # the threads of PyTorch share the cores
        }
        try:
            model = _core().read_model(str(source)) if isinstance(source, str | Path) else source
            self._compiled = _core().compile_model(model, "CPU", options)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1][:200]
            raise UserError(f"{source} cannot be run by OpenVINO {openvino.__version__}: {reason}") from error
        self._rows = rows
        self._lock = threading.Lock()  # a compiled model has one set of buffers

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Run the graph.

        Args:
            inputs: float32, [N, C, H, W] or of other dimensions; with `rows`, of R >= 0 rows each.
        """
        rows = len(inputs[0])
        if self._rows is None:
            return self._run(inputs)
        if rows == 0:
            one = self._run([torch.zeros(1, *each.shape[1:]) for each in inputs])
            return [each[:0] for each in one]
        parts = [self._run_padded([each[k : k + self._rows] for each in inputs]) for k in range(0, rows, self._rows)]
        return [torch.cat(each) for each in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]

    def _run_padded(self, inputs: list[Tensor]) -> list[Tensor]:
        """With a number of rows that comes again, so that its kernels are there."""
        rows = len(inputs[0])
        if missing := min(-rows % _STEP, self._rows - rows):
            inputs = [torch.cat([each, each[-1:].expand(missing, *each.shape[1:])]) for each in inputs]
        return [each[:rows] for each in self._run(inputs)]

    def _run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        arrays = to_arrays(inputs)
        with self._lock:
            results = self._compiled(arrays, share_inputs=True, share_outputs=False)
            outputs = [torch.from_numpy(results[index]) for index in range(len(self._compiled.outputs))]
        return [each.permute(0, 3, 1, 2) if each.dim() == 4 else each for each in outputs]


def to_arrays(inputs: Sequence[Tensor]) -> list[np.ndarray]:
    """Tensors as the arrays that a graph takes, in the same memory where it can be."""
    return [(each.permute(0, 2, 3, 1) if each.dim() == 4 else each).contiguous().numpy() for each in inputs]


@functools.cache
def _core() -> Any:
    return import_openvino().Core()
