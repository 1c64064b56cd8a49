// EWA projection (Zwicker et al. 2001; 3DGS eq. 5): the maths and its notation are in kernels/README.md, "project".
#include "constants.h"
#include "ops.h"
#include "parallel.h"
#include "simd.h"

namespace SPLATEXP_ISA {
namespace {

struct Camera {
  float R[3][3], t[3], fx, fy, cx, cy, x_min, x_max, y_min, y_max, width, height;
  Camera(const float* viewmat, const float* K, int w, int h) {
    for (int i = 0; i < 3; i++) {
      for (int j = 0; j < 3; j++) R[i][j] = viewmat[4 * i + j];
      t[i] = viewmat[4 * i + 3];
    }
    fx = K[0], cx = K[2], fy = K[4], cy = K[5];
    width = (float)w, height = (float)h;
    float mx = FRUSTUM_MARGIN * 0.5f * width / fx, my = FRUSTUM_MARGIN * 0.5f * height / fy;
    x_min = -(cx / fx + mx), x_max = (width - cx) / fx + mx;
    y_min = -(cy / fy + my), y_max = (height - cy) / fy + my;
  }
};

// The part of the projection that forward and backward share, for LANES Gaussians and one camera.
struct Shared {
  vf p[3], s[3], q[4], inv_norm;   // mean, scale, unit quaternion, 1/|quaternion|
  vf Rq[3][3];                     // rotation of the Gaussian
  vf t[3], iz, rx, ry;             // camera space, 1/z, clamped x/z and y/z
  vm x_free, y_free;               // where the clamp is not active
  vf U[2][3], B[2][3], A[2][3];    // J W, J W R, J W R S
  vf c00, c01, c11, det0, det;     // covariance without eps2d; determinants without and with it

  INLINE void world(Shared& s_, const ProjectArgs& a, int64_t i, int n) {
    for (int k = 0; k < 3; k++) s_.p[k] = gather(a.means + 3 * i + k, 3, n);
    for (int k = 0; k < 3; k++) s_.s[k] = gather(a.scales + 3 * i + k, 3, n);
    for (int k = 0; k < 4; k++) s_.q[k] = gather(a.quats + 4 * i + k, 4, n);
    vf norm2 = s_.q[0] * s_.q[0] + s_.q[1] * s_.q[1] + s_.q[2] * s_.q[2] + s_.q[3] * s_.q[3];
    s_.inv_norm = set1(1.0f) / vsqrt(norm2);
    for (int k = 0; k < 4; k++) s_.q[k] = s_.q[k] * s_.inv_norm;
    vf w = s_.q[0], x = s_.q[1], y = s_.q[2], z = s_.q[3], one = set1(1.0f), two = set1(2.0f);
    s_.Rq[0][0] = one - two * (y * y + z * z), s_.Rq[0][1] = two * (x * y - w * z), s_.Rq[0][2] = two * (x * z + w * y);
    s_.Rq[1][0] = two * (x * y + w * z), s_.Rq[1][1] = one - two * (x * x + z * z), s_.Rq[1][2] = two * (y * z - w * x);
    s_.Rq[2][0] = two * (x * z - w * y), s_.Rq[2][1] = two * (y * z + w * x), s_.Rq[2][2] = one - two * (x * x + y * y);
  }

