#include "capability.h"

#include <cstdlib>

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

} // namespace maskrcnn_plus
