// SSIM (Wang et al. 2004) with an 11x11 Gaussian window, sigma 1.5, zeros outside the image. The window is separable:
// each strip of the image is filtered along rows into a ring of 11 filtered rows, then along columns, in one pass.
// Channels are interleaved, so a step of one pixel is a step of D floats and every loop runs over plain vectors.
#include "ops.h"
#include "parallel.h"
#include "simd.h"

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

namespace SPLATEXP_ISA {
namespace {

constexpr int RADIUS = 5, TAPS = 2 * RADIUS + 1;
constexpr int STRIP = 512;  // floats of a row that are filtered together: the ring stays in the second-level cache
constexpr int RING_ROW = STRIP + 16;
constexpr float C1 = 0.01f * 0.01f, C2 = 0.03f * 0.03f;
// exp(-k²/4.5) normalised over the 11 taps, from the centre outwards
constexpr float WINDOW[RADIUS + 1] = {0.266011725f, 0.213005538f, 0.10936069f, 0.0360007721f, 0.00759875814f, 0.00102838008f};

// Filters Q quantities over the image. `read(row, x0, n, D, out)` writes Q padded rows of n + 2*RADIUS*D floats that start
// RADIUS pixels left of x0 (one more row of that size follows them, to work in); `emit(row, x, n, values)` takes Q filtered vectors at float offset x of a row.
template <int Q, class Read, class Emit>
void filter(int64_t images, int height, int row_floats, int D, Read&& read, Emit&& emit) {
  const int bands_wanted = pool_threads() * 2;
  int band = (height + bands_wanted - 1) / bands_wanted;
  if (band < 4 * TAPS) band = 4 * TAPS;
  const int bands = (height + band - 1) / band, strips = (row_floats + STRIP - 1) / STRIP;
  std::atomic<bool> starved{false};
  parallel_for(images * bands * strips, 1, [&](int64_t begin, int64_t end) {
    // rows start at cache lines, so that filtering along columns never loads across two
    const int pad = RADIUS * D, padded = (STRIP + 2 * pad + LANES + 15) / 16 * 16;
    const size_t floats = (size_t)(Q + 1) * padded + Q * TAPS * RING_ROW;
    const std::unique_ptr<float, void (*)(void*)> unaligned((float*)std::calloc(floats + 16, sizeof(float)), std::free);
    if (!unaligned) return void(starved = true);  // not even new (nothrow): it throws inside
    float* memory = unaligned.get() + (64 - (uintptr_t)unaligned.get() % 64) % 64 / sizeof(float);
    float* ring = memory + (size_t)(Q + 1) * padded;  // [TAPS][Q][STRIP + LANES]
    for (int64_t job = begin; job < end; job++) {
      const int64_t image = job / (bands * strips);
      const int y0 = (int)(job / strips % bands) * band, y1 = y0 + band < height ? y0 + band : height;
      const int x0 = (int)(job % strips) * STRIP, n = row_floats - x0 < STRIP ? row_floats - x0 : STRIP;
      for (int y = y0 - RADIUS; y < y1 + RADIUS; y++) {
        float* line = ring + (size_t)((y + TAPS) % TAPS) * Q * RING_ROW;
        if (y < 0 || y >= height) {
          std::memset(line, 0, sizeof(float) * Q * RING_ROW);
        } else {
          read(image, y, x0, n, memory, padded);
          for (int q = 0; q < Q; q++) {
            const float* in = memory + (size_t)q * padded + pad;
            for (int x = 0; x < n; x += LANES) {
              vf sum = set1(WINDOW[0]) * load(in + x);
              for (int k = 1; k <= RADIUS; k++) sum = fma(set1(WINDOW[k]), load(in + x - k * D) + load(in + x + k * D), sum);
              store(line + (size_t)q * RING_ROW + x, sum);
            }
          }
        }
        const int out = y - RADIUS;  // all its rows are in the ring now
        if (out < y0) continue;
        const float* rows[TAPS];
        for (int k = 0; k < TAPS; k++) rows[k] = ring + (size_t)((out + k - RADIUS + TAPS) % TAPS) * Q * RING_ROW;
        for (int x = 0; x < n; x += LANES) {
          vf values[Q];
          for (int q = 0; q < Q; q++) {
            const size_t o = (size_t)q * RING_ROW + x;
            vf sum = set1(WINDOW[0]) * load(rows[RADIUS] + o);
            for (int k = 1; k <= RADIUS; k++)
              sum = fma(set1(WINDOW[k]), load(rows[RADIUS - k] + o) + load(rows[RADIUS + k] + o), sum);
            values[q] = sum;
          }
          emit(image, out, x0 + x, n - x < LANES ? n - x : LANES, values);
        }
      }
    }
  });
  if (starved) throw std::bad_alloc();
}

// Copies n + 2 pad floats of a row that start at x0 - pad, zeros outside the row and in the tail of the buffer.
INLINE void padded_row(const float* row, int row_floats, int x0, int n, int pad, float* out) {
  const int begin = x0 - pad, end = x0 + n + pad, lo = begin < 0 ? 0 : begin, hi = end > row_floats ? row_floats : end;
  std::memset(out, 0, sizeof(float) * (lo - begin));
  std::memcpy(out + (lo - begin), row + lo, sizeof(float) * (hi - lo));
  std::memset(out + (hi - begin), 0, sizeof(float) * (end - hi));
}

INLINE vf load_some(const float* p, int n) {
  if (n == LANES) return load(p);
  float lanes[LANES] = {0};
  std::memcpy(lanes, p, sizeof(float) * n);
  return load(lanes);
}
INLINE void store_some(float* p, vf v, int n) {
  if (n == LANES) return store(p, v);
  float lanes[LANES];
  store(lanes, v);
  std::memcpy(p, lanes, sizeof(float) * n);
}

}  // namespace

void ssim_forward(const SsimArgs& a) {
  const int row_floats = a.width * a.D, pad = RADIUS * a.D;
  const int64_t size = a.C * a.height * row_floats;
  filter<5>(
      a.C, a.height, row_floats, a.D,
      [&](int64_t image, int y, int x0, int n, float* out, int padded) {
        const int64_t o = (image * a.height + y) * row_floats;
        padded_row(a.image + o, row_floats, x0, n, pad, out);
        padded_row(a.target + o, row_floats, x0, n, pad, out + padded);
        for (int i = 0; i < n + 2 * pad; i += LANES) {
          vf x = load(out + i), y_ = load(out + padded + i);
          store(out + 2 * padded + i, x * x);
          store(out + 3 * padded + i, y_ * y_);
          store(out + 4 * padded + i, x * y_);
        }
      },
      [&](int64_t image, int y, int x, int n, const vf* f) {
        const int64_t o = (image * a.height + y) * row_floats + x;
        vf mx = f[0], my = f[1], two = set1(2.0f);
        vf sx = f[2] - mx * mx, sy = f[3] - my * my, sxy = f[4] - mx * my;
        vf luminance = mx * mx + my * my + set1(C1), contrast = sx + sy + set1(C2);
        vf c = two * mx * my + set1(C1), d = two * sxy + set1(C2);
        vf inv = set1(1.0f) / (luminance * contrast), map = c * d * inv;
        store_some(a.map + o, map, n);
        if (!a.partials) return;
        vf v_sx = set1(0.0f) - map / contrast, v_sxy = two * c * inv;
        store_some(a.partials + o, two * (my * d * inv - map * mx / luminance - v_sx * mx) - v_sxy * my, n);
        store_some(a.partials + size + o, v_sx, n);
        store_some(a.partials + 2 * size + o, v_sxy, n);
      });
}

void ssim_backward(const SsimArgs& a) {
  const int row_floats = a.width * a.D, pad = RADIUS * a.D;
  const int64_t size = a.C * a.height * row_floats;
  filter<3>(
      a.C, a.height, row_floats, a.D,
      [&](int64_t image, int y, int x0, int n, float* out, int padded) {
        const int64_t o = (image * a.height + y) * row_floats;
        float* v = out + 3 * padded;
        padded_row(a.v_map + o, row_floats, x0, n, pad, v);
        for (int q = 0; q < 3; q++) {
          padded_row(a.partials + q * size + o, row_floats, x0, n, pad, out + q * padded);
          for (int i = 0; i < n + 2 * pad; i += LANES) store(out + q * padded + i, load(out + q * padded + i) * load(v + i));
        }
      },
      [&](int64_t image, int y, int x, int n, const vf* f) {
        const int64_t o = (image * a.height + y) * row_floats + x;
        vf v = fma(set1(2.0f) * load_some(a.image + o, n), f[1], fma(load_some(a.target + o, n), f[2], f[0]));
        store_some(a.v_image + o, v, n);
      });
}

}  // namespace SPLATEXP_ISA
