// The row kernels, chosen once for the processor that runs them.

#pragma once

#include "roi_align_axis.h"

namespace maskrcnn_plus {

template <typename T>
struct RowKernels {
  // bins[p][q][c] += the row's share, and its transpose.
  void (*reduce)(const RowOf<T>& row, const T* pixels, T* bins, int64_t channels);
  void (*spread)(const RowOf<T>& row, T* pixels, const T* bins, int64_t channels);
};

template <typename T>
const RowKernels<T>& row_kernels();

} // namespace maskrcnn_plus
