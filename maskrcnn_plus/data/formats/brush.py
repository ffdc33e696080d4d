"""What Label Studio paints with: bitmasks, which are PNGs, and the run-length code of its brush.

The code is a bitstream of the RGBA values of an image, of which alpha counts.
label-studio-converter, brush.py: the number of values (32 bits), the bits of a value less 1 (5), the bits of four
lengths less 1 (4 each). Then runs until all values are there: a bit that is 1 where one value is repeated, which of the
four lengths (2), the length less 1, and the value, or that many values.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

_LENGTH_BITS = (3, 4, 8, 16)  # of the four lengths, as the brush itself chooses them


def decode_brush(rle: Sequence[int], height: int, width: int) -> np.ndarray:
    """Mask bool [H, W] of the pixels whose alpha is not 0.

    Args:
        rle: bytes of the stream.
        height, width: of the image, which bound the work.

    Raises:
        ValueError: it is no such stream, or one of another size.
    """
    try:
        bits = _Bits(bytes(rle))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("its rle must be a list of bytes, 0 to 255.") from error
    count, value_bits = bits.read(32), bits.read(5) + 1
    length_bits = [bits.read(4) + 1 for _ in range(4)]
    if count != height * width * 4:
        raise ValueError(f"its rle holds {count} values, an image of {height} x {width} has {height * width * 4}.")
    values = np.zeros(count, dtype=bool)
    place = 0
    while place < count:
        is_run = bits.read(1)
        end = place + bits.read(length_bits[bits.read(2)]) + 1
        if end > count:
            raise ValueError("its rle is longer than its image.")
        values[place:end] = bits.read(value_bits) != 0 if is_run else bits.read_nonzero(end - place, value_bits)
        place = end
    return values.reshape(height, width, 4)[:, :, 3]


def decode_bitmask(address: str, height: int, width: int) -> np.ndarray:
    """Mask bool [H, W] of the pixels that are not transparent in a PNG as a data URL, of Label Studio's bitmasks.

    Raises:
        ValueError: it is no such address, or its picture is of another size.
    """
    try:
        content = base64.b64decode(address.partition(",")[2], validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            if picture.size == (width, height):
                return np.asarray(picture.convert("RGBA"))[:, :, 3] > 0
    except (AttributeError, ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"its bitmask is no PNG in base64 ({error}). Redraw or remove it.") from error
    raise ValueError(f"its bitmask is {picture.height} x {picture.width}, its image {height} x {width}.")


def encode_brush(mask: np.ndarray) -> list[int]:
    """The stream of a mask [H, W] bool, whose pixels have 255 in all four channels and others 0.

    Returns:
        Bytes, 0 to 255.
    """
    pixels = mask.ravel()
    starts = np.append(0, np.flatnonzero(pixels[1:] != pixels[:-1]) + 1)
    lengths = 4 * np.diff(starts, append=pixels.size)
    bits = [f"{4 * pixels.size:032b}{7:05b}", *(f"{size - 1:04b}" for size in _LENGTH_BITS)]
    for length, is_on in zip(lengths.tolist(), pixels[starts].tolist(), strict=True):
        while length > 0:
            part = min(length, 1 << _LENGTH_BITS[-1])
            kind = next(kind for kind, size in enumerate(_LENGTH_BITS) if part <= 1 << size)
            bits.append(f"1{kind:02b}{part - 1:0{_LENGTH_BITS[kind]}b}{255 * is_on:08b}")
            length -= part
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return list(int(stream, 2).to_bytes(len(stream) // 8, "big"))


class _Bits:
    """Numbers of some bits, the highest first, one after the other."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 0

    def read(self, count: int) -> int:
        """The next number of up to 32 bits."""
        first = self._place // 8
        self._advance(count)
        chunk = int.from_bytes(self._content[first : first + 5].ljust(5, b"\0"), "big")
        return chunk >> (40 - (self._place - 8 * first)) & ((1 << count) - 1)

    def read_nonzero(self, count: int, size: int) -> np.ndarray:
        """Whether each of the next numbers of `size` bits is not 0, bool [count]."""
        start = self._place
        self._advance(count * size)
        part = np.frombuffer(self._content[start // 8 : (self._place + 7) // 8], dtype=np.uint8)
        bits = np.unpackbits(part)[start % 8 :][: count * size]
        return bits.reshape(count, size).any(axis=1)

    def _advance(self, count: int) -> None:
        self._place += count
        if self._place > 8 * len(self._content):
            raise ValueError("its rle ends before the image does.")
