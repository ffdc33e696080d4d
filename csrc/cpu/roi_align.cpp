// RoIAlign on CPUs: each box's crop is read once, row by row, contiguously over channels.
//
// Shorthand: K boxes, L maps, C channels, p and q a bin's row and column. Both directions are split into tasks that
// write to memory of their own, and a task adds in an order that depends on the boxes alone, so results do not depend on
// the threads.

#include "roi_align.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <type_traits>

#include "layout.h"
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
    bool maps_channels_last,
    bool output_channels_last,
    at::Tensor& output) {
  using S = Accumulator<T>;
  const int64_t channels = features[0].size(1);
  const int64_t boxes = rois.size(0);
  const int64_t bins = options.bins_y * options.bins_x;
  const int64_t blocks = (channels + kBlock - 1) / kBlock;
  // Few boxes are shared out by channels too.
  const bool split = boxes < 4 * at::get_num_threads();
  const Layout out_layout = Layout::of(bins, channels, output_channels_last);
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
      const int64_t pixels = map.height * map.width;
      const Layout layout = Layout::of(pixels, channels, maps_channels_last);
      const T* image = data[levels[k]] + static_cast<int64_t>(roi_data[k * 5]) * channels * pixels;
      box.build(roi_data + k * 5, map, options);
      const int64_t left = box.x.lower;
      const int64_t crop_width = box.x.upper - left;
      for (int64_t b = split ? task % blocks : 0; b < (split ? task % blocks + 1 : blocks); ++b) {
        const int64_t c0 = b * kBlock;
        const int64_t block = std::min(kBlock, channels - c0);
        std::fill_n(sums.begin(), bins * block, S(0));
        for (int64_t r = 0; r < box.rows(); ++r) {
          if (!box.has_bins(r)) {
            continue;
          }
          const T* row = image + (box.y.lower + r) * map.width * layout.place + c0 * layout.channel;
          if constexpr (std::is_same_v<T, S>) {
            if (layout.channel == 1) {
              kernels.reduce(box.row(r, options, layout.place, block), row, sums.data(), block);
              continue;
            }
          }
          scratch.resize(crop_width * block);
          const T* crop = row + left * layout.place;
          for_block(layout, crop_width, block, [&](int64_t from, int64_t to) { scratch[to] = static_cast<S>(crop[from]); });
          kernels.reduce(box.row(r, options, block, block), scratch.data() - left * block, sums.data(), block);
        }
        T* target = out + k * channels * bins + c0 * out_layout.channel;
        for_block(out_layout, bins, block, [&](int64_t to, int64_t from) { target[to] = static_cast<T>(sums[from]); });
      }
    };
  });
}

// The boxes of one image on one map, whose gradient they share.
struct Group {
  int64_t level;
  int64_t image;
  std::vector<int64_t> boxes;
};

// The largest groups first.
template <typename S>
std::vector<Group> group_by_image(const S* rois, const std::vector<int64_t>& levels, const std::vector<Map>& maps) {
  std::vector<Group> groups;
  for (const int64_t k : walk<S>(rois, levels, maps)) { // in the order of level and image
    const int64_t image = static_cast<int64_t>(rois[k * 5]);
    if (groups.empty() || groups.back().level != levels[k] || groups.back().image != image) {
      groups.push_back({levels[k], image, {}});
    }
    groups.back().boxes.push_back(k);
  }
  std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) {
    return a.boxes.size() > b.boxes.size();
  });
  return groups;
}

