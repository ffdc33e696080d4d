// Masks pasted into an image as runs, without the pixels in between.
//
// The truth is Detectron2's paste on CPUs: bilinear sampling with zeros outside the mask (ATen's grid_sample) at the
// centres of the pixels of a window round the box, compared with the threshold. Rows of the window whose centres lie
// between the same two rows of the mask are a segment, along which the value is linear. A column takes the values at the
// ends of its segments; where both are clear of the threshold on one side, so is the whole segment. Only the pixels of
// the other segments, which the outline crosses, are computed, in ATen's order of float32 operations.
//
// Shorthand: N objects, Hm x Wm mask.

#include "paste_rle.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "capability.h"
#include "paste_rle_writer.h"
#include "tasks.h"

#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE inline
#endif

namespace maskrcnn_plus {
namespace {

constexpr int64_t kPad = 2; // zeros round the mask on each side: a sample and its neighbour may both lie outside

// Pixels of the image that are looked at: those of the box and one more on each side.
struct Window {
  int64_t left, top, right, bottom;

  static Window of(const float* box, int64_t height, int64_t width) {
    // As double, which holds every pixel and every float.
    const auto low = [](float value, int64_t size) {
      return static_cast<int64_t>(std::min(std::max(std::floor(double(value)) - 1, 0.0), double(size)));
    };
    const auto high = [](float value, int64_t size) {
      return static_cast<int64_t>(std::min(std::max(std::ceil(double(value)) + 1, 0.0), double(size)));
    };
    return {low(box[0], width), low(box[1], height), high(box[2], width), high(box[3], height)};
  }

  bool empty() const {
    return left >= right || top >= bottom;
  }
};

// Where one pixel's centre lies along one axis of the mask: between elements `index` and `index` + 1 of the padded mask.
struct Sample {
  int64_t index;
  float near, far; // weights of the two
  bool finite;

  // ATen's instructions fuse a * b + c where the processor can.
  template <bool fused>
  static INLINE Sample at(int64_t pixel, float low, float high, int64_t size) {
    const float relative = (static_cast<float>(pixel) + 0.5f - low) / (high - low) * 2 - 1;
    const float half = static_cast<float>(size) / 2;
    const float place = fused ? std::fma(relative + 1, half, -0.5f) : (relative + 1) * half - 0.5f;
    const float below = std::floor(place);
    const float far = place - below;
    const float inside = std::min(std::max(below, static_cast<float>(-kPad)), static_cast<float>(size));
    const bool finite = std::isfinite(place);
    return {finite ? static_cast<int64_t>(inside) + kPad : 0, 1 - far, far, finite};
  }
};

// Rows [begin, end) of the image whose samples have one index.
struct Segment {
  int64_t begin, end, index;
};

constexpr int64_t kMostRows = 1 << 16; // of a window whose samples are kept; those of a taller one are computed again

// Scratch memory of a thread: grows with the mask.
struct Scratch {
  std::vector<float> columns; // the padded mask, column by column
  std::vector<Sample> rows;
  std::vector<Segment> segments;
  std::vector<uint8_t> sides; // of a column's values: 1 clearly on, 2 clearly off, 0 near the threshold
};

struct Masks {
  const float* probs; // [N, Hm, Wm]
  const float* boxes; // [N, 4]
  int64_t mask_height, mask_width, height, width;
  float threshold;
};

// Fills scratch.columns and returns the largest magnitude, NaN where it is not finite.
INLINE float pad_columns(const Masks& masks, int64_t n, Scratch& scratch) {
  const int64_t stride = masks.mask_height + 2 * kPad;
  const float* probs = masks.probs + n * masks.mask_height * masks.mask_width;
  scratch.columns.assign((masks.mask_width + 2 * kPad) * stride, 0);
  float largest = 0;
  for (int64_t y = 0; y < masks.mask_height; ++y) {
    for (int64_t x = 0; x < masks.mask_width; ++x) {
      const float value = probs[y * masks.mask_width + x];
      scratch.columns[(x + kPad) * stride + y + kPad] = value;
      largest = std::max(largest, std::fabs(value));
    }
  }
  return std::isfinite(largest) ? largest : std::numeric_limits<float>::quiet_NaN();
}

template <bool fused>
INLINE void paste(const Masks& masks, int64_t n, Scratch& scratch, RunWriter& writer) {
  const float* box = masks.boxes + n * 4;
  const Window window = Window::of(box, masks.height, masks.width);
  if (window.empty()) {
    return;
  }
  scratch.rows.clear();
  scratch.segments.clear();
  const bool keep_rows = window.bottom - window.top <= kMostRows;
  for (int64_t y = window.top; y < window.bottom; ++y) {
    const Sample row = Sample::at<fused>(y, box[1], box[3], masks.mask_height);
    if (keep_rows) {
      scratch.rows.push_back(row);
    }
    if (!row.finite) {
      continue; // a box without height: the values are not numbers
    }
    std::vector<Segment>& segments = scratch.segments;
    if (segments.empty() || segments.back().index != row.index || segments.back().end != y) {
      segments.push_back({y, y + 1, row.index});
    } else {
      segments.back().end = y + 1;
    }
  }
  const float threshold = masks.threshold;
  // Rounding moves a value by less than a millionth of the largest element.
  const float margin = 1e-5f * std::max(pad_columns(masks, n, scratch), threshold);
  const float surely_on = threshold + margin;
  const float surely_off = threshold - margin;
  const int64_t stride = masks.mask_height + 2 * kPad;
  scratch.sides.resize(stride);
  uint8_t* sides = scratch.sides.data();

  for (int64_t x = window.left; x < window.right; ++x) {
    const Sample column = Sample::at<fused>(x, box[0], box[2], masks.mask_width);
    if (!column.finite) {
      continue;
    }
    const float* west = scratch.columns.data() + column.index * stride;
    const float* east = west + stride;
    for (int64_t i = 0; i < stride; ++i) {
      const float value = west[i] * column.near + east[i] * column.far;
      sides[i] = static_cast<uint8_t>((value >= surely_on) | ((value < surely_off) << 1));
    }
    const int64_t start = x * masks.height; // of this column among all pixels
    for (const Segment& segment : scratch.segments) {
      const int64_t i = segment.index;
      const uint8_t side = sides[i] & sides[i + 1];
      if (side == 1) {
        writer.add(start + segment.begin, start + segment.end);
      } else if (side == 0) {
        for (int64_t y = segment.begin; y < segment.end; ++y) {
          const Sample row =
              keep_rows ? scratch.rows[y - window.top] : Sample::at<fused>(y, box[1], box[3], masks.mask_height);
          const float nw = column.near * row.near;
          const float ne = column.far * row.near;
          const float sw = column.near * row.far;
          const float se = column.far * row.far;
          float value;
          if (fused) {
            value = std::fma(east[i], ne, west[i] * nw);
            value = std::fma(west[i + 1], sw, value);
            value = std::fma(east[i + 1], se, value);
          } else {
            value = west[i] * nw + east[i] * ne + west[i + 1] * sw + east[i + 1] * se;
          }
          if (value >= threshold) {
            writer.add(start + y, start + y + 1);
          }
        }
      }
    }
  }
}

using Paste = void (*)(const Masks&, int64_t, Scratch&, RunWriter&);

void paste_plain(const Masks& masks, int64_t n, Scratch& scratch, RunWriter& writer) {
  paste<false>(masks, n, scratch, writer);
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx2,fma"))) void paste_fused(
    const Masks& masks, int64_t n, Scratch& scratch, RunWriter& writer) {
  paste<true>(masks, n, scratch, writer);
}
#endif

Paste paste_of_this_processor() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (cpu_capability() != "DEFAULT") {
    return paste_fused;
  }
#endif
  return paste_plain;
}

// The objects with the widest windows first, so that none of them holds up the end.
std::vector<int64_t> widest_first(const Masks& masks, int64_t count) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::vector<int64_t> columns;
  for (int64_t n = 0; n < count; ++n) {
    const Window window = Window::of(masks.boxes + n * 4, masks.height, masks.width);
    columns.push_back(window.empty() ? 0 : window.right - window.left);
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return columns[a] > columns[b]; });
  return order;
}

} // namespace

