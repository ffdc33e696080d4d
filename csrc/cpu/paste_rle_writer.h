// COCO's compressed run lengths, written as the runs are found.

#pragma once

#include <cstdint>
#include <string>

namespace maskrcnn_plus {

// Takes the foreground runs of column-major pixels in rising order. The text is that of `rleToString` in maskApi.c.
class RunWriter {
 public:
  explicit RunWriter(std::string& text) : text_(text) {}

  // Run [start, end); one that touches the last lengthens it.
  void add(int64_t start, int64_t end) {
    if (start == end_ && end_ > 0) {
      end_ = end;
      return;
    }
    flush();
    start_ = start;
    end_ = end;
  }

  // The image has `pixels`; a background run of none at its end is not written.
  void finish(int64_t pixels) {
    flush();
    if (written_ < pixels) {
      write(pixels - written_);
    }
  }

 private:
  void flush() {
    if (end_ > 0) {
      write(start_ - written_);
      write(end_ - start_);
      written_ = end_;
    }
  }

  // From the fourth on, a run is the difference to the one two before, in groups of 5 bits, the lowest first.
  void write(int64_t length) {
    int64_t rest = count_ > 2 ? length - lengths_[count_ & 1] : length;
    lengths_[count_ & 1] = length;
    ++count_;
    bool more = true;
    while (more) {
      const int64_t group = rest & 0x1f;
      rest >>= 5;
      more = (group & 0x10) != 0 ? rest != -1 : rest != 0;
      text_.push_back(static_cast<char>((more ? group | 0x20 : group) + 48));
    }
  }

  std::string& text_;
  int64_t start_ = 0; // of the run that may still grow
  int64_t end_ = 0; // 0 where there is none
  int64_t written_ = 0; // pixels of the runs in the text
  int64_t count_ = 0; // runs in the text
  int64_t lengths_[2] = {0, 0}; // of the last two, by parity
};

} // namespace maskrcnn_plus
