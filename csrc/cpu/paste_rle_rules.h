// Where pixels of the image lie in the mask of a box, and the mask's value there: the two rules of paste_masks_rle.
//
// Both round as ATen does, whose instructions fuse a * b + c where the processor can (`fused`).

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE inline
#endif

namespace maskrcnn_plus {

constexpr int64_t kPad = 2; // zeros round the mask on each side: a sample and its neighbour may both lie outside

// Pixels of the image that are looked at.
struct Window {
  int64_t left, top, right, bottom;

  bool empty() const {
    return left >= right || top >= bottom;
  }
};

// Where one pixel's centre lies along one axis of the mask: between elements `index` and `index` + 1 of the padded mask.
struct Sample {
  int64_t index;
  float near, far; // weights of the two
  bool finite;
};

// The weighted sum of four elements. `west` and `east` point at the upper elements of two columns, each followed by the lower
// one. ATen rounds one of the two upper products by itself where it fuses the others: the east one, or the west one.
template <bool fused, bool east_first>
INLINE float weigh(const float* west, const float* east, const Sample& column, const Sample& row) {
  const float nw = column.near * row.near;
  const float ne = column.far * row.near;
  const float sw = column.near * row.far;
  const float se = column.far * row.far;
  if (!fused) {
    return west[0] * nw + east[0] * ne + west[1] * sw + east[1] * se;
  }
  const float upper = east_first ? std::fma(west[0], nw, east[0] * ne) : std::fma(east[0], ne, west[0] * nw);
  return std::fma(east[1], se, std::fma(west[1], sw, upper));
}

// Detectron2's: bilinear sampling with zeros outside the mask (ATen's grid_sample), at the pixels of the box and one more
// on each side.
template <bool fused>
class SampledMask {
 public:
  SampledMask(const float* box, int64_t mask_height, int64_t mask_width)
      : box_(box), mask_height_(mask_height), mask_width_(mask_width) {}

  Window window(int64_t height, int64_t width) const {
    // As double, which holds every pixel and every float.
    const auto low = [](float value, int64_t size) {
      return static_cast<int64_t>(std::min(std::max(std::floor(double(value)) - 1, 0.0), double(size)));
    };
    const auto high = [](float value, int64_t size) {
      return static_cast<int64_t>(std::min(std::max(std::ceil(double(value)) + 1, 0.0), double(size)));
    };
    return {low(box_[0], width), low(box_[1], height), high(box_[2], width), high(box_[3], height)};
  }

  INLINE Sample column(int64_t x) const {
    return at(x, box_[0], box_[2], mask_width_);
  }

  INLINE Sample row(int64_t y) const {
    return at(y, box_[1], box_[3], mask_height_);
  }

  INLINE float value(const float* west, const float* east, const Sample& column, const Sample& row) const {
    return weigh<fused, false>(west, east, column, row);
  }

 private:
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

  const float* box_; // xyxy
  int64_t mask_height_, mask_width_;
};

// The whole pixels, the last ones included, that torchvision takes for a box: grown as a mask with one zero on each side.
struct PixelBox {
  int64_t x0, y0, x1, y1;

  static PixelBox of(const float* box, int64_t mask_width) {
    const float growth = static_cast<float>(double(mask_width + 2) / double(mask_width));
    const float half_width = (box[2] - box[0]) * 0.5f * growth;
    const float half_height = (box[3] - box[1]) * 0.5f * growth;
    const float x = (box[2] + box[0]) * 0.5f;
    const float y = (box[3] + box[1]) * 0.5f;
    const auto pixel = [](float value) { return static_cast<int64_t>(std::min(std::max(value, -1e12f), 1e12f)); };
    return {pixel(x - half_width), pixel(y - half_height), pixel(x + half_width), pixel(y + half_height)};
  }
};

// torchvision's: the mask with one zero on each side, resized to its pixels (ATen's bilinear interpolate), which computes
// small and large results in different orders.
template <bool fused>
class ResizedMask {
 public:
  ResizedMask(const PixelBox& box, int64_t mask_height, int64_t mask_width)
      : box_(box),
        rows_(mask_height + 2),
        columns_(mask_width + 2),
        height_(std::max<int64_t>(box.y1 - box.y0 + 1, 1)),
        width_(std::max<int64_t>(box.x1 - box.x0 + 1, 1)) {}

  Window window(int64_t height, int64_t width) const {
    return {
        std::max<int64_t>(box_.x0, 0), std::max<int64_t>(box_.y0, 0), std::min(box_.x1 + 1, width),
        std::min(box_.y1 + 1, height)};
  }

  INLINE Sample column(int64_t x) const {
    return at(x - box_.x0, width_, columns_);
  }

  INLINE Sample row(int64_t y) const {
    return at(y - box_.y0, height_, rows_);
  }

  INLINE float value(const float* west, const float* east, const Sample& column, const Sample& row) const {
    if (height_ + width_ <= 128) {
      return weigh<fused, true>(west, east, column, row);
    }
    if (!fused) {
      return (west[0] * column.near + east[0] * column.far) * row.near +
          (west[1] * column.near + east[1] * column.far) * row.far;
    }
    const float north = std::fma(west[0], column.near, east[0] * column.far);
    const float south = std::fma(west[1], column.near, east[1] * column.far);
    return std::fma(north, row.near, south * row.far);
  }

 private:
  // `cells`: of the mask and its zeros.
  static INLINE Sample at(int64_t pixel, int64_t pixels, int64_t cells) {
    const float step = static_cast<float>(cells) / static_cast<float>(pixels);
    const float centre = static_cast<float>(pixel) + 0.5f;
    const float place = std::max(fused ? std::fma(step, centre, -0.5f) : step * centre - 0.5f, 0.0f);
    const int64_t index = std::min(static_cast<int64_t>(place), cells - 1);
    const float far = std::min(place - static_cast<float>(index), 1.0f);
    return {index + kPad - 1, 1 - far, far, true};
  }

  PixelBox box_;
  int64_t rows_, columns_, height_, width_;
};

} // namespace maskrcnn_plus
