"""Triton kernels of RoIAlign, launched by `roi_align_triton.py`.

The mean over a bin's grid of samples is a product: the weights of the pixel rows times those of the pixel columns. The
forward sums the rows of a bin and multiplies by the columns' weights [PW, pixels]. The backward gathers: a program has
a tile of a map, finds the boxes that touch it in the order of their indices and adds what each contributes, so no two
programs write to one element and no sum depends on timing.

Coordinates are float64, sums float32.

Shorthand: K boxes, L maps [N, C, H, W], PH x PW bins.
"""

import triton
import triton.language as tl


@triton.jit
def _axis(start, stop, bins: tl.constexpr, ratio: tl.constexpr, aligned: tl.constexpr):
    """First coordinate, size of a bin and samples a bin of a box on an axis, in pixels of the map, float64."""
    length = stop - start
    if not aligned:
        length = tl.maximum(length, 1.0)
    spacing = length / bins
    if ratio > 0:  # noqa: SIM108 - decided when the kernel is compiled
        samples = spacing * 0 + ratio
    else:
        samples = tl.maximum(tl.ceil(spacing), 0.0)
    return start, spacing, samples


@triton.jit
def _first_and_count(origin, step, samples, low, high):
    """The first of a bin's samples that may lie in [low, high], and how many from it on, both float64."""
    safe = tl.where(step > 0, step, 1.0)
    first = tl.floor((low - origin) / safe - 0.5) - 1.0
    last = tl.ceil((high - origin) / safe - 0.5) + 1.0
    first = tl.where(step > 0, tl.minimum(tl.maximum(first, 0.0), samples), 0.0)
    last = tl.where(step > 0, tl.minimum(tl.maximum(last + 1.0, first), samples), samples)
    return first, last - first


@triton.jit
def _column_weights(pixels, bins, origin, spacing, samples, size, low, high):
    """Sums of bilinear weights over the samples of each bin, float32 of the shape of `pixels` and `bins` together.

    A sample beyond one pixel outside the map counts 0, one within a pixel of its border is moved to the border.
    """
    step = spacing / tl.maximum(samples, 1.0)
    begin = origin + bins.to(tl.float64) * spacing
    first, count = _first_and_count(begin, step, samples, low, high)
    base = begin + (first + 0.5) * step
    end = tl.max(tl.max(count, 1), 0).to(tl.int32)
    weights = tl.zeros(pixels.shape, tl.float32) * tl.zeros(bins.shape, tl.float32)
    for j in range(end):
        at = base + j * step
        inside = (j < count) & (at >= -1.0) & (at <= size)
        at = tl.minimum(tl.maximum(at, 0.0), size - 1.0)
        near = tl.maximum(1.0 - tl.abs(pixels.to(tl.float64) - at), 0.0)
        weights += tl.where(inside, near, 0.0).to(tl.float32)
    return weights


