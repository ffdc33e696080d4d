"""Necks: backbone features -> a feature pyramid "p2" ... "p6"."""

from maskrcnn_plus.necks.pafpn import PAFPN
from maskrcnn_plus.necks.simple_pyramid import SimpleFeaturePyramid

__all__ = ["PAFPN", "SimpleFeaturePyramid"]
