// Real spherical harmonics up to degree 4 (Sloan 2013, "Efficient Spherical Harmonic Evaluation"; the signs of 3DGS).
#include "ops.h"
#include "parallel.h"
#include "simd.h"

namespace SPLATEXP_ISA {
namespace {

constexpr int MAX_K = 25;

// Basis values b[(degree+1)²] at the unit direction (x, y, z).
INLINE void basis(int degree, vf x, vf y, vf z, vf* b) {
  b[0] = set1(0.2820947917738781f);
  if (degree < 1) return;
  b[1] = set1(-0.48860251190292f) * y;
  b[2] = set1(0.48860251190292f) * z;
  b[3] = set1(-0.48860251190292f) * x;
  if (degree < 2) return;
  vf z2 = z * z, c1 = x * x - y * y, s1 = set1(2.0f) * x * y;
  vf t0B = set1(-1.092548430592079f) * z;
  b[4] = set1(0.5462742152960395f) * s1;
  b[5] = t0B * y;
  b[6] = fma(set1(0.9461746957575601f), z2, set1(-0.3153915652525201f));
  b[7] = t0B * x;
  b[8] = set1(0.5462742152960395f) * c1;
  if (degree < 3) return;
  vf c2 = x * c1 - y * s1, s2 = x * s1 + y * c1;
  vf t0C = fma(set1(-2.285228997322329f), z2, set1(0.4570457994644658f));
  vf t1B = set1(1.445305721320277f) * z;
  b[9] = set1(-0.5900435899266435f) * s2;
  b[10] = t1B * s1;
  b[11] = t0C * y;
  b[12] = z * fma(set1(1.865881662950577f), z2, set1(-1.119528997770346f));
  b[13] = t0C * x;
  b[14] = t1B * c1;
  b[15] = set1(-0.5900435899266435f) * c2;
  if (degree < 4) return;
  vf c3 = x * c2 - y * s2, s3 = x * s2 + y * c2;
  vf t0D = z * fma(set1(-4.683325804901025f), z2, set1(2.007139630671868f));
  vf t1C = fma(set1(3.31161143515146f), z2, set1(-0.47308734787878f));
  vf t2B = set1(-1.770130769779931f) * z;
  b[16] = set1(0.6258357354491763f) * s3;
  b[17] = t2B * s2;
  b[18] = t1C * s1;
  b[19] = t0D * y;
  b[20] = fma(set1(1.984313483298443f) * z, b[12], set1(-1.006230589874905f) * b[6]);
  b[21] = t0D * x;
  b[22] = t1C * c1;
  b[23] = t2B * c2;
  b[24] = set1(0.6258357354491763f) * c3;
}

// Adds to (v_x, v_y, v_z) the gradient of sum_k w[k] * b[k] with respect to the direction.
INLINE void basis_gradient(int degree, vf x, vf y, vf z, const vf* w, vf& v_x, vf& v_y, vf& v_z) {
  if (degree < 1) return;
  const vf k1 = set1(0.48860251190292f);
  v_y = v_y - k1 * w[1];
  v_z = v_z + k1 * w[2];
  v_x = v_x - k1 * w[3];
  if (degree < 2) return;
  const vf k2 = set1(1.092548430592079f);
  vf z2 = z * z, c1 = x * x - y * y, s1 = set1(2.0f) * x * y;
  // d s1 = 2 (y dx + x dy), d c1 = 2 (x dx - y dy)
  vf v_s1 = set1(0.5462742152960395f) * w[4], v_c1 = set1(0.5462742152960395f) * w[8];
  v_x = v_x - k2 * z * w[7];
  v_y = v_y - k2 * z * w[5];
  v_z = v_z + set1(2.0f * 0.9461746957575601f) * z * w[6] - k2 * (y * w[5] + x * w[7]);
  vf v_c2 = set1(0.0f), v_s2 = set1(0.0f);
  if (degree >= 3) {
    vf c2 = x * c1 - y * s1, s2 = x * s1 + y * c1;
    vf t0C = fma(set1(-2.285228997322329f), z2, set1(0.4570457994644658f)), k3 = set1(1.445305721320277f);
    v_s2 = set1(-0.5900435899266435f) * w[9];
    v_c2 = set1(-0.5900435899266435f) * w[15];
    v_s1 = v_s1 + k3 * z * w[10];
    v_c1 = v_c1 + k3 * z * w[14];
    v_x = v_x + t0C * w[13];
    v_y = v_y + t0C * w[11];
    v_z = v_z + k3 * (s1 * w[10] + c1 * w[14]) - set1(2.0f * 2.285228997322329f) * z * (y * w[11] + x * w[13]) +
          fma(set1(3.0f * 1.865881662950577f), z2, set1(-1.119528997770346f)) * w[12];
    if (degree >= 4) {
      vf t0D = z * fma(set1(-4.683325804901025f), z2, set1(2.007139630671868f));
      vf t1C = fma(set1(3.31161143515146f), z2, set1(-0.47308734787878f)), k4 = set1(-1.770130769779931f);
      vf v_s3 = set1(0.6258357354491763f) * w[16], v_c3 = set1(0.6258357354491763f) * w[24];
      v_s2 = v_s2 + k4 * z * w[17];
      v_c2 = v_c2 + k4 * z * w[23];
      v_s1 = v_s1 + t1C * w[18];
      v_c1 = v_c1 + t1C * w[22];
      v_x = v_x + t0D * w[21];
      v_y = v_y + t0D * w[19];
      vf b12 = z * fma(set1(1.865881662950577f), z2, set1(-1.119528997770346f));
      vf d12 = fma(set1(3.0f * 1.865881662950577f), z2, set1(-1.119528997770346f));
      v_z = v_z + k4 * (s2 * w[17] + c2 * w[23]) + set1(2.0f * 3.31161143515146f) * z * (s1 * w[18] + c1 * w[22]) +
            fma(set1(-3.0f * 4.683325804901025f), z2, set1(2.007139630671868f)) * (y * w[19] + x * w[21]) +
            (set1(1.984313483298443f) * fma(z, d12, b12) - set1(2.0f * 1.006230589874905f * 0.9461746957575601f) * z) * w[20];
      // c3 = x c2 - y s2, s3 = x s2 + y c2
      v_x = v_x + v_c3 * c2 + v_s3 * s2;
      v_y = v_y - v_c3 * s2 + v_s3 * c2;
      v_c2 = v_c2 + x * v_c3 + y * v_s3;
      v_s2 = v_s2 - y * v_c3 + x * v_s3;
    }
    // c2 = x c1 - y s1, s2 = x s1 + y c1
    v_x = v_x + v_c2 * c1 + v_s2 * s1;
    v_y = v_y - v_c2 * s1 + v_s2 * c1;
    v_c1 = v_c1 + x * v_c2 + y * v_s2;
    v_s1 = v_s1 - y * v_c2 + x * v_s2;
  }
  v_x = v_x + set1(2.0f) * (x * v_c1 + y * v_s1);
  v_y = v_y + set1(2.0f) * (x * v_s1 - y * v_c1);
}

struct Direction {
  vf x, y, z, inv;
};
INLINE Direction direction(const vf* p, const float* center) {
  vf dx = p[0] - set1(center[0]), dy = p[1] - set1(center[1]), dz = p[2] - set1(center[2]);
  // a Gaussian at the camera centre has no direction; it is never visible, any finite value will do
  vf inv = set1(1.0f) / vsqrt(vmax(dx * dx + dy * dy + dz * dz, set1(1e-30f)));
  return {dx * inv, dy * inv, dz * inv, inv};
}

INLINE bool any_visible(const ShArgs& a, int64_t i, int n) {
  if (!a.visible) return true;
  for (int64_t c = 0; c < a.C; c++)
    for (int k = 0; k < n; k++)
      if (a.visible[c * a.N + i + k]) return true;
  return false;
}

}  // namespace

void sh_forward(const ShArgs& a) {
  const int active = (a.degree + 1) * (a.degree + 1), rest = 3 * (active - 1);
  parallel_for(a.N, SH_BLOCK, [&](int64_t begin, int64_t end) {
    alignas(64) float coeffs[3 * MAX_K * LANES];
    std::memset(coeffs, 0, sizeof coeffs);
    for (int64_t i = begin; i < end; i += LANES) {
      int n = (int)(end - i < LANES ? end - i : LANES);
      if (!any_visible(a, i, n)) {
        for (int64_t c = 0; c < a.C; c++) std::memset(a.colors + 3 * (c * a.N + i), 0, sizeof(float) * 3 * n);
        continue;
      }
      rows_to_columns(a.sh0 + 3 * i, 3, n, 3, coeffs);
      if (rest) rows_to_columns(a.shN + 3 * (a.K - 1) * i, 3 * (a.K - 1), n, rest, coeffs + 3 * LANES);
      vf p[3];
      for (int k = 0; k < 3; k++) p[k] = gather(a.means + 3 * i + k, 3, n);
      for (int64_t c = 0; c < a.C; c++) {
        Direction d = direction(p, a.centers + 3 * c);
        vf b[MAX_K], color[3];
        basis(a.degree, d.x, d.y, d.z, b);
        for (int ch = 0; ch < 3; ch++) {
          vf sum = set1(0.5f);
          for (int k = 0; k < active; k++) sum = fma(b[k], load(coeffs + (3 * k + ch) * LANES), sum);
          color[ch] = vmax(sum, set1(0.0f));
        }
        float lanes[3][LANES];
        for (int ch = 0; ch < 3; ch++) store(lanes[ch], color[ch]);
        int64_t o = c * a.N + i;
        for (int k = 0; k < n; k++) {
          bool shown = !a.visible || a.visible[o + k];
          for (int ch = 0; ch < 3; ch++) a.colors[3 * (o + k) + ch] = shown ? lanes[ch][k] : 0.0f;
        }
      }
    }
  });
}

void sh_backward(const ShArgs& a) {
  const int active = (a.degree + 1) * (a.degree + 1), rest = 3 * (active - 1);
  const int64_t row = 3 * (a.K - 1);
  parallel_for(a.N, SH_BLOCK, [&](int64_t begin, int64_t end) {
    float* partial = a.v_centers_partial ? a.v_centers_partial + begin / SH_BLOCK * a.C * 3 : nullptr;
    if (partial) std::memset(partial, 0, sizeof(float) * 3 * a.C);
    alignas(64) float coeffs[3 * MAX_K * LANES], v_coeffs[3 * MAX_K * LANES];
    std::memset(coeffs, 0, sizeof coeffs);
    for (int64_t i = begin; i < end; i += LANES) {
      int n = (int)(end - i < LANES ? end - i : LANES);
      if (!any_visible(a, i, n)) {
        std::memset(a.v_means + 3 * i, 0, sizeof(float) * 3 * n);
        std::memset(a.v_sh0 + 3 * i, 0, sizeof(float) * 3 * n);
        if (a.v_shN) std::memset(a.v_shN + row * i, 0, sizeof(float) * row * n);
        continue;
      }
      // the colour itself is needed for nothing but to know which channels the clamp at 0 cut off: where the
      // forward's output is exactly 0 (invisible rows included) no gradient flows
      if (rest) rows_to_columns(a.shN + row * i, row, n, rest, coeffs + 3 * LANES);
      vf p[3], v_p[3] = {set1(0.0f), set1(0.0f), set1(0.0f)};
      for (int k = 0; k < 3; k++) p[k] = gather(a.means + 3 * i + k, 3, n);
      for (int64_t c = 0; c < a.C; c++) {
        int64_t o = c * a.N + i;
        Direction d = direction(p, a.centers + 3 * c);
        vf b[MAX_K], v_color[3], w[MAX_K];
        vf color[3];
        for (int ch = 0; ch < 3; ch++) color[ch] = gather(a.colors + 3 * o + ch, 3, n);
        vm shown = both(gt(vmax(color[0], vmax(color[1], color[2])), set1(0.0f)), first_lanes(n));
        d = {zero_unless(shown, d.x), zero_unless(shown, d.y), zero_unless(shown, d.z), zero_unless(shown, d.inv)};
        basis(a.degree, d.x, d.y, d.z, b);
        for (int ch = 0; ch < 3; ch++)
          v_color[ch] = zero_unless(both(gt(color[ch], set1(0.0f)), shown), gather(a.v_colors + 3 * o + ch, 3, n));
        for (int k = 0; k < active; k++) {
          float* v = v_coeffs + 3 * k * LANES;
          const float* x = coeffs + 3 * k * LANES;
          for (int ch = 0; ch < 3; ch++)
            store(v + ch * LANES, c == 0 ? b[k] * v_color[ch] : fma(b[k], v_color[ch], load(v + ch * LANES)));
          w[k] = v_color[0] * load(x) + v_color[1] * load(x + LANES) + v_color[2] * load(x + 2 * LANES);
        }
        vf v_x = set1(0.0f), v_y = v_x, v_z = v_x;
        basis_gradient(a.degree, d.x, d.y, d.z, w, v_x, v_y, v_z);
        vf dot = v_x * d.x + v_y * d.y + v_z * d.z;
        vf v_dir[3] = {zero_unless(shown, (v_x - d.x * dot) * d.inv), zero_unless(shown, (v_y - d.y * dot) * d.inv),
                       zero_unless(shown, (v_z - d.z * dot) * d.inv)};
        for (int k = 0; k < 3; k++) v_p[k] = v_p[k] + v_dir[k];
        if (partial) {
          float lanes[LANES];
          for (int k = 0; k < 3; k++) {
            store(lanes, v_dir[k]);
            for (int j = 0; j < n; j++) partial[3 * c + k] -= lanes[j];
          }
        }
      }
      float v_mean_columns[3 * LANES];
      for (int k = 0; k < 3; k++) store(v_mean_columns + k * LANES, v_p[k]);
      columns_to_rows(v_mean_columns, n, 3, a.v_means + 3 * i, 3);
      columns_to_rows(v_coeffs, n, 3, a.v_sh0 + 3 * i, 3);
      if (!a.v_shN) continue;
      columns_to_rows(v_coeffs + 3 * LANES, n, rest, a.v_shN + row * i, row);
      if (rest < row)
        for (int j = 0; j < n; j++) std::memset(a.v_shN + row * (i + j) + rest, 0, sizeof(float) * (row - rest));
    }
  });
}

}  // namespace SPLATEXP_ISA
