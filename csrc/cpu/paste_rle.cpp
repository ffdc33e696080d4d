// Masks pasted into an image as runs, without the pixels in between.
//
// The truth is the paste of Detectron2 or torchvision on CPUs (paste_rle_rules.h): bilinear values at the centres of the
// pixels of a window round the box, compared with the threshold. Rows of the window whose centres lie between the same two
// rows of the mask are a segment, along which the value is linear. A column takes the values at the ends of its segments;
// where both are clear of the threshold on one side, so is the whole segment. Only the pixels of the other segments, which
// the outline crosses, are computed, in ATen's order of float32 operations.
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
#include "paste_rle_rules.h"
#include "paste_rle_writer.h"
#include "tasks.h"

namespace maskrcnn_plus {
namespace {

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
  const PixelBox* pixel_boxes; // [N] for torchvision's rule, else null
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

template <typename Mask>
INLINE void paste(const Mask& mask, const Masks& masks, int64_t n, Scratch& scratch, RunWriter& writer) {
  const Window window = mask.window(masks.height, masks.width);
  if (window.empty()) {
    return;
  }
  scratch.rows.clear();
  scratch.segments.clear();
  const bool keep_rows = window.bottom - window.top <= kMostRows;
  for (int64_t y = window.top; y < window.bottom; ++y) {
    const Sample row = mask.row(y);
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
    const Sample column = mask.column(x);
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
          const Sample row = keep_rows ? scratch.rows[y - window.top] : mask.row(y);
          if (mask.value(west + i, east + i, column, row) >= threshold) {
            writer.add(start + y, start + y + 1);
          }
        }
      }
    }
  }
}

template <bool fused>
INLINE void paste_by_rule(const Masks& masks, int64_t n, Scratch& scratch, RunWriter& writer) {
  if (masks.pixel_boxes != nullptr) {
    const ResizedMask<fused> mask(masks.pixel_boxes[n], masks.mask_height, masks.mask_width);
    paste(mask, masks, n, scratch, writer);
  } else {
    const SampledMask<fused> mask(masks.boxes + n * 4, masks.mask_height, masks.mask_width);
    paste(mask, masks, n, scratch, writer);
  }
}

using Paste = void (*)(const Masks&, int64_t, Scratch&, RunWriter&);

void paste_plain(const Masks& masks, int64_t n, Scratch& scratch, RunWriter& writer) {
  paste_by_rule<false>(masks, n, scratch, writer);
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx2,fma"))) void paste_fused(
    const Masks& masks, int64_t n, Scratch& scratch, RunWriter& writer) {
  paste_by_rule<true>(masks, n, scratch, writer);
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

// The objects with the widest boxes in the image first, so that none of them holds up the end.
std::vector<int64_t> widest_first(const Masks& masks, int64_t count) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::vector<float> widths;
  for (const float* box = masks.boxes; box < masks.boxes + count * 4; box += 4) {
    widths.push_back(std::min(box[2], static_cast<float>(masks.width)) - std::max(box[0], 0.0f));
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return widths[a] > widths[b]; });
  return order;
}

} // namespace

std::tuple<at::Tensor, at::Tensor> paste_masks_rle(
    const at::Tensor& mask_probs,
    const at::Tensor& boxes,
    int64_t height,
    int64_t width,
    double threshold,
    std::string_view rule) {
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
  TORCH_CHECK_VALUE(
      rule == "detectron2" || rule == "torchvision",
      "paste_masks_rle: the rule must be \"detectron2\" or \"torchvision\", got ", rule, ".");
  const at::Tensor all_probs = mask_probs.to(at::kFloat).contiguous();
  const at::Tensor all_boxes = boxes.to(at::kFloat).contiguous();
  const float* xyxy = all_boxes.const_data_ptr<float>();
  std::vector<PixelBox> pixel_boxes;
  for (int64_t n = 0; n < count; ++n, xyxy += 4) {
    TORCH_CHECK_VALUE(
        std::all_of(xyxy, xyxy + 4, [](float value) { return std::isfinite(value); }), "paste_masks_rle: box ", n,
        " is not finite.");
    if (rule == "torchvision") {
      pixel_boxes.push_back(PixelBox::of(xyxy, mask_probs.size(2)));
    }
  }
  const Masks masks{
      all_probs.const_data_ptr<float>(), all_boxes.const_data_ptr<float>(),
      pixel_boxes.empty() ? nullptr : pixel_boxes.data(), mask_probs.size(1), mask_probs.size(2), height, width,
      static_cast<float>(threshold)};

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
