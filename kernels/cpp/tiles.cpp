// Depth order and tile lists without sorting a single pair: the visible Gaussians are sorted by depth once (stable radix
// sort of the float's bits), then dealt to their tiles in that order (stable counting sort by tile).
#include "ops.h"
#include "parallel.h"
#include "simd.h"

#include <memory>

namespace SPLATEXP_ISA {
namespace {

constexpr int RADIX_BITS = 11, BUCKETS = 1 << RADIX_BITS;
constexpr int MAX_CHUNKS = 16;

struct Key {
  uint32_t depth;  // bits of a positive float order like the float
  int32_t index;
};

// One worker each: how the n items are cut never changes the result, since both passes keep the order.
struct Chunks {
  int64_t n;
  int count;
  explicit Chunks(int64_t n_) : n(n_) {
    int wanted = pool_threads();
    count = n < 4096 ? 1 : (wanted < MAX_CHUNKS ? wanted : MAX_CHUNKS);
  }
  int64_t begin(int64_t c) const { return n * c / count; }
};

void radix_sort(Key* keys, Key* other, int64_t n, int64_t* histogram) {
  Chunks chunks(n);
  for (int pass = 0; pass < 3; pass++) {
    const int shift = pass * RADIX_BITS;
    parallel_for(chunks.count, 1, [&](int64_t c, int64_t) {
      int64_t* h = histogram + c * BUCKETS;
      std::memset(h, 0, sizeof(int64_t) * BUCKETS);
      for (int64_t i = chunks.begin(c); i < chunks.begin(c + 1); i++) h[keys[i].depth >> shift & (BUCKETS - 1)]++;
    });
    int64_t sum = 0;
    for (int b = 0; b < BUCKETS; b++)
      for (int c = 0; c < chunks.count; c++) {
        int64_t count = histogram[c * BUCKETS + b];
        histogram[c * BUCKETS + b] = sum;
        sum += count;
      }
    parallel_for(chunks.count, 1, [&](int64_t c, int64_t) {
      int64_t* h = histogram + c * BUCKETS;
      for (int64_t i = chunks.begin(c); i < chunks.begin(c + 1); i++)
        other[h[keys[i].depth >> shift & (BUCKETS - 1)]++] = keys[i];
    });
    Key* t = keys;
    keys = other, other = t;
  }
}

// floor(x), held within [0, most]
INLINE int16_t whole(float x, float most) { return (int16_t)(x > 0 ? (x < most ? x : most) : 0.0f); }

}  // namespace

void tiles_sort(TilesArgs& a) {
  const std::unique_ptr<Key[]> both_halves(new Key[2 * a.N + 1]);
  const std::unique_ptr<int64_t[]> histogram(new int64_t[MAX_CHUNKS * BUCKETS]);
  Key* keys = both_halves.get();
  a.V = 0, a.P = 0;
  for (int64_t c = 0; c < a.C; c++) {
    // gather the visible: count per chunk, then fill
    Chunks chunks(a.N);
    const float *radii = a.radii + 2 * c * a.N, *depths = a.depths + c * a.N;
    int64_t offset[MAX_CHUNKS + 1] = {0};
    parallel_for(chunks.count, 1, [&](int64_t k, int64_t) {
      int64_t count = 0;
      for (int64_t i = chunks.begin(k); i < chunks.begin(k + 1); i++) count += radii[2 * i] > 0 && radii[2 * i + 1] > 0;
      offset[k + 1] = count;
    });
    for (int k = 0; k < chunks.count; k++) offset[k + 1] += offset[k];
    parallel_for(chunks.count, 1, [&](int64_t k, int64_t) {
      int64_t j = offset[k];
      for (int64_t i = chunks.begin(k); i < chunks.begin(k + 1); i++)
        if (radii[2 * i] > 0 && radii[2 * i + 1] > 0) {
          std::memcpy(&keys[j].depth, &depths[i], 4);
          keys[j++].index = (int32_t)(c * a.N + i);
        }
    });
    const int64_t V = offset[chunks.count];
    radix_sort(keys, keys + a.N, V, histogram.get());
    const Key* sorted = keys + a.N;  // three passes end in the other half
    const float per_px = 1.0f / (float)a.tile_size;  // exact: tile sizes are powers of two
    parallel_for(V, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; j++) {
        const int64_t g = sorted[j].index;
        const float x = a.means2d[2 * g], y = a.means2d[2 * g + 1], rx = a.radii[2 * g], ry = a.radii[2 * g + 1];
        int16_t* rect = a.rects + 4 * (a.V + j);
        if (j + 16 < end) {
          const int64_t next = sorted[j + 16].index;
          __builtin_prefetch(a.means2d + 2 * next), __builtin_prefetch(a.radii + 2 * next);
        }
        // only tiles that hold the centre of a pixel inside the box
        rect[0] = whole((x - rx + 0.5f) * per_px, (float)a.tiles_x);
        rect[1] = whole((x + rx - 0.5f) * per_px + 1, (float)a.tiles_x);
        rect[2] = whole((y - ry + 0.5f) * per_px, (float)a.tiles_y);
        rect[3] = whole((y + ry - 0.5f) * per_px + 1, (float)a.tiles_y);
        if (rect[1] <= rect[0] || rect[3] <= rect[2]) rect[1] = rect[0], rect[3] = rect[2];
        a.order[a.V + j] = (int32_t)g;
      }
    });
    for (int64_t j = a.V; j < a.V + V; j++) {
      a.first[j] = a.P;
      a.P += (int64_t)(a.rects[4 * j + 1] - a.rects[4 * j]) * (a.rects[4 * j + 3] - a.rects[4 * j + 2]);
    }
    a.V += V;
  }
  a.first[a.V] = a.P;
}

