#include "parallel.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
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

  const pid_t owner = getpid();
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
  std::atomic<int> missing{0};  // workers that the system would not start
  int64_t n = 0, grain = 1;
  void (*body)(void*, int64_t, int64_t) = nullptr;
  void* context = nullptr;
  // What the first chunk that failed has thrown. Whoever sets `failed` writes it, and the caller reads it once the gate
  // is empty.
  std::atomic<bool> failed{false};
  std::exception_ptr failure;

  // Takes chunks until there are none. One that throws ends the call: the chunks that others are at come to their end,
  // no further one begins.
  void drain() noexcept {
    try {
      for (;;) {
        int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= n) return;
        body(context, begin, std::min(begin + grain, n));
      }
    } catch (...) {
      if (!failed.exchange(true)) failure = std::current_exception();
      next.store(n, std::memory_order_relaxed);
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

  // Threads that cannot be had (a limit on processes, no memory for a stack) are done without: results do not depend
  // on their number, and a slow run is worth more than none. `pool_threads` says how many there are; setting the number
  // tries again.
  void resize(int count) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      stop = true;
    }
    wake.notify_all();
    for (auto& w : workers) w.join();
    workers.clear();
    stop = false;
    try {
      workers.reserve(count);
      while ((int)workers.size() < count) workers.emplace_back([this, seen = calls.load()] { work(seen); });
    } catch (const std::exception&) {  // std::system_error, std::bad_alloc
    }
    missing = count - (int)workers.size();
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
    if (failed.load(std::memory_order_relaxed)) {
      failed.store(false, std::memory_order_relaxed);
      std::rethrow_exception(std::exchange(failure, nullptr));
    }
  }
};

std::atomic<int> threads_wanted{0};  // 0: as many as the machine has
std::atomic<Pool*> pool{nullptr};    // never freed: its threads may outlive static destructors
std::mutex making;
thread_local bool inside = false;

struct Inside {
  Inside() { inside = true; }
  ~Inside() { inside = false; }
};

int wanted() { return threads_wanted > 0 ? threads_wanted.load() : (int)std::max(1u, std::thread::hardware_concurrency()); }

// The pool of this process, or none. Threads do not survive a fork: the child starts its own.
Pool* own_pool() {
  Pool* p = pool.load(std::memory_order_acquire);
  return p != nullptr && p->owner == getpid() ? p : nullptr;
}

Pool& get_pool() {
  if (Pool* p = own_pool()) return *p;
  std::lock_guard<std::mutex> lock(making);
  if (Pool* p = own_pool()) return *p;
  Pool* p = new Pool;
  p->resize(wanted() - 1);
  pool.store(p, std::memory_order_release);
  return *p;
}

}  // namespace

int pool_threads() {
  Pool* p = pool.load(std::memory_order_acquire);
  return wanted() - (p == nullptr ? 0 : p->missing.load(std::memory_order_relaxed));
}

void pool_set_threads(int n) {
  threads_wanted = n;
  Pool* p = own_pool();
  if (p == nullptr) return;
  std::lock_guard<std::mutex> call(p->call_mutex);
  p->resize(wanted() - 1);
}

void pool_run(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
  if (n <= 0) return;
  NoDenormals guard;
  if (n <= grain || inside || wanted() == 1) {
    for (int64_t begin = 0; begin < n; begin += grain) body(context, begin, std::min(begin + grain, n));
    return;
  }
  Pool& p = get_pool();
  std::lock_guard<std::mutex> call(p.call_mutex);
  Inside mark;
  p.run(n, grain, body, context);
}