std::tuple<at::Tensor, at::Tensor> paste_masks_rle(
    const at::Tensor& mask_probs,
    const at::Tensor& boxes,
    int64_t height,
    int64_t width,
    double threshold) {
  TORCH_CHECK_VALUE(
      mask_probs.dim() == 3 && boxes.dim() == 2 && boxes.size(0) == mask_probs.size(0) && boxes.size(1) == 4,
      "paste_masks_rle: masks must be [N, Hm, Wm] and boxes [N, 4], got ", mask_probs.sizes(), " and ", boxes.sizes(),
      ".");
  TORCH_CHECK_VALUE(
      height > 0 && width > 0 && height <= std::numeric_limits<uint32_t>::max() / width,
      "paste_masks_rle: an image of ", height, " x ", width, " pixels must have 1 to ",
      std::numeric_limits<uint32_t>::max(), ".");
  const int64_t count = boxes.size(0);
  TORCH_CHECK_VALUE(
      count == 0 || mask_probs.numel() > 0, "paste_masks_rle: masks of ", mask_probs.size(1), " x ", mask_probs.size(2),
      " hold nothing.");
  const at::Tensor all_probs = mask_probs.to(at::kFloat).contiguous();
  const at::Tensor all_boxes = boxes.to(at::kFloat).contiguous();
  const Masks masks{
      all_probs.const_data_ptr<float>(), all_boxes.const_data_ptr<float>(), mask_probs.size(1), mask_probs.size(2),
      height, width, static_cast<float>(threshold)};
  for (int64_t i = 0; i < count * 4; ++i) {
    TORCH_CHECK_VALUE(std::isfinite(masks.boxes[i]), "paste_masks_rle: box ", i / 4, " is not finite.");
  }

  const Paste paste_object = paste_of_this_processor();
  const std::vector<int64_t> order = widest_first(masks, count);
  std::vector<std::string> texts(count);
  run_tasks(count, [&] {
    return [&, scratch = Scratch(), text = std::string()](int64_t task) mutable {
      text.clear();
      RunWriter writer(text);
      paste_object(masks, order[task], scratch, writer);
      writer.finish(height * width);
      texts[order[task]] = text; // a copy without spare room
    };
  });

  at::Tensor offsets = at::empty({count + 1}, boxes.options().dtype(at::kLong));
  int64_t* offset = offsets.mutable_data_ptr<int64_t>();
  offset[0] = 0;
  for (int64_t n = 0; n < count; ++n) {
    offset[n + 1] = offset[n] + static_cast<int64_t>(texts[n].size());
  }
  at::Tensor bytes = at::empty({offset[count]}, boxes.options().dtype(at::kByte));
  for (int64_t n = 0; n < count; ++n) {
    std::memcpy(bytes.mutable_data_ptr<uint8_t>() + offset[n], texts[n].data(), texts[n].size());
  }
  return {bytes, offsets};
}

} // namespace maskrcnn_plus