  INLINE void view(Shared& s_, const Camera& c, float eps2d) {
    for (int k = 0; k < 3; k++)
      s_.t[k] = fma(set1(c.R[k][0]), s_.p[0], fma(set1(c.R[k][1]), s_.p[1], fma(set1(c.R[k][2]), s_.p[2], set1(c.t[k]))));
    s_.iz = set1(1.0f) / s_.t[2];
    vf x = s_.t[0] * s_.iz, y = s_.t[1] * s_.iz;
    s_.rx = vmin(vmax(x, set1(c.x_min)), set1(c.x_max));
    s_.ry = vmin(vmax(y, set1(c.y_min)), set1(c.y_max));
    s_.x_free = both(ge(x, set1(c.x_min)), le(x, set1(c.x_max)));
    s_.y_free = both(ge(y, set1(c.y_min)), le(y, set1(c.y_max)));
    vf jx = set1(c.fx) * s_.iz, jy = set1(c.fy) * s_.iz;
    for (int k = 0; k < 3; k++) {
      s_.U[0][k] = jx * (set1(c.R[0][k]) - s_.rx * set1(c.R[2][k]));
      s_.U[1][k] = jy * (set1(c.R[1][k]) - s_.ry * set1(c.R[2][k]));
    }
    for (int i = 0; i < 2; i++)
      for (int j = 0; j < 3; j++) {
        s_.B[i][j] = fma(s_.U[i][0], s_.Rq[0][j], fma(s_.U[i][1], s_.Rq[1][j], s_.U[i][2] * s_.Rq[2][j]));
        s_.A[i][j] = s_.B[i][j] * s_.s[j];
      }
    vf (&A)[2][3] = s_.A;
    s_.c00 = A[0][0] * A[0][0] + A[0][1] * A[0][1] + A[0][2] * A[0][2];
    s_.c01 = A[0][0] * A[1][0] + A[0][1] * A[1][1] + A[0][2] * A[1][2];
    s_.c11 = A[1][0] * A[1][0] + A[1][1] * A[1][1] + A[1][2] * A[1][2];
    // det(A Aᵀ) as a sum of squares (Cauchy-Binet): no cancellation for needles
    vf m01 = A[0][0] * A[1][1] - A[0][1] * A[1][0], m02 = A[0][0] * A[1][2] - A[0][2] * A[1][0],
       m12 = A[0][1] * A[1][2] - A[0][2] * A[1][1];
    s_.det0 = m01 * m01 + m02 * m02 + m12 * m12;
    s_.det = s_.det0 + set1(eps2d) * (s_.c00 + s_.c11) + set1(eps2d * eps2d);
  }
};

INLINE vm finite(vf x) { return lt(vabs(x), set1(3e38f)); }

template <int K>
INLINE void scatter_rows(float* out, const vf (&v)[K], int n) {
  float lanes[K][LANES];
  for (int k = 0; k < K; k++) store(lanes[k], v[k]);
  for (int i = 0; i < n; i++)
    for (int k = 0; k < K; k++) out[K * i + k] = lanes[k][i];
}

}  // namespace

void project_forward(const ProjectArgs& a) {
  parallel_for(a.N, PROJECT_BLOCK, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += LANES) {
      int n = (int)(end - i < LANES ? end - i : LANES);
      Shared s;
      Shared::world(s, a, i, n);
      vf opacity = gather(a.opacities + i, 1, n);
      for (int64_t c = 0; c < a.C; c++) {
        Camera camera(a.viewmats + 16 * c, a.Ks + 9 * c, a.width, a.height);
        Shared::view(s, camera, a.eps2d);
        vf c00 = s.c00 + set1(a.eps2d), c11 = s.c11 + set1(a.eps2d), inv = set1(1.0f) / s.det;
        vf compensation = set1(1.0f);
        if (a.prefilter) compensation = vsqrt(vmax(s.det0 * inv, set1(COMPENSATION_MIN2)));
        vf visible_opacity = opacity * compensation;
        vf u = fma(set1(camera.fx), s.t[0] * s.iz, set1(camera.cx)), v = fma(set1(camera.fy), s.t[1] * s.iz, set1(camera.cy));

        // the radius per axis at which opacity * exp(-d²/2) falls to ALPHA_MIN
        vf reach = set1(2.0f * LN2) * log2v(visible_opacity * set1(1.0f / ALPHA_MIN));
        vf r_x = vsqrt(reach * c00), r_y = vsqrt(reach * c11);

        vm ok = both(gt(s.t[2], set1(a.near_plane)), lt(s.t[2], set1(a.far_plane)));
        ok = both(ok, both(gt(visible_opacity, set1(ALPHA_MIN)), gt(s.det, set1(0.0f))));
        ok = both(ok, both(gt(u + r_x, set1(0.0f)), lt(u - r_x, set1(camera.width))));
        ok = both(ok, both(gt(v + r_y, set1(0.0f)), lt(v - r_y, set1(camera.height))));
        ok = both(ok, both(both(finite(u), finite(v)), both(finite(r_x), finite(r_y))));
        ok = both(ok, both(both(finite(visible_opacity), finite(s.det)), both(finite(inv), finite(s.c01))));
        if (a.cull_radius_px > 0) ok = both(ok, gt(vmax(r_x, r_y), set1(a.cull_radius_px)));

        int64_t o = c * a.N + i;
        scatter_rows<2>(a.means2d + 2 * o, {zero_unless(ok, u), zero_unless(ok, v)}, n);
        scatter_rows<3>(a.conics + 3 * o,
                        {zero_unless(ok, c11 * inv), zero_unless(ok, set1(0.0f) - s.c01 * inv), zero_unless(ok, c00 * inv)}, n);
        scatter_rows<2>(a.radii + 2 * o, {zero_unless(ok, r_x), zero_unless(ok, r_y)}, n);
        scatter_rows<1>(a.depths + o, {zero_unless(ok, s.t[2])}, n);
        scatter_rows<1>(a.compensations + o, {zero_unless(ok, compensation)}, n);
      }
    }
  });
}

