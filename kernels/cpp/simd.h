// One vector type, `vf`, and the few operations the kernels need, at the native width of the instruction set that this
// translation unit is compiled for: 16 floats with AVX-512, 8 with AVX2, 4 anywhere else (GCC/Clang vector extension).
// Everything lives in namespace SPLATEXP_ISA, so that three builds of one source can share a library.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

namespace SPLATEXP_ISA {

constexpr float LOG2E = 1.44269504088896341f;
constexpr float LN2 = 0.69314718055994531f;

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512BW__)

constexpr int LANES = 16;
using vf = __m512;
using vm = __mmask16;
INLINE vf set1(float x) { return _mm512_set1_ps(x); }
INLINE vf load(const float* p) { return _mm512_loadu_ps(p); }
INLINE void store(float* p, vf v) { _mm512_storeu_ps(p, v); }
INLINE vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vabs(vf a) { return _mm512_abs_ps(a); }
INLINE vf vsqrt(vf a) { return _mm512_sqrt_ps(a); }
INLINE vm gt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
INLINE vm ge(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
INLINE vm both(vm a, vm b) { return a & b; }
INLINE vm either(vm a, vm b) { return a | b; }
INLINE vm without(vm a, vm b) { return a & ~b; }
INLINE bool any(vm m) { return m != 0; }
INLINE uint32_t bits(vm m) { return m; }
INLINE vm first_lanes(int n) { return n >= LANES ? 0xffff : (vm)((1u << n) - 1); }
INLINE vf select(vm m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); }
INLINE vf zero_unless(vm m, vf a) { return _mm512_maskz_mov_ps(m, a); }
INLINE vf iota() { return _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }
// 1/x to about 1e-7: the 14-bit estimate and one Newton step.
INLINE vf rcp(vf x) {
  vf r = _mm512_rcp14_ps(x);
  return _mm512_mul_ps(r, _mm512_fnmadd_ps(x, r, set1(2.0f)));
}
INLINE vf exp2_scale(vf poly, vf x) { return _mm512_scalef_ps(poly, x); }  // poly * 2^floor(x)
INLINE vf exp2_fraction(vf x) { return _mm512_reduce_ps(x, 0x09); }        // x - floor(x)
// Lane i of the result is base[i * stride], the last `n` lanes repeat lane n - 1.
INLINE vf gather(const float* base, int stride, int n) {
  __m512i i = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  i = _mm512_mullo_epi32(_mm512_min_epi32(i, _mm512_set1_epi32(n - 1)), _mm512_set1_epi32(stride));
  return _mm512_i32gather_ps(i, base, 4);
}
INLINE vf pair_fold(vf a, vf b) {  // 128-bit quarters: [a0+a2, a1+a3, b0+b2, b1+b3]
  return _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee);
}
INLINE vf quarter_fold(vf ab, vf cd) {  // [a, b, c, d], each a quarter
  return _mm512_shuffle_f32x4(ab, cd, 0x88) + _mm512_shuffle_f32x4(ab, cd, 0xdd);
}
INLINE vf in_lane_fold(vf p, vf q, vf r, vf s) {  // every quarter: [sum p, sum q, sum r, sum s] of that quarter
  vf t = _mm512_unpacklo_ps(p, q) + _mm512_unpackhi_ps(p, q);
  vf u = _mm512_unpacklo_ps(r, s) + _mm512_unpackhi_ps(r, s);
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t), _mm512_castps_pd(u))) +
         _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t), _mm512_castps_pd(u)));
}
// out[i] = sum over the lanes of v[i], for 16 vectors at once: 36 operations instead of 16 reductions.
INLINE void reduce16(const vf* v, float* out) {
  // quarter q of the k-th folded vector belongs to v[4 q + k], so that the last fold leaves the sums in order
  vf p = quarter_fold(pair_fold(v[0], v[4]), pair_fold(v[8], v[12]));
  vf q = quarter_fold(pair_fold(v[1], v[5]), pair_fold(v[9], v[13]));
  vf r = quarter_fold(pair_fold(v[2], v[6]), pair_fold(v[10], v[14]));
  vf s = quarter_fold(pair_fold(v[3], v[7]), pair_fold(v[11], v[15]));
  store(out, in_lane_fold(p, q, r, s));
}

#elif defined(__AVX2__) && defined(__FMA__)

