"""Images and annotations in. Importing it makes `synthetic://` paths readable."""

from maskrcnn_plus.data import synthetic

__all__ = ["synthetic"]
