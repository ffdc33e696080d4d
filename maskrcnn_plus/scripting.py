"""What `torch.jit.script` says to parts whose Python it cannot compile."""

from __future__ import annotations

from typing import NoReturn


class NotScriptable:
    """Base of modules that can be traced, but not scripted."""

    def __prepare_scriptable__(self) -> NoReturn:  # torch.jit.script calls it for every module in a model
        raise NotImplementedError(
            f"torch.jit.script cannot compile {type(self).__name__}. Trace the model instead: "
            "torch.jit.trace(detectron2.export.TracingAdapter(model, inputs), ...)."
        )
