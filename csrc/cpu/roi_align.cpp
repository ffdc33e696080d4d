// RoIAlign on CPUs: each box's crop is read once, row by row, contiguously over channels.
//
// Shorthand: K boxes, L maps, C channels, p and q a bin's row and column. Both directions are split into tasks that
// write to memory of their own, and a task adds in an order that depends on the boxes alone, so results do not depend on
// the threads.

#include "roi_align.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <atomic>
#include <numeric>
#include <tuple>
#include <type_traits>

#include "roi_align_kernels.h"

namespace maskrcnn_plus {
namespace {

constexpr int64_t kBlock = 64; // channels of a task: the bins of a block stay in the cache

template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

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

  bool empty() const {
    return x.upper == x.lower || y.upper == y.lower;
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
    if (grid <= 0) {
      grid = static_cast<int64_t>(std::clamp(std::ceil(static_cast<double>(bin_size)), 0.0, 1e15));
    }
    axis.build(start, bin_size, size > 0 ? grid : 0, bins, size, static_cast<S>(std::max<int64_t>(grid, 1)));
  }
};

// Threads take the tasks one by one, so that a large box does not hold up the others.
template <typename MakeWorker>
void run_tasks(int64_t tasks, const MakeWorker& make_worker) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(tasks, at::get_num_threads());
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    auto work = make_worker();
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t task = next++; task < tasks; task = next++) {
        work(task);
      }
    }
  });
}

std::vector<int64_t> levels_of(const std::optional<at::Tensor>& levels, int64_t boxes, int64_t maps) {
  std::vector<int64_t> result(boxes, 0);
  if (levels.has_value()) {
    const at::Tensor contiguous = levels->contiguous();
    const int64_t* data = contiguous.const_data_ptr<int64_t>();
    for (int64_t k = 0; k < boxes; ++k) {
      TORCH_CHECK_VALUE(
          data[k] >= 0 && data[k] < maps, "roi_align: level ", data[k], " of RoI ", k, " is outside [0, ", maps, ").");
      result[k] = data[k];
    }
  }
  return result;
}

template <typename S>
void check_rois(const at::Tensor& rois, const std::vector<int64_t>& levels, const std::vector<Map>& maps) {
  const S* data = rois.const_data_ptr<S>();
  for (int64_t k = 0; k < rois.size(0); ++k) {
    const S* roi = data + k * 5;
    for (int64_t i = 0; i < 5; ++i) {
      TORCH_CHECK_VALUE(
          std::isfinite(roi[i]), "roi_align: RoI ", k, " is not finite: (", roi[0], ", ", roi[1], ", ", roi[2], ", ",
          roi[3], ", ", roi[4], ").");
    }
    TORCH_CHECK_VALUE(
        roi[0] >= 0 && roi[0] < maps[levels[k]].images, "roi_align: batch index ", roi[0], " of RoI ", k,
        " is outside [0, ", maps[levels[k]].images, ").");
  }
}

// Pixels of all crops together, about.
template <typename S>
double crop_area(const at::Tensor& rois, const std::vector<int64_t>& levels, const std::vector<Map>& maps) {
  const S* data = rois.const_data_ptr<S>();
  double area = 0;
  for (int64_t k = 0; k < rois.size(0); ++k) {
    const Map& map = maps[levels[k]];
    const double width = (data[k * 5 + 3] - data[k * 5 + 1]) * map.scale;
    const double height = (data[k * 5 + 4] - data[k * 5 + 2]) * map.scale;
    area += std::min<double>(std::max(width, 1.0), map.width) * std::min<double>(std::max(height, 1.0), map.height);
  }
  return area;
}

