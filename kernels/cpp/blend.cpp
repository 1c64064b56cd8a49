// Front-to-back alpha compositing (3DGS eq. 3), its gradient, and the attribution of pixels to Gaussians; the maths is in
// kernels/README.md, "blend". A tile is cut into blocks of 4x4 pixels; a Gaussian visits only the blocks that its ellipse
// reaches, found for all blocks of the tile at once. No atomics: a tile is computed by one worker, and what a Gaussian
// gets from a tile goes into that pair's own slot, so the bits do not depend on the number of threads.
#include "constants.h"
#include "ops.h"
#include "parallel.h"
#include "simd.h"

#include <type_traits>

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
  vf alpha, w;
};

template <bool CAP, class State>
INLINE Share composite(vf exponent, int b, int i, State& p, float cap) {
  Share s;
  float(&at)[State::FIELDS][BLOCK_PIXELS] = p.at[b];
  vm m = ge(exponent, load(at[State::GATE] + i));
  s.alpha = vmin(exp2v(exponent), set1(ALPHA_MAX));
  vf T = load(at[State::T] + i);
  s.w = T * s.alpha;
  vf next = T - s.w;
  s.ok = both(m, gt(next, set1(T_MIN)));
  vm done = without(m, s.ok);
  store(at[State::T] + i, select(s.ok, next, T));
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

template <int D, bool CAP>
void forward_tile(const BlendArgs& a, const Tile& t, const Lanes& lanes) {
  constexpr int S = blend_record_floats(D);
  static_assert(CHANNELS == BLEND_RECORD_HEAD, "the record's head");
  using State = Pixels<D>;  // its own fields: the channels composited so far
  State p(a, t);
  Batch batch;
  const int64_t start = a.starts[t.index], end = a.ends[t.index];
  int64_t k = start;
  while (k < end && p.live) {
    const int64_t n = Batch::fill(batch, a, t, lanes, k, end, S);
    for (int64_t j = 0; j < n; j++, k++) {
      const float* g = a.records + (int64_t)a.ids[k] * S;
      const Footprint& f = batch.f[j];
      for (uint64_t mask = batch.mask[j] & p.live; mask; mask &= mask - 1) {
        const int b = __builtin_ctzll(mask);
        for (int v = 0; v < VECTORS; v++) {
          const int i = v * LANES;
          Share s = composite<CAP>(Footprint::exponent(f, lanes, b, v), b, i, p, (float)a.max_splats_per_pixel);
          for (int c = 0; c < D; c++) {
            float* color = p.at[b][State::OWN + c] + i;
            store(color, fma(s.w, set1(g[CHANNELS + c]), load(color)));
          }
        }
      }
    }
  }
  a.visited[t.index] = k;

  const float* background = a.background ? a.background + t.image * D : nullptr;
  t.for_block_rows(a, [&](int64_t pixel, int n, int b, int i) {
    for (int j = 0; j < n; j++) {
      const float T = p.at[b][State::T][i + j];
      a.alpha[pixel + j] = 1.0f - T;
      for (int c = 0; c < D; c++)
        a.image[(pixel + j) * D + c] = p.at[b][State::OWN + c][i + j] + (background ? T * background[c] : 0.0f);
    }
  });
}

template <int D, bool CAP, bool ABS>
void backward_tile(const BlendArgs& a, const Tile& t, const Lanes& lanes) {
  constexpr int S = blend_record_floats(D);
  // own fields: the gradient of the image, and what still lies behind the Gaussian at hand, times that gradient
  // (background and alpha included)
  using State = Pixels<D + 1>;
  constexpr int REST = State::OWN + D;
  State p(a, t);
  Batch batch;
  t.for_block_rows(a, [&](int64_t pixel, int n, int b, int i) {
    for (int j = 0; j < n; j++) {
      float sum = a.v_alpha ? a.v_alpha[pixel + j] * (a.alpha[pixel + j] - 1.0f) : 0.0f;
      for (int c = 0; c < D; c++) {
        const float u = a.v_image[(pixel + j) * D + c];
        p.at[b][State::OWN + c][i + j] = u;
        sum += u * a.image[(pixel + j) * D + c];
      }
      p.at[b][REST][i + j] = sum;
    }
  });
  const int64_t start = a.starts[t.index], visited = a.visited[t.index];
  int64_t k = start;
  for (int64_t j = 0, n = 0; k < visited; j++, k++) {
    if (j == n) n = Batch::fill(batch, a, t, lanes, k, visited, S), j = 0;
    float* slot = a.pairs + (int64_t)a.slots[k] * PAIR_FLOATS;
    const float* g = a.records + (int64_t)a.ids[k] * S;
    const Footprint& f = batch.f[j];
    uint64_t mask = batch.mask[j] & p.live;
    if (k + 4 < visited) __builtin_prefetch(a.pairs + (int64_t)a.slots[k + 4] * PAIR_FLOATS, 1);
    if (!mask) {
      std::memset(slot, 0, sizeof(float) * PAIR_FLOATS);
      continue;
    }
    const vf zero = set1(0.0f);
    vf G = zero, Gx = zero, Gy = zero, Gxx = zero, Gxy = zero, Gyy = zero, abs_x = zero, abs_y = zero, V[D];
    for (int c = 0; c < D; c++) V[c] = zero;
    for (; mask; mask &= mask - 1) {
      const int b = __builtin_ctzll(mask);
      for (int v = 0; v < VECTORS; v++) {
        const int i = v * LANES;
        Share s = composite<CAP>(Footprint::exponent(f, lanes, b, v), b, i, p, (float)a.max_splats_per_pixel);
        vf cv = zero;
        for (int c = 0; c < D; c++) {
          vf u = load(p.at[b][State::OWN + c] + i);
          cv = fma(set1(g[CHANNELS + c]), u, cv);
          V[c] = fma(s.w, u, V[c]);
        }
        cv = s.w * cv;
        vf R = load(p.at[b][REST] + i) - cv;
        store(p.at[b][REST] + i, R);
        // dL/dalpha = T c·v - rest / (1 - alpha); times alpha: dL/d(log alpha). A clamped alpha passes nothing on.
        vf q = cv - R * s.alpha * rcp(set1(1.0f) - s.alpha);
        q = zero_unless(both(s.ok, lt(s.alpha, set1(ALPHA_MAX))), q);
        vf x = set1(f.x[b]) + lanes.x, y = set1(f.y[b]) + lanes.y[v], qx = q * x, qy = q * y;
        G = G + q, Gx = Gx + qx, Gy = Gy + qy;
        Gxx = fma(qx, x, Gxx), Gxy = fma(qx, y, Gxy), Gyy = fma(qy, y, Gyy);
        if (ABS) {
          abs_x = abs_x + vabs(q * fma(set1(2.0f * g[A]), x, set1(g[B]) * y));
          abs_y = abs_y + vabs(q * fma(set1(2.0f * g[C]), y, set1(g[B]) * x));
        }
      }
    }
    vf sums[16] = {G, Gx, Gy, Gxx, Gxy, Gyy};
    for (int c = 0; c < D; c++) sums[6 + c] = V[c];
    for (int c = 6 + D; c < 16; c++) sums[c] = zero;
    if (ABS) sums[14] = abs_x, sums[15] = abs_y;
    reduce16(sums, slot);
  }
  // what was never looked at, because the tile was opaque or its cap was reached
  const int64_t beyond = t.index + 1 < a.C * a.tiles_x * a.tiles_y ? a.starts[t.index + 1] : a.P;
  for (; k < beyond; k++) std::memset(a.pairs + (int64_t)a.slots[k] * PAIR_FLOATS, 0, sizeof(float) * PAIR_FLOATS);
}

// Sums the pairs of each Gaussian in their fixed order and turns the sums into gradients.
template <int D>
void gather_pairs(const BlendArgs& a, int64_t begin, int64_t end) {
  constexpr int S = blend_record_floats(D);
  for (int64_t j = begin; j < end; j++) {
    alignas(64) float sum[PAIR_FLOATS] = {0};
    for (int64_t k = a.first[j]; k < a.first[j + 1]; k++) {
      const float* pair = a.pairs + k * PAIR_FLOATS;
      for (int i = 0; i < PAIR_FLOATS; i += LANES) store(sum + i, load(sum + i) + load(pair + i));
    }
    const int64_t o = a.order[j], next = a.order[j + 16 < end ? j + 16 : j];
    __builtin_prefetch(a.v_means2d + 2 * next, 1), __builtin_prefetch(a.v_conics + 3 * next, 1);
    __builtin_prefetch(a.v_opacities + next, 1), __builtin_prefetch(a.v_colors + next * D, 1);
    const float* g = a.records + j * S;
    // log2 alpha = log2 opacity + A dx² + B dx dy + C dy²: with A = -a/2 log2(e) and so on
    a.v_means2d[2 * o] = -LN2 * (2 * g[A] * sum[1] + g[B] * sum[2]);
    a.v_means2d[2 * o + 1] = -LN2 * (g[B] * sum[1] + 2 * g[C] * sum[2]);
    a.v_conics[3 * o] = -0.5f * sum[3];
    a.v_conics[3 * o + 1] = -sum[4];
    a.v_conics[3 * o + 2] = -0.5f * sum[5];
    a.v_opacities[o] = g[OPACITY] > 0 ? sum[0] / g[OPACITY] : 0.0f;
    for (int c = 0; c < D; c++) a.v_colors[o * D + c] = sum[6 + c];
    if (a.v_abs) a.v_abs[2 * o] = LN2 * sum[14], a.v_abs[2 * o + 1] = LN2 * sum[15];
  }
}

template <bool CAP>
void attribute_tile(const BlendArgs& a, const Tile& t, const Lanes& lanes, int S) {
  using State = Pixels<MAX_MAPS>;  // own fields: the maps
  State p(a, t);
  Batch batch;
  const int M = a.M;
  t.for_block_rows(a, [&](int64_t pixel, int n, int b, int i) {
    for (int j = 0; j < n; j++)
      for (int m = 0; m < M; m++) p.at[b][State::OWN + m][i + j] = a.maps[(pixel + j) * M + m];
  });
  // a pair's slot: sum w, pixels, then per map sum w*map and hits; the maximum last
  const int64_t start = a.starts[t.index], end = a.ends[t.index];
  const int64_t beyond = t.index + 1 < a.C * a.tiles_x * a.tiles_y ? a.starts[t.index + 1] : a.P;
  for (int64_t k = start, j = 0, n = 0; k < beyond; k++, j++) {
    float* slot = a.pairs + (int64_t)a.slots[k] * PAIR_FLOATS;
    if (j == n && k < end && p.live) n = Batch::fill(batch, a, t, lanes, k, end, S), j = 0;
    const uint64_t mask = k < end && p.live ? batch.mask[j] & p.live : 0;
    if (!mask) {
      std::memset(slot, 0, sizeof(float) * PAIR_FLOATS);
      continue;
    }
    const Footprint& f = batch.f[j];
    vf sums[16], top = set1(0.0f);
    for (auto& s : sums) s = set1(0.0f);
    for (uint64_t rest = mask; rest; rest &= rest - 1) {
      const int b = __builtin_ctzll(rest);
      for (int v = 0; v < VECTORS; v++) {
        const int i = v * LANES;
        Share s = composite<CAP>(Footprint::exponent(f, lanes, b, v), b, i, p, (float)a.max_splats_per_pixel);
        vf one = zero_unless(s.ok, set1(1.0f));
        sums[0] = sums[0] + s.w, sums[1] = sums[1] + one, top = vmax(top, s.w);
        for (int m = 0; m < M; m++) {
          vf value = load(p.at[b][State::OWN + m] + i);
          sums[2 + 2 * m] = fma(s.w, value, sums[2 + 2 * m]);
          sums[3 + 2 * m] = sums[3 + 2 * m] + zero_unless(gt(value, set1(a.threshold)), one);
        }
      }
    }
    reduce16(sums, slot);
    alignas(64) float each[LANES];
    store(each, top);
    float most = 0;
    for (float x : each) most = x > most ? x : most;
    slot[15] = most;
  }
}

template <class F>
void for_tiles(const BlendArgs& a, F&& f) {
  parallel_for(a.C * a.tiles_x * a.tiles_y, 2, [&](int64_t begin, int64_t end) {
    const Lanes lanes;
    for (int64_t t = begin; t < end; t++) f(Tile(a, t), lanes);
  });
}

// Channel counts are compiled one by one: the inner loops over channels unroll.
template <class F>
void with_channels(int D, F&& f) {
  switch (D) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    case 5: return f(std::integral_constant<int, 5>{});
    case 6: return f(std::integral_constant<int, 6>{});
    case 7: return f(std::integral_constant<int, 7>{});
    default: return f(std::integral_constant<int, 8>{});
  }
}

}  // namespace

