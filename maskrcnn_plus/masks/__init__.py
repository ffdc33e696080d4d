"""Masks after the network: run-length codes and label images in place of N x H x W arrays."""

from maskrcnn_plus.masks.rle import paste_masks_rle
from maskrcnn_plus.masks.rle_masks import RLEMasks, add_dense_masks

__all__ = ["RLEMasks", "add_dense_masks", "paste_masks_rle"]
