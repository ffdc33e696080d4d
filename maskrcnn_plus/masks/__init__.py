"""Masks after the network: run-length codes and label images in place of N x H x W arrays."""

from maskrcnn_plus.installed import HAS_DETECTRON2

if HAS_DETECTRON2:
    from maskrcnn_plus.masks.rle_masks import RLEMasks, add_dense_masks
    from maskrcnn_plus.ops.paste_masks_rle import paste_masks_rle

__all__ = ["RLEMasks", "add_dense_masks", "paste_masks_rle"]
