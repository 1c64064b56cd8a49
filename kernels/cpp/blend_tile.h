// A tile of the picture while Gaussians are composited into it: its blocks of 4x4 pixels, where a Gaussian reaches them,
// the state of its pixels, and the one step that all passes of blend.cpp and attribute.cpp share. The maths is in kernels/README.md, "blend".
#pragma once
#include "constants.h"
#include "ops.h"
#include "parallel.h"
#include "simd.h"

namespace SPLATEXP_ISA {
namespace {

constexpr int BLOCK = 4, BLOCK_PIXELS = BLOCK * BLOCK;
constexpr int MAX_BLOCKS = 64;  // of a tile of 32x32
constexpr int VECTORS = BLOCK_PIXELS / LANES;  // per block
constexpr float LOG2_ALPHA_MIN = -7.99435343685886f;
constexpr float NEVER = 3e38f;

enum Field { MEAN_X, MEAN_Y, A, B, C, LOG2_OPACITY, OPACITY, RIGHT_DY, TILT, SPREAD, REACH, SPARE, CHANNELS };
// The ellipse log2(alpha) = LOG2_ALPHA_MIN is, at height dy, the interval of dx with centre TILT * dy and squared half
// width REACH - SPREAD * dy²; its rightmost point lies at height RIGHT_DY, its leftmost at -RIGHT_DY.

// Lane offsets from a block's first pixel: LANES pixels are 4 columns and LANES / 4 rows.
struct Lanes {
  vf x, y[VECTORS];
  Lanes() {
    vf i = iota(), row = i * set1(0.25f);
    row = row - exp2_fraction(row);
    x = i - set1(4.0f) * row;
    for (int v = 0; v < VECTORS; v++) y[v] = row + set1((float)(v * LANES / BLOCK));
  }
};

struct Tile {
  int64_t index, image;
  int x0, y0, across, blocks;  // first pixel; blocks per side and in all
  alignas(64) float block_x[MAX_BLOCKS], block_y[MAX_BLOCKS];  // centre of each block's first pixel
  Tile(const BlendArgs& a, int64_t t) : index(t) {
    const int64_t per_image = (int64_t)a.tiles_x * a.tiles_y;
    image = t / per_image;
    x0 = (int)(t % per_image % a.tiles_x) * a.tile_size, y0 = (int)(t % per_image / a.tiles_x) * a.tile_size;
    across = a.tile_size / BLOCK, blocks = across * across;
    for (int b = 0; b < MAX_BLOCKS; b++) {
      block_x[b] = b < blocks ? (float)(x0 + b % across * BLOCK) + 0.5f : NEVER;
      block_y[b] = b < blocks ? (float)(y0 + b / across * BLOCK) + 0.5f : NEVER;
    }
  }
  // Calls f(first pixel in the image, how many, block, place in the block) for each row of each block inside the image.
  template <class F>
  void for_block_rows(const BlendArgs& a, F&& f) const {
    for (int b = 0; b < blocks; b++)
      for (int r = 0; r < BLOCK; r++) {
        const int x = x0 + b % across * BLOCK, y = y0 + b / across * BLOCK + r;
        if (x >= a.width || y >= a.height) continue;
        f((image * a.height + y) * a.width + x, a.width - x < BLOCK ? a.width - x : BLOCK, b, r * BLOCK);
      }
  }
};

// A Gaussian inside a tile, seen from the first pixel of every block: its offset (x, y), log2 of its alpha there and the
// first derivatives of that; the second derivatives are the same everywhere.
struct Footprint {
  alignas(64) float x[MAX_BLOCKS], y[MAX_BLOCKS], e[MAX_BLOCKS], ex[MAX_BLOCKS], ey[MAX_BLOCKS];
  vf curve[VECTORS];

