#include "roi_align_kernels.h"

#include "capability.h"

#if defined(__x86_64__)
#define ROWS_NAMESPACE avx512
#define ROWS_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define ROWS_VECTOR_BYTES 64
#include "roi_align_rows.h"
#undef ROWS_NAMESPACE
#undef ROWS_TARGET
#undef ROWS_VECTOR_BYTES

#define ROWS_NAMESPACE avx2
#define ROWS_TARGET __attribute__((target("avx2,fma")))
#define ROWS_VECTOR_BYTES 32
#include "roi_align_rows.h"
#undef ROWS_NAMESPACE
#undef ROWS_TARGET
#undef ROWS_VECTOR_BYTES
#endif

#define ROWS_NAMESPACE baseline
#define ROWS_TARGET
#define ROWS_VECTOR_BYTES 16
#include "roi_align_rows.h"

namespace maskrcnn_plus {

template <typename T>
const RowKernels<T>& row_kernels() {
  static const RowKernels<T> kernels = [] {
#if defined(__x86_64__)
    const std::string capability = cpu_capability();
    if (capability == "AVX512") {
      return RowKernels<T>{avx512::reduce_row<T>, avx512::spread_row<T>};
    }
    if (capability == "AVX2") {
      return RowKernels<T>{avx2::reduce_row<T>, avx2::spread_row<T>};
    }
#endif
    return RowKernels<T>{baseline::reduce_row<T>, baseline::spread_row<T>};
  }();
  return kernels;
}

template const RowKernels<float>& row_kernels<float>();
template const RowKernels<double>& row_kernels<double>();

} // namespace maskrcnn_plus
