// parallel_for over our own small thread pool. Chunks are handed out dynamically, so a result must not depend on who
// computes a chunk nor in which order: every kernel here writes each output from one chunk only.
#pragma once
#include <cstdint>
#include <type_traits>

void pool_set_threads(int n);
int pool_threads();  // as many as wanted, or as there are where the system gave fewer
// Calls body(context, begin, end) on chunks of `grain` items until [0, n) is done; returns when all are. What a chunk
// throws, on whatever thread, is thrown here once every worker is out: what was to be written is incomplete, and the next
// call is as good as ever. Chunks that run out of memory say so to their caller, which throws: the first exception of a
// thread takes memory itself, and glibc ends the process where there is none.
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
