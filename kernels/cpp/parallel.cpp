#include "parallel.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
static inline void relax() { _mm_pause(); }
// While it lives, this thread takes denormal numbers for zero: they say nothing here and cost a hundred cycles each
// (the moments of a Gaussian that no view sees decay into them).
struct NoDenormals {
  unsigned before = _mm_getcsr();
  NoDenormals() { _mm_setcsr(before | 0x8040); }
  ~NoDenormals() { _mm_setcsr(before); }
};
#else
static inline void relax() { std::this_thread::yield(); }
struct NoDenormals {
  ~NoDenormals() {}
};
#endif

namespace {

// A worker spins this long for the next call before it sleeps: a training step makes its calls within microseconds of
// each other, and waking a sleeping thread costs more than most of them last.
constexpr int SPINS = 4000;

struct Pool {
  static constexpr uint32_t OPEN = 1u << 31;

  std::mutex call_mutex;  // one parallel_for at a time
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> workers;
  std::atomic<uint64_t> calls{0};
  // OPEN while a call takes helpers, plus the number of workers inside. A worker that wakes too late finds it closed and
  // is not waited for: on a busy machine the caller simply does more of the work itself.
  std::atomic<uint32_t> gate{0};
  std::atomic<int64_t> next{0};
  std::atomic<bool> stop{false};
  int64_t n = 0, grain = 1;
  void (*body)(void*, int64_t, int64_t) = nullptr;
  void* context = nullptr;

  void drain() {
    for (;;) {
      int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= n) return;
      body(context, begin, std::min(begin + grain, n));
    }
  }

  bool enter() {
    uint32_t state = gate.load(std::memory_order_acquire);
    while (state & OPEN)
      if (gate.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) return true;
    return false;
  }

  void work(uint64_t seen) {
    NoDenormals guard;
    for (;;) {
      for (int i = 0; i < SPINS && calls.load(std::memory_order_acquire) == seen && !stop; i++) relax();
      if (calls.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [&] { return calls.load() != seen || stop; });
      }
      if (stop) return;
      seen = calls.load(std::memory_order_acquire);
      if (enter()) {
        drain();
        gate.fetch_sub(1, std::memory_order_acq_rel);
      }
    }
  }

  void resize(size_t count) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      stop = true;
    }
    wake.notify_all();
    for (auto& w : workers) w.join();
    workers.clear();
    stop = false;
    for (size_t i = 0; i < count; i++) workers.emplace_back([this, seen = calls.load()] { work(seen); });
  }

  void run(int64_t count, int64_t step, void (*f)(void*, int64_t, int64_t), void* c) {
    n = count, grain = step, body = f, context = c;
    next.store(0, std::memory_order_relaxed);
    gate.store(OPEN, std::memory_order_release);
    {
      std::lock_guard<std::mutex> lock(mutex);
      calls.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
    drain();
    gate.fetch_and(~OPEN, std::memory_order_acq_rel);
    for (int i = 0; gate.load(std::memory_order_acquire) != 0; i++) i < SPINS ? relax() : std::this_thread::yield();
  }
};

int threads_wanted = 0;  // 0: as many as the machine has
Pool* pool = nullptr;    // never freed: its threads may outlive static destructors
pid_t pool_owner = 0;
thread_local bool inside = false;

Pool& get_pool() {
  // Threads do not survive a fork: the child starts its own.
  if (pool == nullptr || pool_owner != getpid()) {
    pool = new Pool;
    pool_owner = getpid();
    pool->resize(pool_threads() - 1);
  }
  return *pool;
}

}  // namespace

int pool_threads() {
  return threads_wanted > 0 ? threads_wanted : std::max(1u, std::thread::hardware_concurrency());
}

void pool_set_threads(int n) {
  threads_wanted = n;
  if (pool == nullptr || pool_owner != getpid()) return;
  std::lock_guard<std::mutex> call(pool->call_mutex);
  pool->resize(pool_threads() - 1);
}

void pool_run(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
  if (n <= 0) return;
  NoDenormals guard;
  if (n <= grain || inside || pool_threads() == 1) {
    for (int64_t begin = 0; begin < n; begin += grain) body(context, begin, std::min(begin + grain, n));
    return;
  }
  Pool& p = get_pool();
  std::lock_guard<std::mutex> call(p.call_mutex);
  inside = true;
  p.run(n, grain, body, context);
  inside = false;
}
