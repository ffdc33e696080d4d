// One box of RoIAlign on one map: its weights along both axes, and the order in which boxes are walked.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <tuple>
#include <vector>

#include "roi_align_axis.h"

namespace maskrcnn_plus {

struct Map {
  int64_t images;
  int64_t height;
  int64_t width;
  double scale;
};

struct Options {
  int64_t bins_y;
  int64_t bins_x;
  int64_t sampling_ratio;
  bool aligned;
};

// The weights of one box on one map.
template <typename S>
struct Box {
  Axis<S> x;
  Axis<S> y;
  std::vector<int64_t> first_y; // of each row of the crop, the bins [first_y, last_y) that contain it
  std::vector<int64_t> last_y;
  std::vector<S> row_weights; // [rows, bins_y]

  void build(const S* roi, const Map& map, const Options& options) {
    build_axis(x, roi[1], roi[3], map.width, options.bins_x, map.scale, options);
    build_axis(y, roi[2], roi[4], map.height, options.bins_y, map.scale, options);
    const int64_t rows = y.upper - y.lower;
    first_y.assign(rows, options.bins_y);
    last_y.assign(rows, 0);
    row_weights.assign(rows * options.bins_y, S(0));
    for (int64_t p = 0; p < options.bins_y; ++p) {
      const Span& span = y.bins[p];
      for (int64_t i = 0; i < span.length; ++i) {
        const int64_t row = span.start + i - y.lower;
        row_weights[row * options.bins_y + p] = y.weights[span.offset + i];
        first_y[row] = std::min(first_y[row], p);
        last_y[row] = std::max(last_y[row], p + 1);
      }
    }
  }

  // Rows of the crop; none where the box has no pixel of the map.
  int64_t rows() const {
    return x.upper == x.lower ? 0 : y.upper - y.lower;
  }

  // Sparse samples may leave rows out.
  bool has_bins(int64_t r) const {
    return first_y[r] < last_y[r];
  }

  RowOf<S> row(int64_t r, const Options& options, int64_t pixel_stride, int64_t bin_stride) const {
    const S* weights = row_weights.data() + r * options.bins_y + first_y[r];
    return {x.bins.data(), x.weights.data(), weights, options.bins_x, first_y[r], last_y[r], pixel_stride, bin_stride};
  }

 private:
  static void build_axis(
      Axis<S>& axis, S from, S to, int64_t size, int64_t bins, double spatial_scale, const Options& options) {
    const S scale = static_cast<S>(spatial_scale);
    const S offset = options.aligned ? S(0.5) : S(0);
    const S start = from * scale - offset;
    S extent = to * scale - offset - start;
    if (!options.aligned) {
      extent = std::max(extent, S(1));
    }
    const S bin_size = extent / static_cast<S>(bins);
    int64_t grid = options.sampling_ratio;
    if (!std::isfinite(start) || !std::isfinite(extent)) {
      grid = 0; // the scale takes the box beyond all numbers, and so beyond the map
    } else if (grid <= 0) {
      grid = static_cast<int64_t>(std::clamp(std::ceil(static_cast<double>(bin_size)), 0.0, 1e15));
    }
    axis.build(start, bin_size, size > 0 ? grid : 0, bins, size, static_cast<S>(std::max<int64_t>(grid, 1)));
  }
};

// Pixels of all crops together, about.
template <typename S>
double crop_area(const S* rois, const std::vector<int64_t>& levels, const std::vector<Map>& maps) {
  double area = 0;
  for (int64_t k = 0; k < static_cast<int64_t>(levels.size()); ++k) {
    const Map& map = maps[levels[k]];
    const double width = (rois[k * 5 + 3] - rois[k * 5 + 1]) * map.scale;
    const double height = (rois[k * 5 + 4] - rois[k * 5 + 2]) * map.scale;
    area += std::min<double>(std::max(width, 1.0), map.width) * std::min<double>(std::max(height, 1.0), map.height);
  }
  return area;
}

// The boxes map by map, image by image, and in strips of the map: those that follow each other share pixels in the cache.
template <typename S>
std::vector<int64_t> walk(const S* rois, const std::vector<int64_t>& levels, const std::vector<Map>& maps) {
  constexpr double strip = 16; // rows of the map
  struct Key {
    int64_t level;
    S image;
    double row;
    double column;
  };
  std::vector<Key> keys;
  for (int64_t k = 0; k < static_cast<int64_t>(levels.size()); ++k) {
    const S* roi = rois + k * 5;
    const double scale = maps[levels[k]].scale / 2;
    keys.push_back({levels[k], roi[0], std::floor((roi[2] + roi[4]) * scale / strip), (roi[1] + roi[3]) * scale});
  }
  std::vector<int64_t> order(keys.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return std::tie(keys[a].level, keys[a].image, keys[a].row, keys[a].column) <
        std::tie(keys[b].level, keys[b].image, keys[b].row, keys[b].column);
  });
  return order;
}

} // namespace maskrcnn_plus