@triton.jit
def forward(
    maps, rois, levels, output, num_maps, C,
    PH: tl.constexpr, PW: tl.constexpr, RATIO: tl.constexpr, ALIGNED: tl.constexpr, HAS_LEVELS: tl.constexpr,
    FIELDS: tl.constexpr, PRECISION: tl.constexpr, BW: tl.constexpr, BX: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """One row of bins of a box: output[k, ph, :, block of channels]."""
    k, ph = tl.program_id(0) // PH, tl.program_id(0) % PH
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    box = rois + k.to(tl.int64) * 5
    image, x0, y0, x1, y1 = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3), tl.load(box + 4)
    level = tl.zeros((), tl.int64)
    if HAS_LEVELS:
        level = tl.load(levels + k).to(tl.int64)
    usable = (level >= 0) & (level < num_maps)
    described = maps + tl.where(usable, level, 0) * FIELDS
    images, height, width = tl.load(described + 1), tl.load(described + 2), tl.load(described + 3)
    scale = tl.load(described + 4).to(tl.float64, bitcast=True)
    usable &= (image >= 0) & (image < images) & (tl.abs(x0 - x1 + y0 - y1) + tl.abs(x0) + tl.abs(y0) < float("inf"))

    shift: tl.constexpr = 0.5 if ALIGNED else 0.0
    rows, columns = height.to(tl.float64), width.to(tl.float64)
    left, spacing_x, samples_x = _axis(
        x0.to(tl.float64) * scale - shift, x1.to(tl.float64) * scale - shift, PW, RATIO, ALIGNED
    )
    top, spacing_y, samples_y = _axis(
        y0.to(tl.float64) * scale - shift, y1.to(tl.float64) * scale - shift, PH, RATIO, ALIGNED
    )
    step_y = spacing_y / tl.maximum(samples_y, 1.0)
    begin_y = top + ph * spacing_y
    first_y, count_y = _first_and_count(begin_y, step_y, samples_y, -1.0, rows)
    count_y = tl.where(usable & (samples_x > 0), count_y, 0.0).to(tl.int32)

    # Pixels of the map that the samples of the row lie between, from border to border.
    right = left + PW * spacing_x
    first_x = tl.minimum(tl.maximum(tl.floor(tl.minimum(left, right)), 0.0), columns - 1.0).to(tl.int32)
    last_x = tl.minimum(tl.maximum(tl.floor(tl.maximum(left, right)) + 1.0, 0.0), columns - 1.0).to(tl.int32)

    plane = tl.load(described).to(tl.pointer_type(output.dtype.element_ty))
    plane += image.to(tl.int64) * height * width * C
    bins = tl.arange(0, BW)
    accumulator = tl.zeros((BW, BC), tl.float32)
    if count_y > 0:
        for chunk in range(first_x, last_x + 1, BX):
            pixels = chunk + tl.arange(0, BX)
            weights = _column_weights(
                pixels[None, :], bins[:, None], left, spacing_x, samples_x, columns, chunk - 1.0, chunk + BX * 1.0
            )
            weights = tl.where(bins[:, None] < PW, weights, 0.0)
            mask = ((pixels <= last_x)[:, None]) & ((channels < C)[None, :])
            places = plane + pixels[:, None] * C + channels[None, :]
            summed = tl.zeros((BX, BC), tl.float32)
            for i in range(count_y):
                at = begin_y + (first_y + i + 0.5) * step_y
                share = tl.where((at >= -1.0) & (at <= rows), 1.0, 0.0)
                at = tl.minimum(tl.maximum(at, 0.0), rows - 1.0)
                low = tl.floor(at)
                fraction = (at - low).to(tl.float32)
                above = low.to(tl.int64)
                below = tl.minimum(above + 1, height - 1)
                one = tl.load(places + above * width * C, mask=mask, other=0.0).to(tl.float32)
                two = tl.load(places + below * width * C, mask=mask, other=0.0).to(tl.float32)
                summed += (share.to(tl.float32) * (1.0 - fraction)) * one + (share.to(tl.float32) * fraction) * two
            accumulator += tl.dot(weights, summed, input_precision=PRECISION)
    number = tl.maximum(samples_x * samples_y, 1.0)
    accumulator = accumulator / number.to(tl.float32)
    accumulator = tl.where(usable, accumulator, float("nan"))
    places = output + ((k.to(tl.int64) * PH + ph) * PW + bins[:, None]) * C + channels[None, :]
    mask = (bins < PW)[:, None] & (channels < C)[None, :]
    tl.store(places, accumulator.to(output.dtype.element_ty), mask=mask)