// The boxes map by map, image by image, and in strips of the map: those that follow each other share pixels in the cache.
template <typename S>
std::vector<int64_t> walk(const at::Tensor& rois, const std::vector<int64_t>& levels, const std::vector<Map>& maps) {
  constexpr double strip = 16; // rows of the map
  struct Key {
    int64_t level;
    S image;
    double row;
    double column;
  };
  const S* data = rois.const_data_ptr<S>();
  std::vector<Key> keys;
  for (int64_t k = 0; k < rois.size(0); ++k) {
    const S* roi = data + k * 5;
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

template <typename T>
void forward(
    const std::vector<at::Tensor>& features,
    const std::vector<Map>& maps,
    const at::Tensor& rois,
    const std::vector<int64_t>& levels,
    const Options& options,
    bool pixels_first, // channels_last maps
    bool bins_first, // channels_last output
    at::Tensor& output) {
  using S = Accumulator<T>;
  constexpr bool direct = std::is_same_v<T, S>;
  const int64_t channels = features[0].size(1);
  const int64_t boxes = rois.size(0);
  const int64_t bins = options.bins_y * options.bins_x;
  const int64_t blocks = (channels + kBlock - 1) / kBlock;
  // Few boxes are shared out by channels too.
  const bool split = boxes < 4 * at::get_num_threads();
  const RowKernels<S>& kernels = row_kernels<S>();
  const S* roi_data = rois.const_data_ptr<S>();
  const std::vector<int64_t> order = walk<S>(rois, levels, maps);
  T* out = output.mutable_data_ptr<T>();
  std::vector<const T*> data;
  for (const at::Tensor& feature : features) {
    data.push_back(feature.const_data_ptr<T>());
  }

  run_tasks(split ? boxes * blocks : boxes, [&] {
    return [&, box = Box<S>(), sums = std::vector<S>(bins * kBlock), scratch = std::vector<S>()](int64_t task) mutable {
      const int64_t k = order[split ? task / blocks : task];
      const Map& map = maps[levels[k]];
      const T* pixels = data[levels[k]];
      const int64_t image = static_cast<int64_t>(roi_data[k * 5]);
      box.build(roi_data + k * 5, map, options);
      const int64_t crop_width = box.x.upper - box.x.lower;
      for (int64_t b = split ? task % blocks : 0; b < (split ? task % blocks + 1 : blocks); ++b) {
        const int64_t c0 = b * kBlock;
        const int64_t block = std::min(kBlock, channels - c0);
        std::fill_n(sums.begin(), bins * block, S(0));
        for (int64_t r = 0; r < static_cast<int64_t>(box.first_y.size()) && !box.empty(); ++r) {
          if (box.last_y[r] == 0) {
            continue;
          }
          const int64_t y = box.y.lower + r;
          const int64_t row_start = (image * map.height + y) * map.width; // in pixels
          if constexpr (direct) {
            if (pixels_first) {
              const T* row = pixels + row_start * channels + c0;
              kernels.reduce(box.row(r, options, channels, block), row, sums.data(), block);
              continue;
            }
          }
          scratch.resize(crop_width * block);
          if (pixels_first) {
            for (int64_t x = 0; x < crop_width; ++x) {
              const T* pixel = pixels + (row_start + box.x.lower + x) * channels + c0;
              for (int64_t c = 0; c < block; ++c) {
                scratch[x * block + c] = static_cast<S>(pixel[c]);
              }
            }
          } else {
            for (int64_t c = 0; c < block; ++c) {
              const T* row =
                  pixels + ((image * channels + c0 + c) * map.height + y) * map.width + box.x.lower;
              for (int64_t x = 0; x < crop_width; ++x) {
                scratch[x * block + c] = static_cast<S>(row[x]);
              }
            }
          }
          const S* row = scratch.data() - box.x.lower * block;
          kernels.reduce(box.row(r, options, block, block), row, sums.data(), block);
        }
        if (bins_first) {
          for (int64_t bin = 0; bin < bins; ++bin) {
            T* target = out + (k * bins + bin) * channels + c0;
            for (int64_t c = 0; c < block; ++c) {
              target[c] = static_cast<T>(sums[bin * block + c]);
            }
          }
        } else {
          for (int64_t c = 0; c < block; ++c) {
            T* target = out + (k * channels + c0 + c) * bins;
            for (int64_t bin = 0; bin < bins; ++bin) {
              target[bin] = static_cast<T>(sums[bin * block + c]);
            }
          }
        }
      }
    };
  });
}

template <typename T>
void backward(
    const at::Tensor& grad,
    const std::vector<Map>& maps,
    const at::Tensor& rois,
    const std::vector<int64_t>& levels,
    const Options& options,
    bool bins_first, // channels_last gradient
    std::vector<at::Tensor>& results) { // channels_last, of the accumulator's type
  using S = Accumulator<T>;
  constexpr bool direct = std::is_same_v<T, S>;
  const int64_t channels = grad.size(1);
  const int64_t bins = options.bins_y * options.bins_x;
  const RowKernels<S>& kernels = row_kernels<S>();
  const S* roi_data = rois.const_data_ptr<S>();
  const T* grad_data = grad.const_data_ptr<T>();

  struct Group {
    int64_t level;
    int64_t image;
    std::vector<int64_t> boxes;
  };
  std::vector<std::vector<std::vector<int64_t>>> by_image(maps.size());
  for (size_t l = 0; l < maps.size(); ++l) {
    by_image[l].resize(maps[l].images);
  }
  for (const int64_t k : walk<S>(rois, levels, maps)) {
    by_image[levels[k]][static_cast<int64_t>(roi_data[k * 5])].push_back(k);
  }
  std::vector<Group> groups;
  for (size_t l = 0; l < maps.size(); ++l) {
    for (int64_t n = 0; n < maps[l].images; ++n) {
      if (!by_image[l][n].empty()) {
        groups.push_back({static_cast<int64_t>(l), n, std::move(by_image[l][n])});
      }
    }
  }
  // The longest tasks first, in smaller blocks where there would be too few for all threads.
  std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) {
    return a.boxes.size() > b.boxes.size();
  });
  int64_t width = kBlock;
  while (width > 16 && static_cast<int64_t>(groups.size()) * ((channels + width - 1) / width) < 4 * at::get_num_threads()) {
    width /= 2;
  }
  const int64_t blocks = (channels + width - 1) / width;

  run_tasks(static_cast<int64_t>(groups.size()) * blocks, [&] {
    return [&, box = Box<S>(), scratch = std::vector<S>(bins * width)](int64_t task) mutable {
      const Group& group = groups[task / blocks];
      const Map& map = maps[group.level];
      S* target = results[group.level].template mutable_data_ptr<S>();
      const int64_t c0 = (task % blocks) * width;
      const int64_t block = std::min(width, channels - c0);
      for (const int64_t k : group.boxes) {
        box.build(roi_data + k * 5, map, options);
        if (box.empty()) {
          continue;
        }
        const S* values = scratch.data();
        int64_t bin_stride = block;
        bool ready = false;
        if constexpr (direct) {
          if (bins_first) {
            values = grad_data + k * bins * channels + c0;
            bin_stride = channels;
            ready = true;
          }
        }
        if (!ready) {
          for (int64_t c = 0; c < block; ++c) {
            for (int64_t bin = 0; bin < bins; ++bin) {
              const int64_t from = bins_first ? (k * bins + bin) * channels + c0 + c : (k * channels + c0 + c) * bins + bin;
              scratch[bin * block + c] = static_cast<S>(grad_data[from]);
            }
          }
        }
        for (int64_t r = 0; r < static_cast<int64_t>(box.first_y.size()); ++r) {
          if (box.last_y[r] == 0) {
            continue;
          }
          S* row = target + (group.image * map.height + box.y.lower + r) * map.width * channels + c0;
          kernels.spread(box.row(r, options, channels, bin_stride), row, values, block);
        }
      }
    };
  });
}

