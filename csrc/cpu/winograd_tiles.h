// A block of tiles of a Winograd convolution, for one instruction set. Included once for each, with
//   TILES_NAMESPACE     namespace of this copy
//   TILES_TARGET        attribute that selects the instruction set ("" for the baseline)
//   TILES_VECTOR_BYTES  width of its vectors
//   TILES_ROWS          tiles whose sums are held in its registers at once
//
// The points of interpolation are 0, +-3/4, +-3/2 and infinity: their error is half of that of the usual 0, +-1, +-2, and
// all constants are exact.

namespace maskrcnn_plus {
namespace TILES_NAMESPACE {

typedef float Vec __attribute__((vector_size(TILES_VECTOR_BYTES), aligned(sizeof(float)), may_alias));
constexpr int64_t kLanes = TILES_VECTOR_BYTES / sizeof(float);

// B^T d for six vectors; source and target are `from` and `to` vectors apart.
TILES_TARGET inline void transform_input(const Vec* d, int64_t from, Vec* result, int64_t to) {
  constexpr float a = 0.75f, b = 1.5f, aa = a * a, bb = b * b;
  const Vec d1 = d[from], d2 = d[2 * from], d3 = d[3 * from], d4 = d[4 * from];
  const Vec even_a = d4 - bb * d2, odd_a = a * (d3 - bb * d1);
  const Vec even_b = d4 - aa * d2, odd_b = b * (d3 - aa * d1);
  result[0] = aa * bb * d[0] - (aa + bb) * d2 + d4;
  result[to] = even_a + odd_a;
  result[2 * to] = even_a - odd_a;
  result[3 * to] = even_b + odd_b;
  result[4 * to] = even_b - odd_b;
  result[5 * to] = aa * bb * d1 - (aa + bb) * d3 + d[5 * from];
}

// A^T m for six vectors, four results.
TILES_TARGET inline void transform_output(const Vec* m, int64_t from, Vec* result, int64_t to) {
  constexpr float a = 0.75f, b = 1.5f, aa = a * a, bb = b * b;
  const Vec sum_a = m[from] + m[2 * from], difference_a = m[from] - m[2 * from];
  const Vec sum_b = m[3 * from] + m[4 * from], difference_b = m[3 * from] - m[4 * from];
  result[0] = m[0] + sum_a + sum_b;
  result[to] = a * difference_a + b * difference_b;
  result[2 * to] = aa * sum_a + bb * sum_b;
  result[3 * to] = a * aa * difference_a + b * bb * difference_b + m[5 * from];
}

// A d for four vectors, six results: the transpose of transform_output.
TILES_TARGET inline void transform_gradient(const Vec* d, Vec* result, int64_t to) {
  constexpr float a = 0.75f, b = 1.5f, aa = a * a, bb = b * b;
  const Vec even_a = d[0] + aa * d[2], odd_a = a * (d[1] + aa * d[3]);
  const Vec even_b = d[0] + bb * d[2], odd_b = b * (d[1] + bb * d[3]);
  result[0] = d[0];
  result[to] = even_a + odd_a;
  result[2 * to] = even_a - odd_a;
  result[3 * to] = even_b + odd_b;
  result[4 * to] = even_b - odd_b;
  result[5 * to] = d[3];
}

// Pixel (y, x) of the tile's top left output, and the image it belongs to.
struct Corner {
  int64_t image, y, x;
  Corner(const WinogradBlock& block, int64_t tile)
      : image(tile / (block.tiles_y * block.tiles_x)),
        y(tile / block.tiles_x % block.tiles_y * 4),
        x(tile % block.tiles_x * 4) {}
};

TILES_TARGET void read_tile(const WinogradBlock& block, int64_t row) {
  const Corner corner(block, block.first + row);
  const float* pixels[6][6];
  for (int64_t i = 0; i < 6; ++i) {
    for (int64_t j = 0; j < 6; ++j) {
      const int64_t y = corner.y + i - 1, x = corner.x + j - 1;
      const bool inside = y >= 0 && y < block.height && x >= 0 && x < block.width;
      pixels[i][j] =
          inside ? block.input + ((corner.image * block.height + y) * block.width + x) * block.channels : block.zeros;
    }
  }
  float* patch = block.patches + row * block.channels;
  const int64_t place = block.rows * block.channels;
  for (int64_t c = 0; c < block.channels; c += kLanes) {
    Vec columns[6][6];
    for (int64_t j = 0; j < 6; ++j) {
      Vec column[6];
      for (int64_t i = 0; i < 6; ++i) {
        column[i] = *reinterpret_cast<const Vec*>(pixels[i][j] + c);
      }
      transform_input(column, 1, &columns[0][j], 6);
    }
    for (int64_t i = 0; i < 6; ++i) {
      Vec result[6];
      transform_input(columns[i], 1, result, 1);
      for (int64_t j = 0; j < 6; ++j) {
        *reinterpret_cast<Vec*>(patch + (i * 6 + j) * place + c) = result[j];
      }
    }
  }
}

// The transformed 4 x 4 tile of the output's gradient, to `products` [36, rows, K].
TILES_TARGET void read_gradient(const WinogradBlock& block, int64_t row) {
  const Corner corner(block, block.first + row);
  const float* gradient =
      block.gradient + ((corner.image * block.height + corner.y) * block.width + corner.x) * block.out_channels;
  float* product = block.products + row * block.out_channels;
  const int64_t place = block.rows * block.out_channels;
  const int64_t rows = block.height - corner.y, columns = block.width - corner.x;
  for (int64_t k = 0; k < block.out_channels; k += kLanes) {
    Vec half[6][4];
    for (int64_t j = 0; j < 4; ++j) {
      Vec column[4] = {};
      for (int64_t i = 0; i < 4 && i < rows && j < columns; ++i) {
        column[i] = *reinterpret_cast<const Vec*>(gradient + (i * block.width + j) * block.out_channels + k);
      }
      transform_gradient(column, &half[0][j], 4);
    }
    for (int64_t i = 0; i < 6; ++i) {
      Vec result[6];
      transform_gradient(half[i], result, 1);
      for (int64_t j = 0; j < 6; ++j) {
        *reinterpret_cast<Vec*>(product + (i * 6 + j) * place + k) = result[j];
      }
    }
  }
}

// products[r][0 .. 2 vectors] = sum_c patches[r][c] * weight[c][0 .. 2 vectors] for TILES_ROWS rows. On the way it asks for
// `channels * ahead_step` floats at `ahead`: hardware does not fetch a panel early enough for its first rows.
TILES_TARGET inline void multiply(
    const float* patches,
    int64_t channels,
    const float* weight,
    float* products,
    int64_t product_stride,
    const float* ahead,
    int64_t ahead_step) {
  constexpr int rows = TILES_ROWS;
  Vec sums[rows][2] = {};
  // Few addresses, so that they stay in registers.
  const float* thirds[3] = {patches, patches + rows / 3 * channels, patches + 2 * (rows / 3) * channels};
  for (int64_t c = 0; c < channels; ++c) {
    const Vec first = *reinterpret_cast<const Vec*>(weight);
    const Vec second = *reinterpret_cast<const Vec*>(weight + kLanes);
    weight += kWinogradPanel;
    __builtin_prefetch(ahead, 0, 2);
    ahead += ahead_step;
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const float value = thirds[r / (rows / 3)][r % (rows / 3) * channels + c];
      sums[r][0] += value * first;
      sums[r][1] += value * second;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    *reinterpret_cast<Vec*>(products + r * product_stride) = sums[r][0];
    *reinterpret_cast<Vec*>(products + r * product_stride + kLanes) = sums[r][1];
  }
}

TILES_TARGET void write_tile(const WinogradBlock& block, int64_t row) {
  const Corner corner(block, block.first + row);
  const int64_t stride = block.panels * kWinogradPanel;
  const int64_t place = block.rows * stride;
  const float* products = block.products + row * stride;
  float* output =
      block.output + ((corner.image * block.height + corner.y) * block.width + corner.x) * block.out_channels;
  const int64_t rows = block.height - corner.y, columns = block.width - corner.x;
  for (int64_t k = 0; k < block.out_channels; k += kLanes) {
    Vec sums[4][6];
    for (int64_t j = 0; j < 6; ++j) {
      Vec column[6];
      for (int64_t i = 0; i < 6; ++i) {
        column[i] = *reinterpret_cast<const Vec*>(products + (i * 6 + j) * place + k);
      }
      transform_output(column, 1, &sums[0][j], 6);
    }
    const Vec bias = *reinterpret_cast<const Vec*>(block.bias + k);
    const Vec zero = {};
    for (int64_t i = 0; i < 4 && i < rows; ++i) {
      Vec result[4];
      transform_output(sums[i], 1, result, 1);
      for (int64_t j = 0; j < 4 && j < columns; ++j) {
        Vec value = result[j] + bias;
        if (block.relu) {
          value = value < zero ? zero : value; // NaN stays
        }
        *reinterpret_cast<Vec*>(output + (i * block.width + j) * block.out_channels + k) = value;
      }
    }
  }
}

TILES_TARGET void convolve(const WinogradBlock& block) {
  for (int64_t row = 0; row < block.count; ++row) {
    read_tile(block, row);
  }
  const int64_t stride = block.panels * kWinogradPanel;
  const int64_t panel_size = block.channels * kWinogradPanel;
  // Each of a panel's products asks for an equal share of the next panel.
  const int64_t ahead_step = std::max<int64_t>(2 * kLanes * TILES_ROWS / block.rows, 1);
  for (int64_t place = 0; place < kWinogradPlaces; ++place) {
    for (int64_t panel = 0; panel < block.panels; ++panel) {
      const float* weight = block.weight + (place * block.panels + panel) * panel_size;
      const float* ahead = weight + panel_size;
      for (int64_t k = 0; k < kWinogradPanel; k += 2 * kLanes) {
        for (int64_t row = 0; row < block.rows; row += TILES_ROWS) {
          multiply(
              block.patches + (place * block.rows + row) * block.channels, block.channels, weight + k,
              block.products + (place * block.rows + row) * stride + panel * kWinogradPanel + k, stride,
              ahead, ahead_step);
          ahead += block.channels * ahead_step;
        }
      }
    }
  }
  for (int64_t row = 0; row < block.count; ++row) {
    write_tile(block, row);
  }
}

TILES_TARGET void transform_pair(const WinogradBlock& block) {
  for (int64_t row = 0; row < block.count; ++row) {
    read_tile(block, row);
    read_gradient(block, row);
  }
}

} // namespace TILES_NAMESPACE
} // namespace maskrcnn_plus