void blend_pack(const BlendArgs& a) {
  const int S = blend_record_floats(a.D);
  parallel_for(a.V, 2048, [&](int64_t begin, int64_t end) {
    alignas(64) float in[7][LANES], columns[CHANNELS][LANES];
    for (int64_t j = begin; j < end; j += LANES) {
      const int n = (int)(end - j < LANES ? end - j : LANES);
      // depth order jumps about in every array: ask for the next lines before they are needed
      for (int64_t next = j + LANES; next < j + 2 * LANES && next < end; next++) {
        const int64_t o = a.order[next];
        __builtin_prefetch(a.means2d + 2 * o), __builtin_prefetch(a.conics + 3 * o), __builtin_prefetch(a.opacities + o);
        __builtin_prefetch(a.radii + 2 * o), __builtin_prefetch(a.colors + o * a.D);
      }
      for (int i = 0; i < LANES; i++) {
        const int64_t o = a.order[j + (i < n ? i : n - 1)];
        in[0][i] = a.means2d[2 * o], in[1][i] = a.means2d[2 * o + 1];
        in[2][i] = a.conics[3 * o], in[3][i] = a.conics[3 * o + 1], in[4][i] = a.conics[3 * o + 2];
        in[5][i] = a.opacities[o], in[6][i] = a.radii[2 * o];
      }
      const vf opacity = load(in[5]), log2_opacity = log2v(opacity), inv_a = set1(1.0f) / load(in[2]), tilt = set1(0.0f) - load(in[3]) * inv_a;
      store(columns[MEAN_X], load(in[0]));
      store(columns[MEAN_Y], load(in[1]));
      store(columns[A], set1(-0.5f * LOG2E) * load(in[2]));
      store(columns[B], set1(-LOG2E) * load(in[3]));
      store(columns[C], set1(-0.5f * LOG2E) * load(in[4]));
      store(columns[LOG2_OPACITY], log2_opacity);
      store(columns[OPACITY], opacity);
      // a dx² + 2 b dx dy + c dy² = r²: centre -b/a dy, half width² r²/a - (ac - b²)/a² dy²; rightmost at -b/c times x radius
      store(columns[RIGHT_DY], set1(0.0f) - load(in[3]) / load(in[4]) * load(in[6]));
      store(columns[TILT], tilt);
      store(columns[SPREAD], load(in[4]) * inv_a - tilt * tilt);
      // a hair wider, so that rounding never makes the ellipse too small
      store(columns[REACH], set1(1.0005f * 2.0f * LN2) * (log2_opacity - set1(LOG2_ALPHA_MIN)) * inv_a);
      store(columns[SPARE], set1(0.0f));
      columns_to_rows(columns[0], n, CHANNELS, a.records + j * S, S);
      for (int i = 0; i < n; i++) {
        const int64_t o = a.order[j + i];
        for (int c = 0; c < a.D; c++) a.records[(j + i) * S + CHANNELS + c] = a.colors[o * a.D + c];
      }
    }
  });
}

