// Tensors [*, C, places] in either memory format, and blocks of their channels as [places, channels] scratch.

#pragma once

#include <cstdint>

namespace maskrcnn_plus {

// Elements between neighbouring places (pixels, bins) and between channels.
struct Layout {
  int64_t place;
  int64_t channel;

  static Layout of(int64_t places, int64_t channels, bool channels_last) {
    return channels_last ? Layout{channels, 1} : Layout{1, places};
  }
};

// Calls each(index in the tensor, index in the scratch) of a block, in the tensor's order.
template <typename Each>
inline void for_block(const Layout& layout, int64_t places, int64_t channels, const Each& each) {
  if (layout.channel == 1) {
    for (int64_t i = 0; i < places; ++i) {
      for (int64_t c = 0; c < channels; ++c) {
        each(i * layout.place + c, i * channels + c);
      }
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < places; ++i) {
        each(i * layout.place + c * layout.channel, i * channels + c);
      }
    }
  }
}

} // namespace maskrcnn_plus
