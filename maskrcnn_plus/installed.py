"""What is installed: an exported model runs without PyTorch and Detectron2."""

from importlib.util import find_spec

HAS_DETECTRON2 = find_spec("torch") is not None and find_spec("detectron2") is not None
"""Whether models can be built; else packages leave out of themselves what needs them."""
