"""Backbones: images -> feature maps "res2" ... "res5"."""

from maskrcnn_plus.backbones.timm import TimmBackbone

__all__ = ["TimmBackbone"]