void check_arguments(
    const at::Tensor& rois,
    const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> scales,
    size_t maps,
    int64_t bins_y,
    int64_t bins_x) {
  TORCH_CHECK_VALUE(maps > 0, "roi_align: there is no feature map.");
  TORCH_CHECK_VALUE(scales.size() == maps, "roi_align: ", maps, " feature maps but ", scales.size(), " spatial scales.");
  TORCH_CHECK_VALUE(
      rois.dim() == 2 && rois.size(1) == 5, "roi_align: rois must be [K, 5] (batch index, x0, y0, x1, y1), got ",
      rois.sizes(), ".");
  TORCH_CHECK_VALUE(bins_y > 0 && bins_x > 0, "roi_align: output size ", bins_y, " x ", bins_x, " must be positive.");
  for (const double scale : scales) {
    TORCH_CHECK_VALUE(std::isfinite(scale) && scale > 0, "roi_align: spatial scale ", scale, " must be positive.");
  }
  if (levels.has_value()) {
    TORCH_CHECK_VALUE(
        levels->dim() == 1 && levels->size(0) == rois.size(0) && levels->scalar_type() == at::kLong,
        "roi_align: levels must be int64 of one entry a RoI.");
  } else {
    TORCH_CHECK_VALUE(maps == 1, "roi_align: levels are needed where there are several feature maps.");
  }
}

} // namespace

