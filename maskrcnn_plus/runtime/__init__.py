"""Exported models, run by ONNX Runtime or OpenVINO without PyTorch and Detectron2.

model = ExportedModel("output/model_onnx")
objects = model.predict("image.png")
"""

from maskrcnn_plus.runtime.model import ExportedModel
from maskrcnn_plus.runtime.objects import Objects

__all__ = ["ExportedModel", "Objects"]
