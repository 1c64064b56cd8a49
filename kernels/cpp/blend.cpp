// Front-to-back alpha compositing (3DGS eq. 3) and its gradient; the maths is in kernels/README.md, "blend". A tile is cut
// into blocks of 4x4 pixels; a Gaussian visits only the blocks that its ellipse reaches, found for all blocks of the tile
// at once. No atomics: a tile is computed by one worker, and what a Gaussian gets from a tile goes into that pair's own
// slot, so the bits do not depend on the number of threads.
#include "blend_sums.h"
#include "blend_tile.h"
#include "constants.h"
#include "ops.h"
#include "parallel.h"
#include "simd.h"

namespace SPLATEXP_ISA {
namespace {

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

}  // namespace SPLATEXP_ISA