void tiles_fill(const TilesArgs& a) {
  const int64_t per_image = (int64_t)a.tiles_x * a.tiles_y, T = a.C * per_image;
  Chunks chunks(a.V);
  const std::unique_ptr<int64_t[]> histograms(new int64_t[chunks.count * T]);
  int64_t* histogram = histograms.get();
  auto for_pairs = [&](int64_t c, auto&& f) {
    for (int64_t j = chunks.begin(c); j < chunks.begin(c + 1); j++) {
      const int16_t* rect = a.rects + 4 * j;
      const int64_t image = a.C == 1 ? 0 : a.order[j] / a.N;
      int64_t slot = a.first[j];
      for (int y = rect[2]; y < rect[3]; y++)
        for (int x = rect[0]; x < rect[1]; x++) f(image * per_image + (int64_t)y * a.tiles_x + x, j, slot++);
    }
  };
  parallel_for(chunks.count, 1, [&](int64_t c, int64_t) {
    int64_t* h = histogram + c * T;
    std::memset(h, 0, sizeof(int64_t) * T);
    for_pairs(c, [&](int64_t tile, int64_t, int64_t) { h[tile]++; });
  });
  int64_t sum = 0;
  for (int64_t t = 0; t < T; t++) {
    a.starts[t] = sum;
    for (int c = 0; c < chunks.count; c++) {
      int64_t count = histogram[c * T + t];
      histogram[c * T + t] = sum;
      sum += count;
    }
    a.ends[t] = a.per_tile_max > 0 && sum - a.starts[t] > a.per_tile_max ? a.starts[t] + a.per_tile_max : sum;
  }
  parallel_for(chunks.count, 1, [&](int64_t c, int64_t) {
    int64_t* h = histogram + c * T;
    for_pairs(c, [&](int64_t tile, int64_t j, int64_t slot) {
      int64_t place = h[tile]++;
      a.ids[place] = (int32_t)j;
      a.slots[place] = (int32_t)slot;
    });
  });
}

}  // namespace SPLATEXP_ISA