void blend_forward(const BlendArgs& a) {
  with_channels(a.D, [&](auto channels) {
    constexpr int D = decltype(channels)::value;
    if (a.max_splats_per_pixel > 0)
      for_tiles(a, [&](const Tile& t, const Lanes& l) { forward_tile<D, true>(a, t, l); });
    else
      for_tiles(a, [&](const Tile& t, const Lanes& l) { forward_tile<D, false>(a, t, l); });
  });
}

void blend_backward(const BlendArgs& a) {
  with_channels(a.D, [&](auto channels) {
    constexpr int D = decltype(channels)::value;
    const bool cap = a.max_splats_per_pixel > 0, abs = a.v_abs != nullptr;
    for_tiles(a, [&](const Tile& t, const Lanes& l) {
      if (cap && abs) backward_tile<D, true, true>(a, t, l);
      if (cap && !abs) backward_tile<D, true, false>(a, t, l);
      if (!cap && abs) backward_tile<D, false, true>(a, t, l);
      if (!cap && !abs) backward_tile<D, false, false>(a, t, l);
    });
    parallel_for(a.V, 1024, [&](int64_t begin, int64_t end) { gather_pairs<D>(a, begin, end); });
  });
}

void attribute(const BlendArgs& a) {
  const int S = blend_record_floats(a.D);
  const bool cap = a.max_splats_per_pixel > 0;
  for_tiles(a, [&](const Tile& t, const Lanes& l) { cap ? attribute_tile<true>(a, t, l, S) : attribute_tile<false>(a, t, l, S); });
  parallel_for(a.V, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; j++) {
      float sum[PAIR_FLOATS] = {0};
      for (int64_t k = a.first[j]; k < a.first[j + 1]; k++) {
        const float* pair = a.pairs + k * PAIR_FLOATS;
        for (int i = 0; i < 15; i++) sum[i] += pair[i];
        sum[15] = pair[15] > sum[15] ? pair[15] : sum[15];
      }
      const int64_t o = a.order[j];
      a.weight_sum[o] = sum[0], a.weight_max[o] = sum[15], a.pixels[o] = (int32_t)sum[1];
      for (int m = 0; m < a.M; m++)
        a.weighted[o * a.M + m] = sum[2 + 2 * m], a.hits[o * a.M + m] = (int32_t)sum[3 + 2 * m];
    }
  });
}

}  // namespace SPLATEXP_ISA
