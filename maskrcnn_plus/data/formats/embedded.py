"""Images that annotation files hold as text, kept as files in the user's cache folder."""

from __future__ import annotations

import base64
import hashlib
import io
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.data.check_cache import cache_folder
from maskrcnn_plus.data.pillow_files import FORMATS


def extract_image(text: Any, stem: str) -> Path:
    """File in the cache folder, or a temporary one without it, with the image of a text in base64.

    Args:
        text: the file of the image in base64.
        stem: name of the file without extension.

    Raises:
        ValueError: it is no image; the message says why.
        OSError: it cannot be written.
    """
    if not isinstance(text, str):
        raise ValueError("it is no text.")
    try:
        content = base64.b64decode(text.rpartition(",")[2], validate=True)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            suffix = {"JPEG": "jpg", "JPEG2000": "jp2", "TIFF": "tif"}.get(image.format, image.format.lower())
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"it is no image in base64 ({error}).") from error
    digest = hashlib.blake2b(content, digest_size=12).hexdigest()
    folder = (cache_folder() or Path(tempfile.gettempdir(), "maskrcnn_plus")) / "images" / digest
    file = folder / f"{stem}.{suffix}"
    if not file.is_file() or file.read_bytes() != content:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content)
    return file
