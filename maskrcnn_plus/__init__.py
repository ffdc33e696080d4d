"""Mask R-CNN components for Detectron2; importing the package registers them, and changes nothing of the process.

Where PyTorch or Detectron2 is not installed, what runs exported models is there alone (`maskrcnn_plus.runtime`).
"""

import warnings

from maskrcnn_plus.installed import HAS_DETECTRON2

if HAS_DETECTRON2:
    with warnings.catch_warnings():  # Detectron2 and fvcore compile functions as they are imported
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        from maskrcnn_plus import backbones, data, mask_heads, mask_rcnn, necks, roi, rpn

__version__ = "0.1.0"

__all__ = ["backbones", "data", "mask_heads", "mask_rcnn", "necks", "roi", "rpn"]
