// parallel_for over our own small thread pool. Chunks are handed out dynamically, so a result must not depend on who
// computes a chunk nor in which order: every kernel here writes each output from one chunk only.
#pragma once
#include <cstdint>
#include <type_traits>

void pool_set_threads(int n);
int pool_threads();
// Calls body(context, begin, end) on chunks of `grain` items until [0, n) is done; returns when all are.
void pool_run(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context);

namespace SPLATEXP_ISA {
template <class F>
static inline void parallel_for(int64_t n, int64_t grain, F&& f) {
  using Body = std::remove_reference_t<F>;
  struct Call {
    static void body(void* context, int64_t begin, int64_t end) { (*static_cast<Body*>(context))(begin, end); }
  };
  pool_run(n, grain, &Call::body, (void*)&f);
}
}  // namespace SPLATEXP_ISA