@triton.jit
def backward(
    maps, rois, levels, grad, num_maps, K, C,
    PH: tl.constexpr, PW: tl.constexpr, RATIO: tl.constexpr, ALIGNED: tl.constexpr, HAS_LEVELS: tl.constexpr,
    FIELDS: tl.constexpr, PRECISION: tl.constexpr, BW: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr,
    BC: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The gradient of one tile of a map: grad_map[n, TY rows, TX columns, block of channels]."""
    tile = tl.program_id(0).to(tl.int64)
    level = tl.zeros((), tl.int64)
    for other in range(1, num_maps):
        level += (tile >= tl.load(maps + other * FIELDS + 5)).to(tl.int64)
    described = maps + level * FIELDS
    height, width = tl.load(described + 2), tl.load(described + 3)
    scale = tl.load(described + 4).to(tl.float64, bitcast=True)
    tile -= tl.load(described + 5)
    tiles_x = (width + TX - 1) // TX
    tiles = (height + TY - 1) // TY * tiles_x
    image = tile // tiles
    tile_y, tile_x = (tile % tiles) // tiles_x * TY, (tile % tiles) % tiles_x * TX
    rows, columns = height.to(tl.float64), width.to(tl.float64)
    top_of_tile, left_of_tile = tile_y.to(tl.float64), tile_x.to(tl.float64)
    y = tile_y + tl.arange(0, TY)
    x = tile_x + tl.arange(0, TX)
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    bins = tl.arange(0, BW)
    shift: tl.constexpr = 0.5 if ALIGNED else 0.0

    accumulator = tl.zeros((TY, TX, BC), tl.float32)
    for base in range(0, K, BK):
        index = base + tl.arange(0, BK)
        exists = index < K
        box = rois + index.to(tl.int64) * 5
        mine = tl.load(box, mask=exists, other=-1.0) == image.to(tl.float32)
        if HAS_LEVELS:
            mine &= tl.load(levels + index, mask=exists, other=-1) == level
        x0 = tl.load(box + 1, mask=exists, other=0.0).to(tl.float64) * scale - shift
        y0 = tl.load(box + 2, mask=exists, other=0.0).to(tl.float64) * scale - shift
        x1 = tl.load(box + 3, mask=exists, other=0.0).to(tl.float64) * scale - shift
        y1 = tl.load(box + 4, mask=exists, other=0.0).to(tl.float64) * scale - shift
        if not ALIGNED:
            x1, y1 = tl.maximum(x1, x0 + 1.0), tl.maximum(y1, y0 + 1.0)
        mine &= (tl.minimum(y0, y1) <= top_of_tile + TY) & (tl.maximum(y0, y1) >= top_of_tile - 1.0)
        mine &= (tl.minimum(x0, x1) <= left_of_tile + TX) & (tl.maximum(x0, x1) >= left_of_tile - 1.0)
        hits = tl.sum(mine.to(tl.int32), 0)
        after = -1
        for _ in range(hits):
            k = tl.min(tl.where(mine & (index > after), index, 2147483647), 0)
            after = k
            box_k = rois + k.to(tl.int64) * 5
            left = tl.load(box_k + 1).to(tl.float64) * scale - shift
            top = tl.load(box_k + 2).to(tl.float64) * scale - shift
            right = tl.load(box_k + 3).to(tl.float64) * scale - shift
            bottom = tl.load(box_k + 4).to(tl.float64) * scale - shift
            left, spacing_x, samples_x = _axis(left, right, PW, RATIO, ALIGNED)
            top, spacing_y, samples_y = _axis(top, bottom, PH, RATIO, ALIGNED)
            number = tl.maximum(samples_x * samples_y, 1.0)
            weights = _column_weights(
                x[:, None], bins[None, :], left, spacing_x, samples_x, columns, left_of_tile - 1.0, left_of_tile + TX
            )
            weights = tl.where(bins[None, :] < PW, weights, 0.0) / number.to(tl.float32)  # [TX, BW]
            step_y = spacing_y / tl.maximum(samples_y, 1.0)
            for ph in range(PH):
                begin = top + ph * spacing_y
                end = begin + spacing_y
                touches = (tl.minimum(begin, end) <= top_of_tile + TY) & (tl.maximum(begin, end) >= top_of_tile - 1.0)
                if touches:
                    first, count = _first_and_count(begin, step_y, samples_y, top_of_tile - 1.0, top_of_tile + TY)
                    row_weights = tl.zeros((TY,), tl.float32)
                    for i in range(count.to(tl.int32)):
                        at = begin + (first + i + 0.5) * step_y
                        share = tl.where((at >= -1.0) & (at <= rows), 1.0, 0.0)
                        at = tl.minimum(tl.maximum(at, 0.0), rows - 1.0)
                        row_weights += (share * tl.maximum(1.0 - tl.abs(y.to(tl.float64) - at), 0.0)).to(tl.float32)
                    places = grad + ((k.to(tl.int64) * PH + ph) * PW + bins[:, None]) * C + channels[None, :]
                    mask = (bins < PW)[:, None] & (channels < C)[None, :]
                    of_bins = tl.load(places, mask=mask, other=0.0).to(tl.float32)  # [BW, BC]
                    of_row = tl.dot(weights, of_bins, input_precision=PRECISION)  # [TX, BC]
                    accumulator += row_weights[:, None, None] * of_row[None, :, :]
    kind = grad.dtype.element_ty
    pixel = (image * height + y[:, None, None]) * width + x[None, :, None]
    mask = ((y < height)[:, None, None] & (x < width)[None, :, None]) & (channels < C)[None, None, :]
    result = tl.load(described).to(tl.pointer_type(kind)) + pixel * C + channels[None, None, :]
    tl.store(result, accumulator.to(kind), mask=mask)
