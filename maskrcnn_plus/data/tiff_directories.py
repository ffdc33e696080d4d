"""The directories (IFDs) of a TIFF, walked before a decoder follows them.

A page's directory holds the offset of the next one and, under SubIFDs, of smaller copies. Decoders follow these links
wherever they lead; a file whose links lead back, or to millions of overlapping directories, would keep them for ever.
So would OME metadata that count more planes than there are, and these name other files, too.

Adobe, "TIFF, Revision 6.0" (1992), Section 2; BigTIFF has 8-byte counts and offsets. OME-XML: TiffData, Modulo.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import PurePath
from typing import NamedTuple

from defusedxml import DefusedXmlException, ElementTree

from maskrcnn_plus.data.read_error import ImageReadError
from maskrcnn_plus.special_files import refuse_special_file

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_PAGES = 2**20
MAX_ENTRIES = 4096  # of a directory; the decoder takes no more either

_SUB_DIRECTORIES = 330
_TYPE_BYTES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), start=1)) | {16: 8, 17: 8, 18: 8}
_OFFSET_TYPES = {4: "I", 13: "I", 16: "Q", 18: "Q"}


class _Layout(NamedTuple):
    """The byte order, and the numbers of entries, the entries and the offsets of classic TIFF or BigTIFF in it."""

    order: str
    count: struct.Struct
    entry: struct.Struct
    offset: struct.Struct


def check_directories(name: str, local_path: str) -> None:
    """Walk all directories of a TIFF; one that ends outside of the file is left to the decoder to name.

    Raises:
        ImageReadError: a directory is reached twice, directories overlap, there are more than `MAX_PAGES`, or a value
            is larger than the file.
    """
    with open(local_path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = file.read(16)
        if len(header) < 8 or header[:4] not in TIFF_MAGIC:
            return
        order, big = "<" if header[:2] == b"II" else ">", b"+" in header[:4]
        formats = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
        layout = _Layout(order, *(struct.Struct(order + each) for each in formats))
        first = header[8:16] if big else header[4:8]
        pending = list(layout.offset.unpack(first)) if len(first) == layout.offset.size else []
        seen: set[int] = set()
        used = 0  # bytes of all directories
        while pending:
            offset = pending.pop()
            if offset == 0 or offset + layout.count.size > size:
                continue
            if offset in seen:
                raise ImageReadError(f"{name}: the chain of the TIFF's pages leads back to itself. {_REMEDY}")
            seen.add(offset)
            file.seek(offset)
            (count,) = layout.count.unpack(file.read(layout.count.size))
            length = count * layout.entry.size
            if count > MAX_ENTRIES or offset + layout.count.size + length + layout.offset.size > size:
                continue
            used += length
            if len(seen) > MAX_PAGES or used > size:
                raise ImageReadError(
                    f"{name}: the TIFF has more than {MAX_PAGES} pages, or pages that overlap. {_REMEDY}"
                )
            entries = file.read(length)
            (following,) = layout.offset.unpack(file.read(layout.offset.size))
            pending += [following, *_linked(name, file, size, layout, entries)]


def check_ome(name: str, local_path: str, metadata: str) -> None:
    """Look at the planes and the other files that OME metadata name.

    Args:
        name: of the file in errors.
        local_path: the file.
        metadata: XML; what is none is left to the decoder, which takes the pages as they are.

    Raises:
        ImageReadError: more than `MAX_PAGES` planes; a file outside of the folder of this one, or one that
            `check_directories` refuses.
        OSError: a named file is a pipe or a device.
    """
    try:
        elements = list(ElementTree.fromstring(metadata).iter()) if metadata else []
    except ElementTree.ParseError:
        return
    except DefusedXmlException as error:
        raise ImageReadError(f"{name}: the OME metadata define entities. {_REMEDY}") from error
    counted, files = 0, set()
    for element in elements:
        kind, values = element.tag.rpartition("}")[2], element.attrib
        planes = 0.0
        if kind.endswith("Pixels"):
            planes = math.prod(int(values.get(f"Size{axis}", 1)) for axis in "ZCT")
        elif kind.endswith("TiffData"):
            planes = counted = counted + int(values.get("PlaneCount", values.get("NumPlanes", 1)))
        elif kind.startswith("ModuloAlong") and "Start" in values:
            length = float(values.get("End", 0)) - float(values["Start"])
            planes = length / (float(values.get("Step", 1)) or math.nan)
        elif kind.endswith("UUID"):
            files.add(values.get("FileName", ""))
        if planes > MAX_PAGES:
            raise ImageReadError(f"{name}: the OME metadata say {planes:.0f} planes. {_REMEDY}")
    for file in map(PurePath, files):
        if file.is_absolute() or ".." in file.parts:
            raise ImageReadError(
                f"{name}: the OME metadata name {str(file)!r}, outside of its folder. Put the files of a set together, "
                "and save them again."
            )
        other = os.path.join(os.path.dirname(local_path), file)
        refuse_special_file(other)
        if os.path.isfile(other):
            check_directories(name, other)


def _linked(name: str, file, size: int, layout: _Layout, entries: bytes) -> list[int]:
    """Offsets of sub-directories; values that cannot be in the file are refused."""
    offsets: list[int] = []
    for tag, kind, number, value in layout.entry.iter_unpack(entries):
        length = number * _TYPE_BYTES.get(kind, 1)
        if length > size:
            raise ImageReadError(f"{name}: tag {tag} of the TIFF says that it has {length} bytes. {_REMEDY}")
        if tag != _SUB_DIRECTORIES or kind not in _OFFSET_TYPES or number > MAX_PAGES:
            continue
        if length > len(value):
            file.seek(layout.offset.unpack(value)[0])
            value = file.read(length)
        if len(value) >= length:
            offsets += struct.unpack(f"{layout.order}{number}{_OFFSET_TYPES[kind]}", value[:length])
    return offsets


_REMEDY = "The file is damaged: copy it again or remove it."