  // Fills in the above; returns a bit for each block that the ellipse of ALPHA_MIN reaches.
  INLINE uint64_t place(Footprint& f, const Tile& t, const Lanes& lanes, const float* g) {
    const vf a = set1(g[A]), b = set1(g[B]), c = set1(g[C]), zero = set1(0.0f), side = set1((float)(BLOCK - 1));
    for (int v = 0; v < VECTORS; v++)
      f.curve[v] = fma(lanes.x, fma(a, lanes.x, b * lanes.y[v]), c * lanes.y[v] * lanes.y[v]);
    const vf right_dy = set1(g[RIGHT_DY]), tilt = set1(g[TILT]), spread = set1(-g[SPREAD]), reach = set1(g[REACH]);
    const vf margin = set1(0.02f);  // px, against rounding: a block too many costs little, a pixel too few shows
    uint64_t mask = 0;
    for (int i = 0; i < t.blocks; i += LANES) {
      vf x = load(t.block_x + i) - set1(g[MEAN_X]), y = load(t.block_y + i) - set1(g[MEAN_Y]);
      vf by = b * y;
      store(f.x + i, x), store(f.y + i, y);
      store(f.e + i, fma(x, fma(a, x, by), fma(c * y, y, set1(g[LOG2_OPACITY]))));
      store(f.ex + i, fma(a + a, x, by));
      store(f.ey + i, fma(c + c, y, b * x));
      // the heights inside the block that come nearest to the rightmost and the leftmost point of the ellipse
      vf bottom = y + side;
      vf y_right = vmin(vmax(right_dy, y), bottom), y_left = vmin(vmax(zero - right_dy, y), bottom);
      vf gap_right = vmax(x - margin - tilt * y_right, zero), gap_left = vmax(tilt * y_left - (x + side + margin), zero);
      vm hit = both(le(gap_right * gap_right, fma(spread * y_right, y_right, reach)),
                    le(gap_left * gap_left, fma(spread * y_left, y_left, reach)));
      mask |= (uint64_t)bits(hit) << i;
    }
    return mask;
  }
  INLINE vf exponent(const Footprint& f, const Lanes& lanes, int b, int v) {
    return fma(set1(f.ex[b]), lanes.x, fma(set1(f.ey[b]), lanes.y[v], f.curve[v])) + set1(f.e[b]);
  }
};

// The state of a tile's pixels while it is composited, block by block (arrays of their own would lie 4 kB apart and
// collide in the cache): transmittance, gate, count of Gaussians taken, then what the caller keeps per pixel. A pixel
// takes a Gaussian whose exponent reaches its gate: that of ALPHA_MIN while it is live, NEVER once its transmittance
// (or its cap) is used up.
template <int EXTRA>
struct Pixels {
  enum { T, GATE, TAKEN, OWN, FIELDS = OWN + EXTRA };
  alignas(64) float at[MAX_BLOCKS][FIELDS][BLOCK_PIXELS];
  uint64_t live;  // blocks with a live pixel

  Pixels(const BlendArgs& a, const Tile& t) : live(0) {
    std::memset(at, 0, sizeof at[0] * t.blocks);
    for (int b = 0; b < t.blocks; b++)
      for (int i = 0; i < BLOCK_PIXELS; i += LANES) store(at[b][T] + i, set1(1.0f)), store(at[b][GATE] + i, set1(NEVER));
    t.for_block_rows(a, [&](int64_t, int n, int b, int i) {
      for (int k = 0; k < n; k++) at[b][GATE][i + k] = LOG2_ALPHA_MIN;
      live |= uint64_t(1) << b;
    });
  }
  INLINE void retire(Pixels& p, int b, int i, vm done) {
    float* gate = p.at[b][GATE];
    store(gate + i, select(done, set1(NEVER), load(gate + i)));
    vm alive = lt(load(gate), set1(NEVER));
    for (int v = 1; v < VECTORS; v++) alive = either(alive, lt(load(gate + v * LANES), set1(NEVER)));
    if (!any(alive)) p.live &= ~(uint64_t(1) << b);
  }
};

// What one Gaussian does at LANES pixels.
struct Share {
  vm ok;  // pixels that take it
  vf T, alpha, w;  // transmittance before it
};

template <bool CAP, class State>
INLINE Share composite(vf exponent, int b, int i, State& p, float cap) {
  Share s;
  float(&at)[State::FIELDS][BLOCK_PIXELS] = p.at[b];
  vm m = ge(exponent, load(at[State::GATE] + i));
  s.alpha = vmin(exp2v(exponent), set1(ALPHA_MAX));
  s.T = load(at[State::T] + i);
  s.w = s.T * s.alpha;
  vf next = s.T - s.w;
  s.ok = both(m, gt(next, set1(T_MIN)));
  vm done = without(m, s.ok);
  store(at[State::T] + i, select(s.ok, next, s.T));
  s.w = zero_unless(s.ok, s.w);
  if (CAP) {  // this Gaussian is still taken, the next is not
    vf n = load(at[State::TAKEN] + i) + zero_unless(s.ok, set1(1.0f));
    store(at[State::TAKEN] + i, n);
    done = both(lt(load(at[State::GATE] + i), set1(NEVER)), either(done, ge(n, set1(cap))));
  }
  if (__builtin_expect(any(done), 0)) State::retire(p, b, i, done);
  return s;
}

// Several pairs of a tile's list, placed ahead of the compositing: the blocks to visit are then known early, and the
// processor overlaps one Gaussian's arithmetic with the next one's.
struct Batch {
  static constexpr int64_t SIZE = 16;
  Footprint f[SIZE];
  uint64_t mask[SIZE];
  INLINE int64_t fill(Batch& batch, const BlendArgs& a, const Tile& t, const Lanes& lanes, int64_t k, int64_t end, int floats) {
    const int64_t n = end - k < SIZE ? end - k : SIZE;
    for (int64_t j = k + n; j < k + 2 * n && j < end; j++) {
      const float* g = a.records + (int64_t)a.ids[j] * floats;
      __builtin_prefetch(g), __builtin_prefetch(g + 15);
    }
    for (int64_t j = 0; j < n; j++)
      batch.mask[j] = Footprint::place(batch.f[j], t, lanes, a.records + (int64_t)a.ids[k + j] * floats);
    return n;
  }
};

template <class F>
void for_tiles(const BlendArgs& a, F&& f) {
  parallel_for(a.C * a.tiles_x * a.tiles_y, 2, [&](int64_t begin, int64_t end) {
    const Lanes lanes;
    for (int64_t t = begin; t < end; t++) f(Tile(a, t), lanes);
  });
}

}  // namespace
}  // namespace SPLATEXP_ISA
