"""Images and annotations in. Importing it makes `synthetic://` paths readable, and numbers of classes in configs."""

from maskrcnn_plus.installed import HAS_DETECTRON2

if HAS_DETECTRON2:
    import maskrcnn_plus.resolvers  # noqa: F401 - for interpolations in configs
    from maskrcnn_plus.data.augmentation import RandomRotate90, RandomScaleCrop, ScaleImage
    from maskrcnn_plus.data.check import checked_dataset
    from maskrcnn_plus.data.classes import Classes, resolve_classes
    from maskrcnn_plus.data.coco import register_coco
    from maskrcnn_plus.data.copy_paste import CopyPasteMapper
    from maskrcnn_plus.data.folder import register_folder
    from maskrcnn_plus.data.intensity import RandomIntensity
    from maskrcnn_plus.data.mapper import InstanceMapper
    from maskrcnn_plus.data.registration import register_label_maps
    from maskrcnn_plus.data.resize import InterpolateShortestEdge
    from maskrcnn_plus.data.resize_mmcv import MMCVResize
    from maskrcnn_plus.data.stream import TrainingStream
    from maskrcnn_plus.data.synthetic import register_synthetic_cells

__all__ = [
    "Classes",
    "CopyPasteMapper",
    "InstanceMapper",
    "InterpolateShortestEdge",
    "MMCVResize",
    "RandomIntensity",
    "RandomRotate90",
    "RandomScaleCrop",
    "ScaleImage",
    "TrainingStream",
    "checked_dataset",
    "register_coco",
    "register_folder",
    "register_label_maps",
    "register_synthetic_cells",
    "resolve_classes",
]
