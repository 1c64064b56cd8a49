// What every instruction-set build of the kernels offers: one struct of raw pointers per call, one table of functions.
// Arrays are C-contiguous float32 unless their type says otherwise; shapes are in the comments; `nullptr` = not wanted.
#pragma once
#include <cstdint>

struct ProjectArgs {
  int64_t C, N;
  const float *means, *quats, *scales, *opacities;  // [N,3] [N,4] [N,3] [N]
  const float *viewmats, *Ks;                       // [C,4,4] [C,3,3]
  int width, height;
  float eps2d, near_plane, far_plane, cull_radius_px;
  int prefilter;
  float *means2d, *conics, *depths, *radii, *compensations;  // [C,N,2] [C,N,3] [C,N] [C,N,2] [C,N]
  // backward
  const float *v_means2d, *v_conics, *v_depths, *v_compensations;
  float *v_means, *v_quats, *v_scales;  // like the inputs
  float* v_viewmats_partial;            // [blocks, C, 12]: rows of [R|t], one sum per block of PROJECT_BLOCK Gaussians
};
constexpr int64_t PROJECT_BLOCK = 1024;

struct ShArgs {
  int64_t C, N;
  int degree;
  int64_t K;                                    // stored coefficients per Gaussian, sh0 included
  const float *means, *centers, *sh0, *shN;     // [N,3] [C,3] [N,1,3] [N,K-1,3]
  const uint8_t* visible;                       // [C,N] or nullptr
  float* colors;                                // [C,N,3]
  const float* v_colors;
  float *v_means, *v_sh0, *v_shN;               // summed over cameras
  float* v_centers_partial;                     // [blocks, C, 3]
};
constexpr int64_t SH_BLOCK = 1024;

struct TilesArgs {
  int64_t C, N;
  const float *means2d, *radii, *depths;
  int width, height, tile_size, tiles_x, tiles_y;
  int64_t per_tile_max;
  int32_t* order;   // [V] out (caller gives C*N)
  int64_t* first;   // [V+1] out: prefix sum of the pairs of each ordered Gaussian
  int16_t* rects;   // [V,4] out: tile x0, x1, y0, y1 (half open)
  int64_t V, P;     // out of tiles_sort, in of tiles_fill
  int32_t *ids, *slots;   // [P]: rank into order, and the pair's place in the order of emission
  int64_t *starts, *ends; // [C * tiles_y * tiles_x]
};

struct BlendArgs {
  int64_t C, N, V, P;
  int D;  // channels of colors and image
  const float *means2d, *conics, *colors, *opacities, *radii;
  const int32_t *order, *ids, *slots;
  const int64_t *first, *starts, *ends;
  int width, height, tile_size, tiles_x, tiles_y;
  const float* background;  // [C,D] or nullptr
  int max_splats_per_pixel;
  float* records;           // [V, blend_record_floats(D)] packed by blend_pack
  int64_t* visited;         // [tiles] out of forward: one past the last pair that was looked at
  float *image, *alpha;     // [C,H,W,D] [C,H,W]
  // backward
  const float *v_image, *v_alpha;
  float* pairs;             // [P, 16] sums of one pair
  float *v_means2d, *v_conics, *v_colors, *v_opacities, *v_abs;  // v_abs [C,N,2] or nullptr
  // attribution
  const float* maps;        // [C,H,W,M]
  int M;
  float threshold;
  float *weight_sum, *weight_max, *weighted;  // [C,N] [C,N] [C,N,M]
  int32_t *hits, *pixels;                     // [C,N,M] [C,N]
  float *covered, *distance;                  // [C,N,M] [C,N], these and what follows: nullptr = not wanted
  int32_t* dominant;                          // [C,N]
  const float* target;                        // [C,H,W,3], for the last three, with colors and image
  float *removal, *removal_loss, *sensitivity;  // [C,N]
};

enum class Blend2dMode { SUM, NORMALIZED, ALPHA };

struct Blend2dArgs : BlendArgs {  // opacities: the weights; alpha and v_alpha: the total and its gradient
  Blend2dMode mode;
  int top_k;
  float* gates;  // [C,H,W,2] where top_k > 0: exponent of the last Gaussian that is taken, how many such are
};
constexpr int MAX_TOP = 32;

constexpr int PAIR_FLOATS = 16;
constexpr int MAX_CHANNELS = 8;
constexpr int MAX_MAPS = 6, MAX_MAPS_RICH = 2;  // of one pass; rich: with any field that need not be wanted

struct SsimArgs {
  int64_t C;
  int height, width, D;
  const float *image, *target;  // [C,H,W,D]
  float* map;                   // [C,H,W,D]
  float* partials;              // [3,C,H,W,D]: dmap/d(mu), dmap/d(E[x^2]), dmap/d(E[xy]); nullptr if no gradient is wanted
  const float* v_map;
  float* v_image;
};

struct AdamArgs {
  int64_t rows, columns;
  float* param;
  const float* grad;
  float *exp_avg, *exp_avg_sq;
  const uint8_t* visible;  // [rows] or nullptr
  float step_size, rate1, rate2, bias2_sqrt, eps;  // rate = 1 - beta, rounded once
};

struct NoiseArgs {
  int64_t N;
  float* means;                                     // [N,3]
  const float *quats, *scales, *opacities;          // [N,4] [N,3] [N]
  const int64_t* uid;                               // [N]
  float rate, sharpness, threshold;
  uint64_t seed, step;
};

#define SPLATEXP_OPS(X)                                                                                             \
  X(project_forward, const ProjectArgs&)                                                                            \
  X(project_backward, const ProjectArgs&)                                                                           \
  X(sh_forward, const ShArgs&)                                                                                      \
  X(sh_backward, const ShArgs&)                                                                                     \
  X(tiles_sort, TilesArgs&)                                                                                         \
  X(tiles_fill, const TilesArgs&)                                                                                   \
  X(blend_pack, const BlendArgs&)                                                                                   \
  X(blend_forward, const BlendArgs&)                                                                                \
  X(blend_backward, const BlendArgs&)                                                                               \
  X(attribute, const BlendArgs&)                                                                                    \
  X(blend2d_forward, const Blend2dArgs&)                                                                            \
  X(blend2d_backward, const Blend2dArgs&)                                                                           \
  X(ssim_forward, const SsimArgs&)                                                                                  \
  X(ssim_backward, const SsimArgs&)                                                                                 \
  X(adam_step, const AdamArgs&)                                                                                     \
  X(noise, const NoiseArgs&)

struct Ops {
  const char* name;
  int lanes;
#define X(name, args) void (*name)(args);
  SPLATEXP_OPS(X)
#undef X
  double (*fma_gflops)(int64_t repeats);  // runs that many rounds, returns the operations done
};

// Floats of one packed Gaussian: a head that blend.cpp names, then the channels; with up to 4 of them one cache line.
constexpr int BLEND_RECORD_HEAD = 12;
constexpr int blend_record_floats(int D) { return (BLEND_RECORD_HEAD + D + 3) / 4 * 4; }

#if defined(SPLATEXP_ISA)
namespace SPLATEXP_ISA {
#define X(name, args) void name(args);
SPLATEXP_OPS(X)
#undef X
double fma_gflops(int64_t repeats);
}
#endif
