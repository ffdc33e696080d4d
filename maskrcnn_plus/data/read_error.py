"""The error of an image that cannot be used."""

from maskrcnn_plus.errors import UserError


class ImageReadError(UserError):
    """An image file that cannot be used; the message names the file, the reason and the remedy."""