at::Tensor roi_align(
    at::TensorList features,
    const at::Tensor& rois,
    const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales,
    int64_t pooled_height,
    int64_t pooled_width,
    int64_t sampling_ratio,
    bool aligned,
    bool channels_last) {
  check_arguments(rois, levels, spatial_scales, features.size(), pooled_height, pooled_width);
  const int64_t boxes = rois.size(0);
  const at::ScalarType type = features[0].scalar_type();
  std::vector<Map> maps;
  for (size_t l = 0; l < features.size(); ++l) {
    const at::Tensor& feature = features[l];
    TORCH_CHECK_VALUE(feature.dim() == 4, "roi_align: feature map ", l, " must be [N, C, H, W], got ", feature.sizes(), ".");
    TORCH_CHECK_VALUE(
        feature.size(1) == features[0].size(1) && feature.scalar_type() == type && feature.device().is_cpu(),
        "roi_align: feature map ", l, " differs from the first in channels, type or device.");
    maps.push_back({feature.size(0), feature.size(2), feature.size(3), spatial_scales[l]});
  }
  const Options options{pooled_height, pooled_width, sampling_ratio, aligned};
  const auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  at::Tensor output =
      at::empty({boxes, features[0].size(1), pooled_height, pooled_width}, features[0].options(), format);
  const std::vector<int64_t> level_of = levels_of(levels, boxes, static_cast<int64_t>(maps.size()));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "roi_align", [&] {
    using S = Accumulator<scalar_t>;
    const at::Tensor boxes_of_type = rois.to(c10::CppTypeToScalarType<S>::value).contiguous();
    check_rois<S>(boxes_of_type, level_of, maps);
    if (output.numel() == 0) {
      return;
    }
    // Contiguous maps are turned round as a whole where the crops together are larger than they.
    double pixels = 0;
    for (const Map& map : maps) {
      pixels += static_cast<double>(map.images) * map.height * map.width;
    }
    const bool pixels_first = channels_last || crop_area<S>(boxes_of_type, level_of, maps) > pixels;
    std::vector<at::Tensor> inputs;
    for (const at::Tensor& feature : features) {
      inputs.push_back(
          feature.contiguous(pixels_first ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous));
    }
    forward<scalar_t>(inputs, maps, boxes_of_type, level_of, options, pixels_first, channels_last, output);
  });
  return output;
}

std::vector<at::Tensor> roi_align_backward(
    const at::Tensor& grad,
    const at::Tensor& rois,
    const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales,
    at::IntArrayRef sizes,
    int64_t sampling_ratio,
    bool aligned,
    bool channels_last) {
  TORCH_CHECK_VALUE(
      grad.dim() == 4 && grad.size(0) == rois.size(0) && sizes.size() % 4 == 0,
      "roi_align: the gradient must be [K, C, height, width], got ", grad.sizes(), ".");
  check_arguments(rois, levels, spatial_scales, sizes.size() / 4, grad.size(2), grad.size(3));
  const Options options{grad.size(2), grad.size(3), sampling_ratio, aligned};
  std::vector<Map> maps;
  for (size_t l = 0; l < sizes.size() / 4; ++l) {
    TORCH_CHECK_VALUE(sizes[4 * l + 1] == grad.size(1), "roi_align: feature map ", l, " and gradient differ in channels.");
    maps.push_back({sizes[4 * l], sizes[4 * l + 2], sizes[4 * l + 3], spatial_scales[l]});
  }
  const std::vector<int64_t> level_of = levels_of(levels, rois.size(0), static_cast<int64_t>(maps.size()));
  std::vector<at::Tensor> results;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "roi_align_backward", [&] {
    using S = Accumulator<scalar_t>;
    const at::Tensor boxes_of_type = rois.to(c10::CppTypeToScalarType<S>::value).contiguous();
    check_rois<S>(boxes_of_type, level_of, maps);
    for (const Map& map : maps) {
      results.push_back(at::zeros({map.images, map.height, map.width, grad.size(1)}, grad.options().dtype(boxes_of_type.scalar_type())));
    }
    const bool bins_first = !grad.is_contiguous() && grad.is_contiguous(at::MemoryFormat::ChannelsLast);
    const at::Tensor values = bins_first ? grad : grad.contiguous();
    if (grad.numel() > 0) {
      backward<scalar_t>(values, maps, boxes_of_type, level_of, options, bins_first, results);
    }
  });
  for (at::Tensor& result : results) {
    result = result.to(grad.scalar_type()).permute({0, 3, 1, 2}); // [N, C, H, W]
    if (!channels_last) {
      result = result.contiguous();
    }
  }
  return results;
}

} // namespace maskrcnn_plus
