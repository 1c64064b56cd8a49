// Langevin noise on the means (kernels/README.md, "noise"). Its random numbers are a function of seed, step and a row's
// uid, so they depend neither on threads nor on the order of the rows.
#include "ops.h"
#include "parallel.h"
#include "simd.h"

namespace SPLATEXP_ISA {
namespace {

constexpr float GATE_MIN = 1e-8f;  // as in splatexp_kernels/noise/reference.py

// Philox4x32-10 (Salmon et al. 2011): four random words out of a counter and a key.
INLINE void philox(uint64_t counter_low, uint64_t counter_high, uint64_t key, uint32_t* out) {
  uint32_t x[4] = {(uint32_t)counter_low, (uint32_t)(counter_low >> 32), (uint32_t)counter_high, (uint32_t)(counter_high >> 32)};
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  for (int round = 0; round < 10; round++) {
    const uint64_t a = (uint64_t)x[0] * 0xD2511F53u, b = (uint64_t)x[2] * 0xCD9E8D57u;
    x[0] = (uint32_t)(b >> 32) ^ x[1] ^ k0, x[1] = (uint32_t)b;
    x[2] = (uint32_t)(a >> 32) ^ x[3] ^ k1, x[3] = (uint32_t)a;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  for (int i = 0; i < 4; i++) out[i] = x[i];
}

// cos and sin of a whole turn times u in [0, 1), to about 1e-7: Taylor series in the eighth of a turn around a quarter's end.
INLINE void cos_sin_turn(vf u, vf& cosine, vf& sine) {
  vf q = set1(4.0f) * u + set1(0.5f);
  q = q - exp2_fraction(q);  // quarter 0 to 4
  const vf x = set1(6.283185307179586f) * (u - set1(0.25f) * q), x2 = x * x;
  vf s = fma(x2, fma(x2, fma(x2, fma(x2, set1(1.0f / 362880), set1(-1.0f / 5040)), set1(1.0f / 120)), set1(-1.0f / 6)), set1(1.0f)) * x;
  vf c = fma(x2, fma(x2, fma(x2, fma(x2, set1(1.0f / 40320), set1(-1.0f / 720)), set1(1.0f / 24)), set1(-0.5f)), set1(1.0f));
  const vm odd = either(both(gt(q, set1(0.5f)), lt(q, set1(1.5f))), both(gt(q, set1(2.5f)), lt(q, set1(3.5f))));
  const vf zero = set1(0.0f), cc = select(odd, s, c), ss = select(odd, c, s);
  cosine = select(both(gt(q, set1(0.5f)), lt(q, set1(2.5f))), zero - cc, cc);
  sine = select(both(gt(q, set1(1.5f)), lt(q, set1(3.5f))), zero - ss, ss);
}

// Two independent normal deviates of two uniform ones, u in (0, 1], v in [0, 1). Source: Box and Muller 1958.
INLINE void box_muller(vf u, vf v, vf& one, vf& other) {
  const vf radius = vsqrt(vmax(set1(-2.0f * LN2) * log2v(u), set1(0.0f)));
  vf cosine, sine;
  cos_sin_turn(v, cosine, sine);
  one = radius * cosine, other = radius * sine;
}

INLINE void move_rows(const NoiseArgs& a, int64_t row, int n) {
  alignas(64) float opacity[LANES] = {0}, quat[4][LANES] = {{0}}, scale[3][LANES] = {{0}}, mean[3][LANES] = {{0}};
  std::memcpy(opacity, a.opacities + row, sizeof(float) * n);
  const vf grown = exp2v(vmin(set1(a.sharpness * LOG2E) * (load(opacity) - set1(a.threshold)), set1(126.0f)));
  const vf gate = set1(1.0f) / (set1(1.0f) + grown);
  const vm moved = both(ge(gate, set1(GATE_MIN)), first_lanes(n));
  if (!any(moved)) return;
  rows_to_columns(a.quats + 4 * row, 4, n, 4, quat[0]);
  rows_to_columns(a.scales + 3 * row, 3, n, 3, scale[0]);
  rows_to_columns(a.means + 3 * row, 3, n, 3, mean[0]);
  alignas(64) float uniform[4][LANES];
  for (int i = 0; i < LANES; i++) {
    uint32_t words[4];
    philox((uint64_t)a.uid[row + (i < n ? i : n - 1)], a.step, a.seed, words);
    for (int k = 0; k < 4; k++) uniform[k][i] = (float)(int32_t)(words[k] >> 8) * 0x1p-24f;
  }
  vf eta[4];
  box_muller(load(uniform[0]) + set1(0x1p-24f), load(uniform[1]), eta[0], eta[1]);
  box_muller(load(uniform[2]) + set1(0x1p-24f), load(uniform[3]), eta[2], eta[3]);

  vf w = load(quat[0]), x = load(quat[1]), y = load(quat[2]), z = load(quat[3]);
  const vf two = set1(2.0f) / fma(w, w, fma(x, x, fma(y, y, z * z))), one = set1(1.0f);
  const vf R[3][3] = {{one - two * fma(y, y, z * z), two * (x * y - w * z), two * fma(x, z, w * y)},
                      {two * fma(x, y, w * z), one - two * fma(x, x, z * z), two * (y * z - w * x)},
                      {two * (x * z - w * y), two * fma(y, z, w * x), one - two * fma(x, x, y * y)}};
  vf local[3];
  for (int k = 0; k < 3; k++) {
    const vf s = load(scale[k]);
    local[k] = s * s * gate * set1(a.rate) * fma(R[0][k], eta[0], fma(R[1][k], eta[1], R[2][k] * eta[2]));
  }
  for (int i = 0; i < 3; i++) {
    const vf by = fma(R[i][0], local[0], fma(R[i][1], local[1], R[i][2] * local[2]));
    const vm finite = both(moved, le(vabs(by), set1(3e38f)));
    store(mean[i], load(mean[i]) + zero_unless(finite, by));
  }
  columns_to_rows(mean[0], n, 3, a.means + 3 * row, 3);
}

}  // namespace

void noise(const NoiseArgs& a) {
  parallel_for(a.N, 2048, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += LANES) move_rows(a, row, (int)(end - row < LANES ? end - row : LANES));
  });
}

}  // namespace SPLATEXP_ISA
