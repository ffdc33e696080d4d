"""The source fixes that let Detectron2 0.6 run on Python 3.11, torch 2, numpy 2 and pillow 10 or newer.

Each entry says which file, what is replaced by what, and why. `tools/install_detectron2.py` applies them to the
source archive; an entry whose text is not found exactly `count` times stops the installation.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fix:
    """One replacement in one file of the source archive."""

    file: str
    old: str
    new: str
    why: str
    count: int = 1


_NUMPY = "numpy 1.24 removed the aliases of Python's own types"
_NO_C = "the compiled module is missing here: only rotated boxes and deformable convolution need it"
_AMP = "AMP works on CPUs too, and torch.cuda.amp is deprecated"

_OPTIONAL_C = """try:
    from detectron2 import _C
except ImportError:
    from detectron2.utils.env import MissingExtension

    _C = MissingExtension()"""

_MISSING_EXTENSION = '''

class MissingExtension:
    """Stands in for detectron2._C: rotated boxes and Detectron2's deformable convolution need the compiled module."""

    def __getattr__(self, name):
        raise RuntimeError(
            f"detectron2._C.{name} is not available: this Detectron2 was installed without its compiled extension, "
            "so rotated boxes and its own deformable convolution cannot run. Build Detectron2 from its official "
            "repository to use them, or use torchvision.ops.deform_conv2d."
        )
'''

_RESOURCE_OLD = """cfg_file = pkg_resources.resource_filename(
        "detectron2.model_zoo", os.path.join("configs", config_path)
    )"""
_RESOURCE_NEW = """cfg_file = str(
        importlib.resources.files("detectron2.model_zoo").joinpath("configs", config_path)
    )"""

_FAST_EVAL_OLD = "from detectron2.evaluation.fast_eval_api import COCOeval_opt"
_FAST_EVAL_NEW = """try:
    from detectron2.evaluation.fast_eval_api import COCOeval_opt
except ImportError:
    COCOeval_opt = COCOeval"""

_EXPORT_OLD = "from .api import *\n"
_EXPORT_NEW = """try:
    from .api import *
except ImportError:  # caffe2 is gone
    pass
"""

_BLACK_OLD = """        import black

"""
_BLACK_RETURN_OLD = """        try:
            return black.format_str(py_str, mode=black.Mode())
        except black.InvalidInput:
            return py_str"""
_BLACK_RETURN_NEW = """        try:
            import black
        except ImportError:  # only the layout of the text depends on it
            return py_str
        try:
            return black.format_str(py_str, mode=black.Mode())
        except black.InvalidInput:
            return py_str"""

FIXES = (
    Fix("data/transforms/transform.py", "Image.LINEAR", "Image.BILINEAR", "pillow 10 removed the alias"),
    Fix("evaluation/pascal_voc_evaluation.py", "np.bool)", "bool)", _NUMPY, count=2),
    Fix("evaluation/sem_seg_evaluation.py", "dtype=np.int)", "dtype=int)", _NUMPY, count=2),
    Fix("evaluation/sem_seg_evaluation.py", "np.float)", "float)", _NUMPY, count=5),
    Fix("structures/masks.py", "np.bool)", "bool)", _NUMPY, count=3),
    Fix("data/datasets/pascal_voc.py", "dtype=np.str)", "dtype=str)", _NUMPY),
    Fix("data/build.py", "dtype=np.int\n", "dtype=int\n", _NUMPY),
    Fix("data/build.py", "dtype=np.int)", "dtype=int)", _NUMPY),
    Fix("utils/visualizer.py", "np.bool)", "bool)", _NUMPY, count=3),
    Fix("utils/video_visualizer.py", "dtype=np.bool)", "dtype=bool)", _NUMPY),
    Fix("utils/env.py", '\n__all__ = ["seed_all_rng"]\n', '\n__all__ = ["seed_all_rng"]\n' + _MISSING_EXTENSION, _NO_C),
    Fix("layers/deform_conv.py", "from detectron2 import _C", _OPTIONAL_C, _NO_C),
    Fix("layers/roi_align_rotated.py", "from detectron2 import _C", _OPTIONAL_C, _NO_C),
    Fix("layers/rotated_boxes.py", "from detectron2 import _C", _OPTIONAL_C, _NO_C),
    Fix(
        "layers/nms.py",
        "    return torch.ops.detectron2.nms_rotated(boxes, scores, iou_threshold)",
        _OPTIONAL_C.replace("\n", "\n    ").replace("try:", "    try:", 1)
        + "\n        return _C.nms_rotated(boxes, scores, iou_threshold)"
        + "\n    return torch.ops.detectron2.nms_rotated(boxes, scores, iou_threshold)",
        _NO_C,
    ),
    Fix("evaluation/coco_evaluation.py", _FAST_EVAL_OLD, _FAST_EVAL_NEW, _NO_C),
    Fix("model_zoo/model_zoo.py", "import os\n", "import importlib.resources\nimport os\n", "pkg_resources is gone"),
    Fix("model_zoo/model_zoo.py", "import pkg_resources\n", "", "setuptools 81 removed pkg_resources"),
    Fix("model_zoo/model_zoo.py", _RESOURCE_OLD, _RESOURCE_NEW, "setuptools 81 removed pkg_resources"),
    Fix("export/__init__.py", _EXPORT_OLD, _EXPORT_NEW, "torch 2 has no caffe2"),
    Fix(
        "data/common.py",
        "self._rng.sample(self._fallback_candidates, k=1)",
        "self._rng.sample(sorted(self._fallback_candidates), k=1)",
        "Python 3.11 does not sample from a set",
    ),
    Fix(
        "engine/hooks.py",
        "torch.optim.lr_scheduler._LRScheduler",
        "torch.optim.lr_scheduler.LRScheduler",
        "torch 2 schedulers are no _LRScheduler: their state was not saved, so a resumed run restarted them",
        count=2,
    ),
    Fix(
        "engine/train_loop.py",
        "from torch.cuda.amp import GradScaler\n\n            grad_scaler = GradScaler()",
        "from torch.amp import GradScaler\n\n"
        "            grad_scaler = GradScaler(next(model.parameters()).device.type)",
        _AMP,
    ),
    Fix(
        "engine/train_loop.py",
        '        assert torch.cuda.is_available(), "[AMPTrainer] CUDA is required for AMP training!"\n'
        "        from torch.cuda.amp import autocast\n",
        "        from torch.amp import autocast\n",
        _AMP,
    ),
    Fix(
        "engine/train_loop.py",
        "with autocast():",
        "with autocast(next(self.model.parameters()).device.type):",
        _AMP,
    ),
    Fix("config/lazy.py", _BLACK_OLD, "", "black is a formatter, not a run-time need"),
    Fix("config/lazy.py", _BLACK_RETURN_OLD, _BLACK_RETURN_NEW, "black is a formatter, not a run-time need"),
    Fix(
        "checkpoint/detection_checkpoint.py",
        "data = torch.load(f)",
        'data = torch.load(f, map_location="cpu", weights_only=True)',
        "checkpoints are data: loading one must not run code",
    ),
    Fix(
        "modeling/anchor_generator.py",
        "torch.meshgrid(shifts_y, shifts_x)",
        'torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        "torch warns where the indexing is not given",
    ),
)
