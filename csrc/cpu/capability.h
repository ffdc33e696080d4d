#pragma once

#include <string>

namespace maskrcnn_plus {

// The widest instruction set that this processor and this build share: "AVX512", "AVX2" or "DEFAULT".
std::string cpu_capability();

} // namespace maskrcnn_plus
