#include "capability.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

namespace maskrcnn_plus {

std::string cpu_capability() {
#if defined(__x86_64__) && defined(__GNUC__)
  const char* wish = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string limit = wish == nullptr ? "" : wish;
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && limit != "avx2" && limit != "default") {
    return "AVX512";
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && limit != "default") {
    return "AVX2";
  }
#endif
  return "DEFAULT";
}

int64_t parallel_threads() {
  std::vector<char> worked(at::get_num_threads(), 0);
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) { worked[at::get_thread_num()] = 1; });
  return std::count(worked.begin(), worked.end(), 1);
}

} // namespace maskrcnn_plus
