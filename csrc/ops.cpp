// Schema and bindings of the operators in torch.ops.maskrcnn_plus. Kernels live one a file under cpu/.
// Loading the library registers them; it needs neither pybind11 nor the headers of Python.

#include <torch/library.h>

#include "cpu/capability.h"

TORCH_LIBRARY(maskrcnn_plus, m) {
  m.def("cpu_capability() -> str", maskrcnn_plus::cpu_capability);
}
