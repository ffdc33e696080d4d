// The inner loops of RoIAlign over one row of a box's crop, for one instruction set. Included once for each, with
//   ROWS_NAMESPACE     namespace of this copy
//   ROWS_TARGET        attribute that selects the instruction set ("" for the baseline)
//   ROWS_VECTOR_BYTES  width of its vectors
// GCC and Clang vector extensions: one source for AVX-512, AVX2, SSE and NEON.

namespace maskrcnn_plus {
namespace ROWS_NAMESPACE {

template <typename T>
struct Vector {
  // Loads and stores at any address.
  typedef T type __attribute__((vector_size(ROWS_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
  static constexpr int64_t lanes = ROWS_VECTOR_BYTES / sizeof(T);
};

// bins[p][q] += wy[p] * sum_x wx[q][x] * row[x] for `V` vectors of channels.
template <typename T, int V>
ROWS_TARGET void reduce_vectors(const RowOf<T>& row, const T* pixels, T* bins) {
  using Vec = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  for (int64_t q = 0; q < row.num_x; ++q) {
    const int64_t length = row.x[q].length;
    if (length == 0) {
      continue;
    }
    const T* pixel = pixels + row.x[q].start * row.pixel_stride;
    const T* weights = row.x_weights + row.x[q].offset;
    Vec sum[V];
    for (int v = 0; v < V; ++v) {
      sum[v] = weights[0] * *reinterpret_cast<const Vec*>(pixel + v * lanes);
    }
    for (int64_t x = 1; x < length; ++x) {
      pixel += row.pixel_stride;
      for (int v = 0; v < V; ++v) {
        sum[v] += weights[x] * *reinterpret_cast<const Vec*>(pixel + v * lanes);
      }
    }
    for (int64_t p = row.first_y; p < row.last_y; ++p) {
      T* bin = bins + (p * row.num_x + q) * row.bin_stride;
      const T weight = row.y_weights[p - row.first_y];
      for (int v = 0; v < V; ++v) {
        *reinterpret_cast<Vec*>(bin + v * lanes) += weight * sum[v];
      }
    }
  }
}

// The transpose: row[x] += sum_q wx[q][x] * sum_p wy[p] * bins[p][q].
template <typename T, int V>
ROWS_TARGET void spread_vectors(const RowOf<T>& row, T* pixels, const T* bins) {
  using Vec = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  for (int64_t q = 0; q < row.num_x; ++q) {
    const int64_t length = row.x[q].length;
    if (length == 0) {
      continue;
    }
    Vec sum[V] = {};
    for (int64_t p = row.first_y; p < row.last_y; ++p) {
      const T* bin = bins + (p * row.num_x + q) * row.bin_stride;
      const T weight = row.y_weights[p - row.first_y];
      for (int v = 0; v < V; ++v) {
        sum[v] += weight * *reinterpret_cast<const Vec*>(bin + v * lanes);
      }
    }
    T* pixel = pixels + row.x[q].start * row.pixel_stride;
    const T* weights = row.x_weights + row.x[q].offset;
    for (int64_t x = 0; x < length; ++x) {
      for (int v = 0; v < V; ++v) {
        *reinterpret_cast<Vec*>(pixel + v * lanes) += weights[x] * sum[v];
      }
      pixel += row.pixel_stride;
    }
  }
}

// Channels that do not fill a vector.
template <typename T>
ROWS_TARGET void reduce_scalar(const RowOf<T>& row, const T* pixels, T* bins) {
  for (int64_t q = 0; q < row.num_x; ++q) {
    const T* weights = row.x_weights + row.x[q].offset;
    T sum = 0;
    for (int64_t x = 0; x < row.x[q].length; ++x) {
      sum += weights[x] * pixels[(row.x[q].start + x) * row.pixel_stride];
    }
    for (int64_t p = row.first_y; p < row.last_y; ++p) {
      bins[(p * row.num_x + q) * row.bin_stride] += row.y_weights[p - row.first_y] * sum;
    }
  }
}

template <typename T>
ROWS_TARGET void spread_scalar(const RowOf<T>& row, T* pixels, const T* bins) {
  for (int64_t q = 0; q < row.num_x; ++q) {
    const T* weights = row.x_weights + row.x[q].offset;
    T sum = 0;
    for (int64_t p = row.first_y; p < row.last_y; ++p) {
      sum += row.y_weights[p - row.first_y] * bins[(p * row.num_x + q) * row.bin_stride];
    }
    for (int64_t x = 0; x < row.x[q].length; ++x) {
      pixels[(row.x[q].start + x) * row.pixel_stride] += weights[x] * sum;
    }
  }
}

// All channels of a block, in the widest pieces that fit.
template <typename T>
ROWS_TARGET void reduce_row(const RowOf<T>& row, const T* pixels, T* bins, int64_t channels) {
  constexpr int64_t lanes = Vector<T>::lanes;
  int64_t c = 0;
  for (; c + 4 * lanes <= channels; c += 4 * lanes) {
    reduce_vectors<T, 4>(row, pixels + c, bins + c);
  }
  for (; c + 2 * lanes <= channels; c += 2 * lanes) {
    reduce_vectors<T, 2>(row, pixels + c, bins + c);
  }
  for (; c + lanes <= channels; c += lanes) {
    reduce_vectors<T, 1>(row, pixels + c, bins + c);
  }
  for (; c < channels; ++c) {
    reduce_scalar<T>(row, pixels + c, bins + c);
  }
}

template <typename T>
ROWS_TARGET void spread_row(const RowOf<T>& row, T* pixels, const T* bins, int64_t channels) {
  constexpr int64_t lanes = Vector<T>::lanes;
  int64_t c = 0;
  for (; c + 4 * lanes <= channels; c += 4 * lanes) {
    spread_vectors<T, 4>(row, pixels + c, bins + c);
  }
  for (; c + 2 * lanes <= channels; c += 2 * lanes) {
    spread_vectors<T, 2>(row, pixels + c, bins + c);
  }
  for (; c + lanes <= channels; c += lanes) {
    spread_vectors<T, 1>(row, pixels + c, bins + c);
  }
  for (; c < channels; ++c) {
    spread_scalar<T>(row, pixels + c, bins + c);
  }
}

} // namespace ROWS_NAMESPACE
} // namespace maskrcnn_plus
