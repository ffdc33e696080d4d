// Greedy non-maximum suppression: groups (images, levels, classes) side by side on all threads, and each kept box against
// all that follow it in one vectorised loop, in torchvision's arithmetic.

#include "nms.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "tasks.h"

namespace maskrcnn_plus {
namespace {

// Marks what each box of one group suppresses; order: indices of the group's boxes, the best first.
template <typename T>
void suppress(const T* boxes, const int64_t* order, int64_t count, T threshold, bool* kept) {
  std::vector<T> coordinates(count * 5);
  T* x0 = coordinates.data();
  T* y0 = x0 + count;
  T* x1 = y0 + count;
  T* y1 = x1 + count;
  T* area = y1 + count;
  for (int64_t i = 0; i < count; ++i) {
    const T* box = boxes + order[i] * 4;
    x0[i] = box[0];
    y0[i] = box[1];
    x1[i] = box[2];
    y1[i] = box[3];
    area[i] = (box[2] - box[0]) * (box[3] - box[1]);
  }
  std::vector<uint8_t> suppressed(count, 0);
  for (int64_t i = 0; i < count; ++i) {
    if (suppressed[i]) {
      continue;
    }
    kept[order[i]] = true;
    const T left = x0[i];
    const T top = y0[i];
    const T right = x1[i];
    const T bottom = y1[i];
    const T own = area[i];
    uint8_t* mark = suppressed.data();
    for (int64_t j = i + 1; j < count; ++j) {
      const T width = std::max(T(0), std::min(right, x1[j]) - std::max(left, x0[j]));
      const T height = std::max(T(0), std::min(bottom, y1[j]) - std::max(top, y0[j]));
      const T intersection = width * height;
      mark[j] |= intersection / (own + area[j] - intersection) > threshold;
    }
  }
}

} // namespace

at::Tensor batched_nms(
    const at::Tensor& boxes,
    const at::Tensor& scores,
    const at::Tensor& groups,
    double iou_threshold) {
  const int64_t count = boxes.size(0);
  TORCH_CHECK_VALUE(
      boxes.dim() == 2 && boxes.size(1) == 4 && scores.dim() == 1 && scores.size(0) == count && groups.dim() == 1 &&
          groups.size(0) == count && groups.scalar_type() == at::kLong && scores.scalar_type() == boxes.scalar_type(),
      "batched_nms: boxes must be [N, 4], scores [N] of the same type and groups int64 [N], got ", boxes.sizes(), ", ",
      scores.sizes(), " and ", groups.sizes(), ".");
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::vector<uint8_t> kept(count, 0);
  AT_DISPATCH_FLOATING_TYPES(boxes.scalar_type(), "batched_nms", [&] {
    const at::Tensor all_boxes = boxes.contiguous();
    const at::Tensor all_scores = scores.contiguous();
    const at::Tensor all_groups = groups.contiguous();
    const scalar_t* score = all_scores.const_data_ptr<scalar_t>();
    const int64_t* group = all_groups.const_data_ptr<int64_t>();
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return score[a] > score[b]; });
    std::vector<int64_t> by_group = order;
    std::stable_sort(by_group.begin(), by_group.end(), [&](int64_t a, int64_t b) { return group[a] < group[b]; });
    std::vector<int64_t> starts;
    for (int64_t i = 0; i < count; ++i) {
      if (i == 0 || group[by_group[i]] != group[by_group[i - 1]]) {
        starts.push_back(i);
      }
    }
    starts.push_back(count);
    // An overlap in scalar_t is above the threshold in double, as torchvision compares them, where it is above the largest
    // scalar_t that is not above the threshold.
    scalar_t threshold = static_cast<scalar_t>(iou_threshold);
    if (static_cast<double>(threshold) > iou_threshold) {
      threshold = std::nextafter(threshold, -std::numeric_limits<scalar_t>::infinity());
    }
    run_tasks(static_cast<int64_t>(starts.size()) - 1, [&] {
      return [&](int64_t task) {
        const int64_t* members = by_group.data() + starts[task];
        suppress<scalar_t>(
            all_boxes.const_data_ptr<scalar_t>(), members, starts[task + 1] - starts[task],
            threshold, reinterpret_cast<bool*>(kept.data()));
      };
    });
  });
  const auto end = std::stable_partition(order.begin(), order.end(), [&](int64_t i) { return kept[i] != 0; });
  at::Tensor result = at::empty({end - order.begin()}, boxes.options().dtype(at::kLong));
  std::copy(order.begin(), end, result.mutable_data_ptr<int64_t>());
  return result;
}

} // namespace maskrcnn_plus
