// Adam (Kingma & Ba 2015), one pass over parameter, gradient and both moments.
#include "ops.h"
#include "parallel.h"
#include "simd.h"

namespace SPLATEXP_ISA {

INLINE void update(const AdamArgs& a, int64_t i, int n) {
  float p[LANES], g[LANES], m[LANES], v[LANES];
  bool whole = n == LANES;
  if (!whole) {
    std::memset(g, 0, sizeof g), std::memset(m, 0, sizeof m), std::memset(v, 0, sizeof v), std::memset(p, 0, sizeof p);
    std::memcpy(p, a.param + i, 4 * n), std::memcpy(g, a.grad + i, 4 * n);
    std::memcpy(m, a.exp_avg + i, 4 * n), std::memcpy(v, a.exp_avg_sq + i, 4 * n);
  }
  const float *pp = whole ? a.param + i : p, *gp = whole ? a.grad + i : g, *mp = whole ? a.exp_avg + i : m,
              *vp = whole ? a.exp_avg_sq + i : v;
  vf grad = load(gp), moment = load(mp);
  moment = fma(set1(a.rate1), grad - moment, moment);
  vf square = load(vp);
  square = fma(set1(a.rate2), grad * grad - square, square);
  vf denominator = vsqrt(square) / set1(a.bias2_sqrt) + set1(a.eps);
  vf param = load(pp) - set1(a.step_size) * moment / denominator;
  if (whole) {
    store(a.param + i, param), store(a.exp_avg + i, moment), store(a.exp_avg_sq + i, square);
  } else {
    store(p, param), store(m, moment), store(v, square);
    std::memcpy(a.param + i, p, 4 * n), std::memcpy(a.exp_avg + i, m, 4 * n), std::memcpy(a.exp_avg_sq + i, v, 4 * n);
  }
}

void adam_step(const AdamArgs& a) {
  auto span = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += LANES) update(a, i, (int)(end - i < LANES ? end - i : LANES));
  };
  if (!a.visible) {
    parallel_for(a.rows * a.columns, 1 << 15, span);
    return;
  }
  parallel_for(a.rows, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end;) {
      int64_t run = row;
      while (run < end && a.visible[run]) run++;
      span(row * a.columns, run * a.columns);
      for (row = run; row < end && !a.visible[row];) row++;
    }
  });
}

}  // namespace SPLATEXP_ISA
