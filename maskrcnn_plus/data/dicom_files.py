"""Images of DICOM files, as viewers show them: rescaled, windowed, black is 0.

What a file says of its window (centre and width, or a table) makes values of 0..1; without one, unsigned values are
divided by the largest that their bits hold, and rescaled ones (Hounsfield units) stay as they are.

DICOM PS3.3: C.7.6.3 (pixels), C.11.1 (rescale), C.11.2 (window), C.7.6.16 (frames with values of their own).

Shape shorthand: H, W image height and width, C channels.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import numpy as np

from maskrcnn_plus.data.channels import ChannelRule, project
from maskrcnn_plus.data.limits import check_density, check_size
from maskrcnn_plus.data.pillow_files import Decoded
from maskrcnn_plus.data.read_error import ImageReadError

_DEFLATED = "1.2.840.10008.1.2.1.99"
_GREY, _INVERTED = ("MONOCHROME1", "MONOCHROME2"), "MONOCHROME1"
_DECODED_BYTES = 12  # a pixel of one channel, stored and as fractions


def is_dicom(local_path: str) -> bool:
    """Whether the file has DICOM's mark behind its preamble."""
    with open(local_path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def open_dicom(name: str, local_path: str, header: bool = False) -> Any:
    """Read a file: a `pydicom.Dataset` of an image.

    Args:
        name: of the file in errors.
        local_path: the file.
        header: leave out the pixels.

    Raises:
        ImageReadError: it holds no image, all of it is deflated, or pydicom is not installed.
    """
    pydicom = _pydicom(name)
    syntax = pydicom.filereader.read_file_meta_info(local_path).get("TransferSyntaxUID")
    if syntax == _DEFLATED:  # all of it would be inflated before anything is known of its size
        raise ImageReadError(f"{name}: the whole file is deflated. Save it without compression.")
    data = pydicom.dcmread(local_path, stop_before_pixels=header)
    if not data.get("Rows") or not data.get("Columns"):
        raise ImageReadError(f"{name}: the DICOM file holds no image. Remove it.")
    if not 1 <= count_frames(data) <= os.path.getsize(local_path):
        raise ImageReadError(f"{name}: it says that it has {count_frames(data)} frames. Copy it again or remove it.")
    return data


def count_frames(data: Any) -> int:
    """Number of images in a file."""
    return int(data.get("NumberOfFrames") or 1)


def decode_dicom(name: str, data: Any, rule: ChannelRule, as_labels: bool = False, frame: int | None = None) -> Decoded:
    """Decode a file, or one frame of it.

    Args:
        name: of the file in errors.
        data: of `open_dicom`.
        rule: says what several frames become.
        as_labels: keep the values that are stored.
        frame: index of the frame; None takes a file that is one image.

    Raises:
        ImageReadError: it is too large, cut short, or compressed in a way that nothing here decodes.
    """
    if frame is None:
        refuse_stack(name, data, rule)
    count = count_frames(data)
    together = count if frame is None else 1
    samples, bits = int(data.get("SamplesPerPixel", 1)), int(data.BitsAllocated)
    height, width = int(data.Rows), int(data.Columns)
    check_size(name, height, width, _DECODED_BYTES * samples * together)
    syntax, num_bytes = data.file_meta.TransferSyntaxUID, len(data.get("PixelData") or b"")
    if syntax.is_compressed:
        check_density(name, height, width, samples * bits, num_bytes)
    elif height * width * samples * bits * count > 8 * num_bytes:
        raise ImageReadError(f"{name}: its pixels are cut short. Copy the file again or remove it.")
    pixels = _pydicom(name).pixels
    if syntax.is_compressed and not pixels.get_decoder(syntax).is_available:
        raise ImageReadError(
            f"{name}: nothing here decodes its compression, {syntax.name}. Install pylibjpeg and its plugins, or save "
            "the file without compression."
        )
    decoded = []
    for index in range(count) if frame is None else [frame]:
        stored = pixels.pixel_array(data, index=index)  # [H, W] or [H, W, C]
        decoded.append(stored if as_labels else _displayed(data, index, stored, pixels))
    image = decoded[0] if len(decoded) == 1 else project(np.stack(decoded), [0], rule.projection)
    return Decoded(image[:, :, None] if image.ndim == 2 else image)


def _pydicom(name: str) -> ModuleType:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise ImageReadError(f'{name}: DICOM needs pydicom. Install it: pip install "maskrcnn_plus[dicom]".') from error
    return pydicom


def refuse_stack(name: str, data: Any, rule: ChannelRule) -> None:
    """Refuse several frames that a rule does not make one image of."""
    if count_frames(data) > 1 and rule.projection is None:
        raise ImageReadError(
            f"{name}: it has {count_frames(data)} frames, where one image is wanted. dataset.projection (max or "
            "mean) makes one image of them. Else save each as a file of its own."
        )


def _displayed(data: Any, frame: int, stored: np.ndarray, pixels: ModuleType) -> np.ndarray:
    """Stored pixels of a frame as they are shown."""
    if data.PhotometricInterpretation == "PALETTE COLOR":
        return pixels.apply_color_lut(stored, data)
    if data.PhotometricInterpretation not in _GREY:
        return stored
    inverted = data.PhotometricInterpretation == _INVERTED
    top = 2 ** int(data.BitsStored) - 1
    rescale = _of_frame(data, frame, "PixelValueTransformationSequence")
    slope, intercept = float(rescale.get("RescaleSlope", 1)), float(rescale.get("RescaleIntercept", 0))
    values = pixels.apply_modality_lut(stored, data) if "ModalityLUTSequence" in data else stored
    rescaled = values is not stored or (slope, intercept) != (1, 0)
    if values is stored and rescaled:
        values = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    window = _of_frame(data, frame, "FrameVOILUTSequence")
    if window.get("VOILUTSequence"):
        bits = int(window.VOILUTSequence[0].LUTDescriptor[2])
        values = pixels.apply_voi(values.astype(np.int64), window).astype(np.float32) / np.float32(2**bits - 1)
    elif (width := _first(window.get("WindowWidth"))) and width > 0 and window.get("WindowCenter") is not None:
        function = str(window.get("VOILUTFunction") or "LINEAR").upper()
        values = _apply_window(values.astype(np.float32), _first(window.WindowCenter), width, function)
    elif rescaled or stored.dtype.kind != "u":
        return -values.astype(np.float32) if inverted else values
    elif stored.dtype == np.uint8 and top == 255:
        return ~stored if inverted else stored
    else:
        values = values.astype(np.float32) / np.float32(top)
    values = values.clip(0, 1)
    return 1 - values if inverted else values


def _of_frame(data: Any, frame: int, sequence: str) -> Any:
    """Where the values of a frame stand: its own, those of all frames, or the file itself."""
    of_frames = data.get("PerFrameFunctionalGroupsSequence") or ()
    shared = data.get("SharedFunctionalGroupsSequence") or ()
    for group in (*of_frames[frame : frame + 1], *shared[:1]):
        if group.get(sequence):
            return group[sequence][0]
    return data


def _first(value: Any) -> float | None:
    """The first of several values."""
    if value is None or isinstance(value, str):
        return None
    try:
        return float(value)
    except TypeError:
        return float(value[0]) if len(value) else None


def _apply_window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """Values of 0..1 (PS3.3, C.11.2.1.2 and C.11.2.1.3)."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR_EXACT":
        return (values - center) / width + 0.5
    if width <= 1:
        return (values > center - 0.5).astype(np.float32)
    return (values - (center - 0.5)) / (width - 1) + 0.5