void project_backward(const ProjectArgs& a) {
  parallel_for(a.N, PROJECT_BLOCK, [&](int64_t begin, int64_t end) {
    float* partial = a.v_viewmats_partial ? a.v_viewmats_partial + begin / PROJECT_BLOCK * a.C * 12 : nullptr;
    if (partial) std::memset(partial, 0, sizeof(float) * 12 * a.C);
    for (int64_t i = begin; i < end; i += LANES) {
      int n = (int)(end - i < LANES ? end - i : LANES);
      const vf zero = set1(0.0f), two = set1(2.0f);
      Shared s;
      Shared::world(s, a, i, n);
      vf seen = zero, v_p[3] = {zero, zero, zero}, v_s[3] = {zero, zero, zero}, v_R[3][3];
      for (auto& row : v_R) row[0] = row[1] = row[2] = zero;
      for (int64_t c = 0; c < a.C; c++) {
        int64_t o = c * a.N + i;
        vm ok = both(gt(gather(a.radii + 2 * o, 2, n), zero), first_lanes(n));
        if (!any(ok)) continue;
        seen = select(ok, set1(1.0f), seen);
        Camera camera(a.viewmats + 16 * c, a.Ks + 9 * c, a.width, a.height);
        Shared::view(s, camera, a.eps2d);
        vf inv = set1(1.0f) / s.det;
        vf ka = (s.c11 + set1(a.eps2d)) * inv, kb = zero - s.c01 * inv, kc = (s.c00 + set1(a.eps2d)) * inv;  // conic
        // v_cov = -K V K with V = [[va, vb/2], [vb/2, vc]]
        vf va = gather(a.v_conics + 3 * o, 3, n), vb = gather(a.v_conics + 3 * o + 1, 3, n) * set1(0.5f),
           vc = gather(a.v_conics + 3 * o + 2, 3, n);
        vf m00 = va * ka + vb * kb, m01 = va * kb + vb * kc, m10 = vb * ka + vc * kb, m11 = vb * kb + vc * kc;
        vf v00 = zero - (ka * m00 + kb * m10), v01 = zero - two * (ka * m01 + kb * m11), v11 = zero - (kb * m01 + kc * m11);
        if (a.prefilter) {
          vf ratio = s.det0 * inv;
          vf rho = vsqrt(vmax(ratio, set1(COMPENSATION_MIN2)));
          vf v_ratio = gather(a.v_compensations + o, 1, n) * set1(0.5f) / rho * inv;
          v_ratio = zero_unless(gt(ratio, set1(COMPENSATION_MIN2)), v_ratio);
          v00 = v00 + v_ratio * (s.c11 - ratio * (s.c11 + set1(a.eps2d)));
          v11 = v11 + v_ratio * (s.c00 - ratio * (s.c00 + set1(a.eps2d)));
          v01 = v01 - two * v_ratio * s.c01 * (set1(1.0f) - ratio);
        }
        vf v_U[2][3];
        v_U[0][0] = v_U[0][1] = v_U[0][2] = v_U[1][0] = v_U[1][1] = v_U[1][2] = zero;
        for (int j = 0; j < 3; j++) {
          vf v_A0 = two * v00 * s.A[0][j] + v01 * s.A[1][j], v_A1 = two * v11 * s.A[1][j] + v01 * s.A[0][j];
          v_s[j] = v_s[j] + zero_unless(ok, v_A0 * s.B[0][j] + v_A1 * s.B[1][j]);
          vf v_B0 = v_A0 * s.s[j], v_B1 = v_A1 * s.s[j];
          for (int k = 0; k < 3; k++) {
            v_U[0][k] = fma(v_B0, s.Rq[k][j], v_U[0][k]);
            v_U[1][k] = fma(v_B1, s.Rq[k][j], v_U[1][k]);
            v_R[k][j] = v_R[k][j] + zero_unless(ok, s.U[0][k] * v_B0 + s.U[1][k] * v_B1);
          }
        }
        vf jx = set1(camera.fx) * s.iz, jy = set1(camera.fy) * s.iz;
        vf w2_x = zero, w2_y = zero, u_x = zero, u_y = zero;
        for (int k = 0; k < 3; k++) {
          w2_x = fma(set1(camera.R[2][k]), v_U[0][k], w2_x), w2_y = fma(set1(camera.R[2][k]), v_U[1][k], w2_y);
          u_x = fma(s.U[0][k], v_U[0][k], u_x), u_y = fma(s.U[1][k], v_U[1][k], u_y);
        }
        vf v_rx = zero_unless(s.x_free, zero - jx * w2_x), v_ry = zero_unless(s.y_free, zero - jy * w2_y);
        vf v_u = gather(a.v_means2d + 2 * o, 2, n), v_v = gather(a.v_means2d + 2 * o + 1, 2, n);
        vf x = s.t[0] * s.iz, y = s.t[1] * s.iz;
        vf along_x = set1(camera.fx) * v_u + v_rx, along_y = set1(camera.fy) * v_v + v_ry;  // gradients of x/z and y/z
        vf v_t[3];
        v_t[0] = zero_unless(ok, along_x * s.iz);
        v_t[1] = zero_unless(ok, along_y * s.iz);
        v_t[2] = zero_unless(ok, gather(a.v_depths + o, 1, n) - s.iz * (x * along_x + y * along_y + u_x + u_y));
        for (int k = 0; k < 3; k++)
          for (int j = 0; j < 3; j++) v_p[k] = fma(set1(camera.R[j][k]), v_t[j], v_p[k]);
        if (partial) {
          vf sums[16];
          for (int k = 0; k < 3; k++) {
            vf v_w0 = jx * v_U[0][k], v_w1 = jy * v_U[1][k];
            vf v_w2 = zero - (s.rx * v_w0 + s.ry * v_w1);
            vf rows[3] = {v_w0, v_w1, v_w2};
            for (int j = 0; j < 3; j++) sums[4 * j + k] = zero_unless(ok, rows[j] + v_t[j] * s.p[k]);
            sums[4 * k + 3] = v_t[k];
            sums[12 + k] = zero;
          }
          sums[15] = zero;
          float out[16];
          reduce16(sums, out);
          for (int k = 0; k < 12; k++) partial[12 * c + k] += out[k];
        }
      }
      vf w = s.q[0], x = s.q[1], y = s.q[2], z = s.q[3];
      auto& v = v_R;
      vf v_q[4] = {
          two * (x * (v[2][1] - v[1][2]) + y * (v[0][2] - v[2][0]) + z * (v[1][0] - v[0][1])),
          two * (zero - two * x * (v[1][1] + v[2][2]) + y * (v[0][1] + v[1][0]) + z * (v[0][2] + v[2][0]) +
                 w * (v[2][1] - v[1][2])),
          two * (x * (v[0][1] + v[1][0]) - two * y * (v[0][0] + v[2][2]) + z * (v[1][2] + v[2][1]) +
                 w * (v[0][2] - v[2][0])),
          two * (x * (v[0][2] + v[2][0]) + y * (v[1][2] + v[2][1]) - two * z * (v[0][0] + v[1][1]) +
                 w * (v[1][0] - v[0][1]))};
      vf dot = v_q[0] * w + v_q[1] * x + v_q[2] * y + v_q[3] * z;
      // rows that no camera sees may hold anything, a zero quaternion included: their gradient is zero
      for (int k = 0; k < 4; k++) v_q[k] = zero_unless(gt(seen, zero), (v_q[k] - s.q[k] * dot) * s.inv_norm);
      scatter_rows<3>(a.v_means + 3 * i, v_p, n);
      scatter_rows<3>(a.v_scales + 3 * i, v_s, n);
      scatter_rows<4>(a.v_quats + 4 * i, v_q, n);
    }
  });
}

}  // namespace SPLATEXP_ISA
