// Blending without an order, summed or normalised, and alpha compositing: one loop forward, one backward, over the tiles,
// blocks and slots of blend.cpp; the maths is in kernels/README.md, "blend2d". What the modes do differently stands in
// `take`, and where pixels are read and written. No atomics, the same bits for any number of threads.
#include "blend_sums.h"
#include "blend_tile.h"
#include "constants.h"
#include "ops.h"
#include "parallel.h"
#include "simd.h"

namespace SPLATEXP_ISA {
namespace {

// Calls f(place in the tile's list, record, footprint, blocks to visit) along the list, until no block is live; returns
// how far it came.
template <int D, class State, class F>
INLINE int64_t for_list(const BlendArgs& a, const Tile& t, const Lanes& lanes, State& p, F&& f) {
  constexpr int S = blend_record_floats(D);
  Batch batch;
  const int64_t end = a.ends[t.index];
  int64_t k = a.starts[t.index];
  for (int64_t j = 0, n = 0; k < end && p.live; j++, k++) {
    if (j == n) n = Batch::fill(batch, a, t, lanes, k, end, S), j = 0;
    f(k, a.records + (int64_t)a.ids[k] * S, batch.f[j], batch.mask[j] & p.live);
  }
  return k;
}

// Calls f(block, first pixel in it, vector of them) for the blocks in `mask`.
template <class F>
INLINE void for_vectors(uint64_t mask, F&& f) {
  for (; mask; mask &= mask - 1)
    for (int v = 0; v < VECTORS; v++) f(__builtin_ctzll(mask), v * LANES, v);
}

// log2 of a Gaussian's weight at LANES pixels. Rounding may lift a needle's above that of its mean, by any factor.
INLINE vf exponent_of(const float* g, const Footprint& f, const Lanes& lanes, int b, int v) {
  return vmin(set1(g[LOG2_OPACITY]), Footprint::exponent(f, lanes, b, v));  // NaN, where infinities cancel, stays NaN
}

// Raises the gate of each pixel to the exponent of the top_k-th largest weight there; TAKEN becomes how many of exactly
// that exponent may pass.
template <int D, class State>
void choose_top(const Blend2dArgs& a, const Tile& t, const Lanes& lanes, State& p) {
  alignas(64) float best[MAX_BLOCKS][MAX_TOP][BLOCK_PIXELS];  // exponents, descending
  const vf none = set1(-NEVER);
  const int last = a.top_k - 1;
  for_vectors(p.live, [&](int b, int i, int) {
    for (int j = 0; j < a.top_k; j++) store(best[b][j] + i, none);
  });
  for_list<D>(a, t, lanes, p, [&](int64_t, const float* g, const Footprint& f, uint64_t mask) {
    for_vectors(mask, [&](int b, int i, int v) {
      vf x = exponent_of(g, f, lanes, b, v);
      x = select(ge(x, load(p.at[b][State::GATE] + i)), x, none);
      if (!any(gt(x, load(best[b][last] + i)))) return;
      for (int j = 0; j < a.top_k; j++) {
        const vf y = load(best[b][j] + i);
        store(best[b][j] + i, vmax(x, y));
        x = vmin(x, y);
      }
    });
  });
  for_vectors(p.live, [&](int b, int i, int) {
    const vf low = load(best[b][last] + i);
    const vm full = gt(low, none);
    vf equal = set1(0.0f);
    for (int j = 0; j < a.top_k; j++) equal = equal + zero_unless(le(load(best[b][j] + i), low), set1(1.0f));
    float* gate = p.at[b][State::GATE] + i;
    store(gate, select(full, low, load(gate)));
    store(p.at[b][State::TAKEN] + i, select(full, equal, set1(NEVER)));
  });
}

// One Gaussian at LANES pixels: which of them take it, and its weight there.
template <bool ALPHA, bool TOP, class State>
INLINE Share take(vf exponent, int b, int i, State& p) {
  if (ALPHA) return composite<false>(exponent, b, i, p, 0.0f);
  Share s;
  float(&at)[State::FIELDS][BLOCK_PIXELS] = p.at[b];
  const vf gate = load(at[State::GATE] + i);
  s.ok = ge(exponent, gate);
  if (TOP) {
    const vf left = load(at[State::TAKEN] + i);
    const vm equal = both(s.ok, le(exponent, gate));
    s.ok = without(s.ok, both(equal, le(left, set1(0.0f))));
    store(at[State::TAKEN] + i, left - zero_unless(equal, set1(1.0f)));
  }
  s.w = zero_unless(s.ok, exp2v(exponent));
  return s;
}

template <int D, bool ALPHA, bool TOP>
void forward_tile(const Blend2dArgs& a, const Tile& t, const Lanes& lanes) {
  using State = Pixels<D + 1>;  // its own fields: the channels summed so far, then the weights
  constexpr int TOTAL = State::OWN + D;
  State p(a, t);
  if (TOP) {
    choose_top<D>(a, t, lanes, p);
    t.for_block_rows(a, [&](int64_t pixel, int n, int b, int i) {
      for (int j = 0; j < n; j++)
        a.gates[2 * (pixel + j)] = p.at[b][State::GATE][i + j], a.gates[2 * (pixel + j) + 1] = p.at[b][State::TAKEN][i + j];
    });
  }
  for_list<D>(a, t, lanes, p, [&](int64_t, const float* g, const Footprint& f, uint64_t mask) {
    for_vectors(mask, [&](int b, int i, int v) {
      const vf w = take<ALPHA, TOP>(exponent_of(g, f, lanes, b, v), b, i, p).w;
      for (int c = 0; c < D; c++) {
        float* color = p.at[b][State::OWN + c] + i;
        store(color, fma(w, set1(g[CHANNELS + c]), load(color)));
      }
      if (!ALPHA) store(p.at[b][TOTAL] + i, load(p.at[b][TOTAL] + i) + w);
    });
  });

  const bool normalized = a.mode == Blend2dMode::NORMALIZED;
  const float* background = a.background ? a.background + t.image * D : nullptr;
  t.for_block_rows(a, [&](int64_t pixel, int n, int b, int i) {
    for (int j = 0; j < n; j++) {
      const float T = p.at[b][State::T][i + j], total = ALPHA ? 1.0f - T : p.at[b][TOTAL][i + j];
      const float share = ALPHA ? T : normalized ? NORMALIZER_EPS : 1.0f;  // of the background
      const float scale = normalized ? 1.0f / (total + NORMALIZER_EPS) : 1.0f;
      a.alpha[pixel + j] = total;
      for (int c = 0; c < D; c++)
        a.image[(pixel + j) * D + c] = scale * (p.at[b][State::OWN + c][i + j] + (background ? share * background[c] : 0.0f));
    }
  });
}

template <int D, bool ALPHA, bool TOP>
void backward_tile(const Blend2dArgs& a, const Tile& t, const Lanes& lanes) {
  const bool normalized = a.mode == Blend2dMode::NORMALIZED;
  // own fields: the gradient of the sum of w color, and what is taken from its product with a Gaussian's color: with alpha
  // what still lies behind it (as in blend.cpp), else how the pixel's value and its total fall as the weight grows
  using State = Pixels<D + 1>;
  constexpr int REST = State::OWN + D;
  State p(a, t);
  t.for_block_rows(a, [&](int64_t pixel, int n, int b, int i) {
    for (int j = 0; j < n; j++) {
      const float total = a.alpha[pixel + j], v_total = a.v_alpha ? a.v_alpha[pixel + j] : 0.0f;
      const float scale = normalized ? 1.0f / (total + NORMALIZER_EPS) : 1.0f;
      float rest = ALPHA ? v_total * (total - 1.0f) : -v_total;
      for (int c = 0; c < D; c++) {
        const float u = scale * a.v_image[(pixel + j) * D + c];
        p.at[b][State::OWN + c][i + j] = u;
        if (ALPHA || normalized) rest += u * a.image[(pixel + j) * D + c];
      }
      p.at[b][REST][i + j] = rest;
      if (TOP) p.at[b][State::GATE][i + j] = a.gates[2 * (pixel + j)], p.at[b][State::TAKEN][i + j] = a.gates[2 * (pixel + j) + 1];
    }
  });
  const int64_t end = a.ends[t.index], beyond = t.index + 1 < a.C * a.tiles_x * a.tiles_y ? a.starts[t.index + 1] : a.P;
  const vf zero = set1(0.0f), one = set1(1.0f);
  int64_t k = for_list<D>(a, t, lanes, p, [&](int64_t k, const float* g, const Footprint& f, uint64_t mask) {
    float* slot = a.pairs + (int64_t)a.slots[k] * PAIR_FLOATS;
    if (k + 4 < end) __builtin_prefetch(a.pairs + (int64_t)a.slots[k + 4] * PAIR_FLOATS, 1);
    vf sums[16], G = zero, Gx = zero, Gy = zero, Gxx = zero, Gxy = zero, Gyy = zero, V[D];
    for (int c = 0; c < D; c++) V[c] = zero;
    for_vectors(mask, [&](int b, int i, int v) {
      const Share s = take<ALPHA, TOP>(exponent_of(g, f, lanes, b, v), b, i, p);
      vf cv = zero, R = load(p.at[b][REST] + i), q;
      for (int c = 0; c < D; c++) {
        const vf u = load(p.at[b][State::OWN + c] + i);
        cv = fma(set1(g[CHANNELS + c]), u, cv);
        V[c] = fma(s.w, u, V[c]);
      }
      if (ALPHA) {
        cv = s.w * cv, R = R - cv;
        store(p.at[b][REST] + i, R);
        q = zero_unless(both(s.ok, lt(s.alpha, set1(ALPHA_MAX))), cv - R * s.alpha * rcp(one - s.alpha));
      } else {
        q = s.w * (cv - R);
      }
      const vf x = set1(f.x[b]) + lanes.x, y = set1(f.y[b]) + lanes.y[v], qx = q * x, qy = q * y;
      G = G + q, Gx = Gx + qx, Gy = Gy + qy;
      Gxx = fma(qx, x, Gxx), Gxy = fma(qx, y, Gxy), Gyy = fma(qy, y, Gyy);
    });
    sums[0] = G, sums[1] = Gx, sums[2] = Gy, sums[3] = Gxx, sums[4] = Gxy, sums[5] = Gyy;
    for (int c = 0; c < D; c++) sums[6 + c] = V[c];
    for (int c = 6 + D; c < 16; c++) sums[c] = zero;
    reduce16(sums, slot);
  });
  // what was never looked at, because the tile was opaque or its list was cut
  for (; k < beyond; k++) std::memset(a.pairs + (int64_t)a.slots[k] * PAIR_FLOATS, 0, sizeof(float) * PAIR_FLOATS);
}

// Calls f(channels, whether alpha is composited, whether top_k is set), each as a constant.
template <class F>
void with_variant(const Blend2dArgs& a, F&& f) {
  using Yes = std::true_type;
  using No = std::false_type;
  with_channels(a.D, [&](auto channels) {
    if (a.mode == Blend2dMode::ALPHA) return f(channels, Yes{}, No{});
    return a.top_k > 0 ? f(channels, No{}, Yes{}) : f(channels, No{}, No{});
  });
}

}  // namespace

void blend2d_forward(const Blend2dArgs& a) {
  with_variant(a, [&](auto channels, auto alpha, auto top) {
    for_tiles(a, [&](const Tile& t, const Lanes& l) { forward_tile<decltype(channels)::value, alpha, top>(a, t, l); });
  });
}

void blend2d_backward(const Blend2dArgs& a) {
  with_variant(a, [&](auto channels, auto alpha, auto top) {
    constexpr int D = decltype(channels)::value;
    for_tiles(a, [&](const Tile& t, const Lanes& l) { backward_tile<D, alpha, top>(a, t, l); });
    parallel_for(a.V, 1024, [&](int64_t begin, int64_t end) { gather_pairs<D>(a, begin, end); });
  });
}

}  // namespace SPLATEXP_ISA
