// RoIAlign on CPUs: each box's crop is read once, row by row, contiguously over channels.
//
// Shorthand: K boxes, L maps, C channels, p and q a bin's row and column. Both directions are split into tasks that
// write to memory of their own, and a task adds in an order that depends on the boxes alone, so results do not depend on
// the threads.

#include "roi_align.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <type_traits>

#include "roi_align_check.h"
#include "roi_align_kernels.h"
#include "tasks.h"

namespace maskrcnn_plus {
namespace {

constexpr int64_t kBlock = 64; // channels of a task: the bins of a block stay in the cache

template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

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
  const std::vector<int64_t> order = walk<S>(roi_data, levels, maps);
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
  for (const int64_t k : walk<S>(roi_data, levels, maps)) {
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
    const bool pixels_first = channels_last || crop_area<S>(boxes_of_type.const_data_ptr<S>(), level_of, maps) > pixels;
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
