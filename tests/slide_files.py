"""Whole-slide files as Aperio's scanners write them, made by tifffile."""

import numpy as np
import tifffile


def write_svs(path, image, mpp="0.25", compression="zlib", level=None):
    """A slide of two levels with thumbnail, label and overview.

    Args:
        path: the file.
        image: uint8 [H, W, 3] of level 0; sides divisible by 4.
        mpp: micrometres a pixel as its description has them; None leaves them out.
        compression: of the levels.
        level: uint8 [H / 4, W / 4, 3] of level 1; by default the means of the blocks of level 0.
    """
    height, width = image.shape[:2]
    if level is None:
        blocks = image.reshape(height // 4, 4, width // 4, 4, 3)
        level = np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)
    facts = "|AppMag = 40" + ("" if mpp is None else f"|MPP = {mpp}")
    head = "Aperio Image Library v12.0.15\r\n"
    tiled = dict(photometric="rgb", tile=(64, 64), compression=compression, metadata=None)
    other = dict(photometric="rgb", metadata=None, rowsperstrip=16)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(image, description=f"{head}{width}x{height} [0,0 {width}x{height}] (64x64) RGB{facts}", **tiled)
        tiff.write(level[::2, ::2], description=f"{head}{width}x{height} -> thumbnail - {facts}", **other)
        tiff.write(level, description=f"{head}{width}x{height} (64x64) -> {level.shape[1]}x{level.shape[0]}", **tiled)
        tiff.write(np.full((24, 32, 3), 200, np.uint8), description=f"{head}label 32x24", subfiletype=1, **other)
        tiff.write(np.full((24, 48, 3), 90, np.uint8), description=f"{head}macro 48x24", subfiletype=9, **other)
