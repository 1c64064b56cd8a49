// What the backward passes of blend.cpp and blend2d.cpp share: the sums of each Gaussian over its pairs become gradients.
// A pair's slot holds, of q = dL/d(log alpha): sum q, q dx, q dy, q dx², q dx dy, q dy², then of w v_image per channel, and
// in the last two places what v_abs is made of.
#pragma once
#include "blend_tile.h"

#include <type_traits>

namespace SPLATEXP_ISA {
namespace {

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
}  // namespace SPLATEXP_ISA