constexpr int LANES = 8;
using vf = __m256;
using vm = __m256;
INLINE vf set1(float x) { return _mm256_set1_ps(x); }
INLINE vf load(const float* p) { return _mm256_loadu_ps(p); }
INLINE void store(float* p, vf v) { _mm256_storeu_ps(p, v); }
INLINE vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vabs(vf a) { return _mm256_andnot_ps(set1(-0.0f), a); }
INLINE vf vsqrt(vf a) { return _mm256_sqrt_ps(a); }
INLINE vm gt(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
INLINE vm ge(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
INLINE vm both(vm a, vm b) { return _mm256_and_ps(a, b); }
INLINE vm either(vm a, vm b) { return _mm256_or_ps(a, b); }
INLINE vm without(vm a, vm b) { return _mm256_andnot_ps(b, a); }
INLINE uint32_t bits(vm m) { return (uint32_t)_mm256_movemask_ps(m); }
INLINE bool any(vm m) { return !_mm256_testz_ps(m, m); }
INLINE vf iota() { return _mm256_set_ps(7, 6, 5, 4, 3, 2, 1, 0); }
INLINE vm first_lanes(int n) { return gt(set1((float)n), iota()); }
INLINE vf select(vm m, vf a, vf b) { return _mm256_blendv_ps(b, a, m); }
INLINE vf zero_unless(vm m, vf a) { return _mm256_and_ps(m, a); }
INLINE vf rcp(vf x) {
  // the 12-bit estimate needs two Newton steps; a division is as fast
  return _mm256_div_ps(set1(1.0f), x);
}
INLINE vf exp2_fraction(vf x) { return x - _mm256_floor_ps(x); }
INLINE vf exp2_scale(vf poly, vf x) {
  __m256i n = _mm256_cvtps_epi32(_mm256_floor_ps(vmax(x, set1(-126.0f))));
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(poly), _mm256_slli_epi32(n, 23)));
}
INLINE vf gather(const float* base, int stride, int n) {
  __m256i i = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
  i = _mm256_mullo_epi32(_mm256_min_epi32(i, _mm256_set1_epi32(n - 1)), _mm256_set1_epi32(stride));
  return _mm256_i32gather_ps(base, i, 4);
}
INLINE vf half_fold(vf a, vf b) {  // [a, b], each a 128-bit half
  return _mm256_permute2f128_ps(a, b, 0x20) + _mm256_permute2f128_ps(a, b, 0x31);
}
INLINE vf in_lane_fold(vf p, vf q, vf r, vf s) {
  vf t = _mm256_unpacklo_ps(p, q) + _mm256_unpackhi_ps(p, q);
  vf u = _mm256_unpacklo_ps(r, s) + _mm256_unpackhi_ps(r, s);
  return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(t), _mm256_castps_pd(u))) +
         _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(t), _mm256_castps_pd(u)));
}
INLINE void reduce16(const vf* v, float* out) {
  for (int h = 0; h < 2; h++, v += 8)
    store(out + 8 * h, in_lane_fold(half_fold(v[0], v[4]), half_fold(v[1], v[5]), half_fold(v[2], v[6]),
                                    half_fold(v[3], v[7])));
}

#else

constexpr int LANES = 4;
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vm __attribute__((vector_size(16)));
INLINE vf set1(float x) { return vf{x, x, x, x}; }
INLINE vf load(const float* p) { vf v; std::memcpy(&v, p, sizeof v); return v; }
INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }
INLINE vf select(vm m, vf a, vf b) { return (vf)((m & (vm)a) | (~m & (vm)b)); }
INLINE vf vmin(vf a, vf b) { return select(a < b, a, b); }
INLINE vf vmax(vf a, vf b) { return select(a > b, a, b); }
INLINE vf vabs(vf a) { return (vf)((vm)a & 0x7fffffff); }
INLINE vf vsqrt(vf a) { return vf{std::sqrt(a[0]), std::sqrt(a[1]), std::sqrt(a[2]), std::sqrt(a[3])}; }
INLINE vm gt(vf a, vf b) { return a > b; }
INLINE vm ge(vf a, vf b) { return a >= b; }
INLINE vm both(vm a, vm b) { return a & b; }
INLINE vm either(vm a, vm b) { return a | b; }
INLINE vm without(vm a, vm b) { return a & ~b; }
INLINE uint32_t bits(vm m) { return (m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8); }
INLINE bool any(vm m) { return (m[0] | m[1] | m[2] | m[3]) != 0; }
INLINE vf iota() { return vf{0, 1, 2, 3}; }
INLINE vm first_lanes(int n) { return set1((float)n) > iota(); }
INLINE vf zero_unless(vm m, vf a) { return (vf)(m & (vm)a); }
INLINE vf rcp(vf x) { return 1.0f / x; }
INLINE vf vfloor(vf x) {
  x = vmin(vmax(x, set1(-1e9f)), set1(1e9f));
  vf t = __builtin_convertvector(__builtin_convertvector(x, vm), vf);
  return t - zero_unless(t > x, set1(1.0f));
}
INLINE vf exp2_fraction(vf x) { return x - vfloor(x); }
INLINE vf exp2_scale(vf poly, vf x) {
  return (vf)((vm)poly + (__builtin_convertvector(vfloor(vmax(x, set1(-126.0f))), vm) << 23));
}
INLINE vf gather(const float* base, int stride, int n) {
  vf v;
  for (int i = 0; i < LANES; i++) v[i] = base[(int64_t)(i < n ? i : n - 1) * stride];
  return v;
}
INLINE void reduce16(const vf* v, float* out) {
  for (int i = 0; i < 16; i++) out[i] = (v[i][0] + v[i][2]) + (v[i][1] + v[i][3]);
}