template <typename T>
void backward(
    const at::Tensor& grad,
    const std::vector<Map>& maps,
    const at::Tensor& rois,
    const std::vector<int64_t>& levels,
    const Options& options,
    bool grad_channels_last,
    bool maps_channels_last,
    std::vector<at::Tensor>& results) { // of the accumulator's type
  using S = Accumulator<T>;
  const int64_t channels = grad.size(1);
  const int64_t bins = options.bins_y * options.bins_x;
  const Layout grad_layout = Layout::of(bins, channels, grad_channels_last);
  const RowKernels<S>& kernels = row_kernels<S>();
  const S* roi_data = rois.const_data_ptr<S>();
  const T* grad_data = grad.const_data_ptr<T>();
  const std::vector<Group> groups = group_by_image<S>(roi_data, levels, maps);
  // Smaller blocks where there would be too few for all threads.
  int64_t width = kBlock;
  while (width > 16 && static_cast<int64_t>(groups.size()) * ((channels + width - 1) / width) < 4 * at::get_num_threads()) {
    width /= 2;
  }
  const int64_t blocks = (channels + width - 1) / width;

  run_tasks(static_cast<int64_t>(groups.size()) * blocks, [&] {
    return [&, box = Box<S>(), bin_scratch = std::vector<S>(bins * width), scratch = std::vector<S>()](int64_t task) mutable {
      const Group& group = groups[task / blocks];
      const Map& map = maps[group.level];
      const int64_t pixels = map.height * map.width;
      const Layout layout = Layout::of(pixels, channels, maps_channels_last);
      const int64_t c0 = (task % blocks) * width;
      const int64_t block = std::min(width, channels - c0);
      S* image = results[group.level].template mutable_data_ptr<S>() + group.image * channels * pixels;
      for (const int64_t k : group.boxes) {
        box.build(roi_data + k * 5, map, options);
        if (box.rows() == 0) {
          continue;
        }
        const T* values = grad_data + k * channels * bins + c0 * grad_layout.channel;
        const S* bin_values = bin_scratch.data();
        int64_t bin_stride = block;
        if constexpr (std::is_same_v<T, S>) {
          if (grad_layout.channel == 1) {
            bin_values = values;
            bin_stride = channels;
          }
        }
        if (bin_values == bin_scratch.data()) {
          for_block(grad_layout, bins, block, [&](int64_t from, int64_t to) {
            bin_scratch[to] = static_cast<S>(values[from]);
          });
        }
        const int64_t left = box.x.lower;
        const int64_t crop_width = box.x.upper - left;
        for (int64_t r = 0; r < box.rows(); ++r) {
          if (!box.has_bins(r)) {
            continue;
          }
          S* row = image + (box.y.lower + r) * map.width * layout.place + c0 * layout.channel;
          if (layout.channel == 1) {
            kernels.spread(box.row(r, options, layout.place, bin_stride), row, bin_values, block);
            continue;
          }
          scratch.assign(crop_width * block, S(0));
          kernels.spread(box.row(r, options, block, bin_stride), scratch.data() - left * block, bin_values, block);
          S* crop = row + left;
          for_block(layout, crop_width, block, [&](int64_t to, int64_t from) { crop[to] += scratch[from]; });
        }
      }
    };
  });
}

// Whether contiguous maps are better turned round as a whole: where the crops together are much larger than they.
template <typename S>
bool turn_round(const at::Tensor& rois, const std::vector<int64_t>& levels, const std::vector<Map>& maps) {
  double pixels = 0;
  for (const Map& map : maps) {
    pixels += static_cast<double>(map.images) * map.height * map.width;
  }
  return crop_area<S>(rois.const_data_ptr<S>(), levels, maps) > 4 * pixels;
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
  const Options options{pooled_height, pooled_width, sampling_ratio, aligned};
  check_arguments(rois, levels, spatial_scales, features.size(), options);
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
    const bool maps_channels_last = channels_last || turn_round<S>(boxes_of_type, level_of, maps);
    std::vector<at::Tensor> inputs;
    for (const at::Tensor& feature : features) {
      inputs.push_back(
          feature.contiguous(maps_channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous));
    }
    forward<scalar_t>(inputs, maps, boxes_of_type, level_of, options, maps_channels_last, channels_last, output);
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
  const Options options{grad.size(2), grad.size(3), sampling_ratio, aligned};
  check_arguments(rois, levels, spatial_scales, sizes.size() / 4, options);
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
    const bool maps_channels_last = channels_last || turn_round<S>(boxes_of_type, level_of, maps);
    const auto format = maps_channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    for (const Map& map : maps) {
      const auto type = grad.options().dtype(boxes_of_type.scalar_type());
      results.push_back(at::empty({map.images, grad.size(1), map.height, map.width}, type, format).zero_());
    }
    const bool grad_channels_last = !grad.is_contiguous() && grad.is_contiguous(at::MemoryFormat::ChannelsLast);
    const at::Tensor values = grad_channels_last ? grad : grad.contiguous();
    if (grad.numel() > 0) {
      backward<scalar_t>(
          values, maps, boxes_of_type, level_of, options, grad_channels_last, maps_channels_last, results);
    }
  });
  for (at::Tensor& result : results) {
    result = result.to(grad.scalar_type()).contiguous(
        channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  }
  return results;
}

} // namespace maskrcnn_plus
