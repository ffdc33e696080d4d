#pragma once

#include <cstdint>
#include <string>

namespace maskrcnn_plus {

// The widest instruction set that this processor and this build share: "AVX512", "AVX2" or "DEFAULT". The environment
// variable ATEN_CPU_CAPABILITY (avx512, avx2, default) lowers it, as it does for PyTorch's own kernels.
std::string cpu_capability();

// The number of threads that share the work of an operator: that of torch.set_num_threads, or 1 where this build has no
// OpenMP.
int64_t parallel_threads();

} // namespace maskrcnn_plus
