// The separable weights of RoIAlign along one axis of one box.
//
// He et al., Mask R-CNN (2017), Sec. 3: a bin is the mean of bilinear samples on a regular grid. The mean over a grid and
// bilinear interpolation are both products of a factor in y and one in x, the rules at the border included, so
//   out[c] = Wy * F[c] * Wx^T,
// where row p of Wy holds the summed weights of the samples of bin p. A row is dense over a short span of pixels.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace maskrcnn_plus {

constexpr double kExact = 1 << 24; // pixels from the origin; beyond them float32 tells no pixel from the next

// Pixels [start, start + length) of one bin; their weights begin at `offset`.
struct Span {
  int64_t start;
  int64_t length;
  int64_t offset;
};

// What the row kernels read of one row of a crop: the spans of all bins along x, and the bins along y with this row.
template <typename T>
struct RowOf {
  const Span* x;
  const T* x_weights;
  const T* y_weights; // of the bins first_y <= p < last_y
  int64_t num_x;
  int64_t first_y;
  int64_t last_y;
  int64_t pixel_stride; // elements between neighbouring pixels of the row
  int64_t bin_stride; // elements between neighbouring bins
};

template <typename T>
struct Axis {
  std::vector<Span> bins;
  std::vector<T> weights;
  int64_t lower = 0; // the pixels that any bin touches: [lower, upper)
  int64_t upper = 0;

  // Weights of `num_bins` bins of `bin_size` pixels from `start`, of `grid` samples each, over `size` pixels. Samples
  // are placed by torchvision's expression in the type of the coordinates, so that both round alike.
  void build(T start, T bin_size, int64_t grid, int64_t num_bins, int64_t size, T divisor) {
    bins.clear();
    weights.clear();
    lower = size;
    upper = 0;
    for (int64_t bin = 0; bin < num_bins; ++bin) {
      add_bin(start, bin_size, grid, bin, size, divisor);
    }
    if (upper < lower) {
      lower = upper = 0;
    }
  }

 private:
  void add_bin(T start, T bin_size, int64_t grid, int64_t bin, int64_t size, T divisor) {
    const int64_t offset = static_cast<int64_t>(weights.size());
    // Only samples in [-1, size] count. Which those are is known to within a few from the spacing, so that a box of any
    // size costs no more than the map is wide.
    const double origin = static_cast<double>(start) + static_cast<double>(bin) * bin_size;
    const double spacing = static_cast<double>(bin_size) / static_cast<double>(std::max<int64_t>(grid, 1));
    const double reach = std::abs(static_cast<double>(start)) + std::abs(static_cast<double>(bin) * bin_size) + size;
    const bool far = reach > kExact;
    int64_t first_sample = 0;
    int64_t last_sample = grid;
    if (spacing > 0) {
      const double slack = 4 + std::min(reach, kExact) * 1e-6 / spacing;
      const double low = std::floor((-1.0 - origin) / spacing - slack);
      const double high = std::ceil((static_cast<double>(size) - origin) / spacing + slack);
      // fmax and fmin, since the difference of two infinities is no number.
      first_sample = static_cast<int64_t>(std::fmin(std::fmax(low, 0.0), static_cast<double>(grid)));
      last_sample = static_cast<int64_t>(std::fmin(std::fmax(high, 0.0), static_cast<double>(grid)));
    }
    int64_t begin = size;
    int64_t end = 0;
    for (int pass = 0; pass < 2; ++pass) { // first the span, then its weights
      if (pass == 1) {
        if (end <= begin) {
          break;
        }
        weights.resize(offset + end - begin, T(0));
      }
      for (int64_t i = first_sample; i < last_sample; ++i) {
        T at = start + static_cast<T>(bin) * bin_size +
            static_cast<T>(static_cast<T>(i) + static_cast<T>(.5f)) * bin_size / static_cast<T>(grid);
        if (far) {
          at = static_cast<T>(std::clamp(origin + (static_cast<double>(i) + 0.5) * spacing, -2.0, size + 1.0));
        }
        if (!(at >= T(-1) && at <= static_cast<T>(size))) {
          continue;
        }
        at = std::max(at, T(0));
        int64_t low = static_cast<int64_t>(at);
        int64_t high = low + 1;
        if (low >= size - 1) {
          low = high = size - 1;
          at = static_cast<T>(low);
        }
        if (pass == 0) {
          begin = std::min(begin, low);
          end = std::max(end, high + 1);
        } else {
          const T fraction = at - static_cast<T>(low);
          weights[offset + low - begin] += (T(1) - fraction) / divisor;
          weights[offset + high - begin] += fraction / divisor;
        }
      }
    }
    const int64_t length = std::max<int64_t>(end - begin, 0);
    bins.push_back({length > 0 ? begin : 0, length, offset});
    if (length > 0) {
      lower = std::min(lower, begin);
      upper = std::max(upper, end);
    }
  }
};

} // namespace maskrcnn_plus
