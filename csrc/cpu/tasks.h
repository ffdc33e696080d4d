// Work that threads share.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

namespace maskrcnn_plus {

// Calls work(task) for each of `tasks` tasks, where `make_worker()` gives each thread a `work` with scratch memory of its
// own. Threads take the tasks one by one, so that a large one does not hold up the others.
template <typename MakeWorker>
void run_tasks(int64_t tasks, const MakeWorker& make_worker) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(tasks, at::get_num_threads());
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    auto work = make_worker();
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t task = next++; task < tasks; task = next++) {
        work(task);
      }
    }
  });
}

} // namespace maskrcnn_plus
