# COCO data with large-scale jitter (Ghiasi et al., "Simple Copy-Paste", 2021): images scaled by 0.1 to 2, then cut or
# padded to 1024 x 1024.
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from .coco_data import dataloader, dataset

dataloader.train.mapper.augmentations = [
    L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=1024, target_width=1024),
    L(T.FixedSizeCrop)(crop_size=(1024, 1024)),
    L(T.RandomFlip)(horizontal=True),
]
dataloader.train.mapper.recompute_boxes = True  # objects are cut
dataloader.train.total_batch_size = 64

dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=1024, max_size=1024)]
