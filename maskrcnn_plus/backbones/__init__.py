"""Backbones: images -> feature maps, "res2" ... "res5" or the "last_feat" of a plain ViT."""

from maskrcnn_plus.backbones.timm import TimmBackbone
from maskrcnn_plus.backbones.vit import PlainViT

__all__ = ["PlainViT", "TimmBackbone"]