#endif

INLINE vm le(vf a, vf b) { return ge(b, a); }
INLINE vm lt(vf a, vf b) { return gt(b, a); }

// 2^x for x <= 127, relative error 1.6e-7 (degree 5 minimax on the fraction); flushes to a tiny value below -126.
INLINE vf exp2v(vf x) {
  vf f = exp2_fraction(x);
  vf p = set1(1.87757879e-3f);
  p = fma(p, f, set1(8.98933876e-3f));
  p = fma(p, f, set1(5.58263138e-2f));
  p = fma(p, f, set1(2.40153626e-1f));
  p = fma(p, f, set1(6.93153083e-1f));
  p = fma(p, f, set1(9.9999994e-1f));
  return exp2_scale(p, x);
}

// log2(x) for normal positive x, absolute error 1.5e-7 near 1 (odd series in (m - 1) / (m + 1), m the mantissa).
INLINE vf log2v(vf x) {
  typedef int32_t vi __attribute__((vector_size(4 * LANES)));
  vi u = (vi)x;
  vi e = (u - 0x3f3504f3) >> 23;  // so that m lies in [sqrt(1/2), sqrt(2))
  vf m = (vf)(u - (e << 23));
  vf t = (m - set1(1.0f)) / (m + set1(1.0f)), t2 = t * t;
  vf p = fma(t2, fma(t2, fma(t2, fma(t2, set1(1.0f / 9), set1(1.0f / 7)), set1(1.0f / 5)), set1(1.0f / 3)), set1(1.0f));
  typedef float vfx __attribute__((vector_size(4 * LANES)));
  return fma(p * t, set1(2.0f * LOG2E), (vf)__builtin_convertvector(e, vfx));
}

// rows[n][stride] -> columns[count][LANES], through 4x4 blocks that every instruction set has; n <= LANES,
// columns of absent rows are left alone.
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
#if defined(__clang__)
#define SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define SHUFFLE4(a, b, i, j, k, l) __builtin_shuffle(a, b, (i4{i, j, k, l}))
#endif
INLINE void transpose4(v4& a, v4& b, v4& c, v4& d) {
  v4 ab0 = SHUFFLE4(a, b, 0, 4, 1, 5), ab1 = SHUFFLE4(a, b, 2, 6, 3, 7);
  v4 cd0 = SHUFFLE4(c, d, 0, 4, 1, 5), cd1 = SHUFFLE4(c, d, 2, 6, 3, 7);
  a = SHUFFLE4(ab0, cd0, 0, 1, 4, 5);
  b = SHUFFLE4(ab0, cd0, 2, 3, 6, 7);
  c = SHUFFLE4(ab1, cd1, 0, 1, 4, 5);
  d = SHUFFLE4(ab1, cd1, 2, 3, 6, 7);
}
INLINE v4 load4(const float* p) { v4 v; std::memcpy(&v, p, sizeof v); return v; }
INLINE void store4(float* p, v4 v) { std::memcpy(p, &v, sizeof v); }

INLINE void rows_to_columns(const float* rows, int64_t stride, int n, int count, float* columns) {
  int i = 0;
  for (; i + 4 <= n; i += 4) {
    const float* r = rows + i * stride;
    int k = 0;
    for (; k + 4 <= count; k += 4) {
      v4 a = load4(r + k), b = load4(r + stride + k), c = load4(r + 2 * stride + k), d = load4(r + 3 * stride + k);
      transpose4(a, b, c, d);
      store4(columns + (k + 0) * LANES + i, a);
      store4(columns + (k + 1) * LANES + i, b);
      store4(columns + (k + 2) * LANES + i, c);
      store4(columns + (k + 3) * LANES + i, d);
    }
    for (; k < count; k++)
      for (int j = 0; j < 4; j++) columns[k * LANES + i + j] = r[j * stride + k];
  }
  for (; i < n; i++)
    for (int k = 0; k < count; k++) columns[k * LANES + i] = rows[i * stride + k];
}

INLINE void columns_to_rows(const float* columns, int n, int count, float* rows, int64_t stride) {
  int i = 0;
  for (; i + 4 <= n; i += 4) {
    float* r = rows + i * stride;
    int k = 0;
    for (; k + 4 <= count; k += 4) {
      const float* c0 = columns + k * LANES + i;
      v4 a = load4(c0), b = load4(c0 + LANES), c = load4(c0 + 2 * LANES), d = load4(c0 + 3 * LANES);
      transpose4(a, b, c, d);
      store4(r + k, a);
      store4(r + stride + k, b);
      store4(r + 2 * stride + k, c);
      store4(r + 3 * stride + k, d);
    }
    for (; k < count; k++)
      for (int j = 0; j < 4; j++) r[j * stride + k] = columns[k * LANES + i + j];
  }
  for (; i < n; i++)
    for (int k = 0; k < count; k++) rows[i * stride + k] = columns[k * LANES + i];
}

}  // namespace SPLATEXP_ISA
