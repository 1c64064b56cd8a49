// Python's door to the kernels: arrays in, the table of the chosen instruction set behind. Shapes were checked by the
// caller (splatexp_kernels/<op>); here only type, contiguity and device are, without ever copying.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "constants.h"
#include "ops.h"
#include "parallel.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace nb = nanobind;
using namespace nb::literals;

#if defined(__x86_64__)
namespace avx512 { extern const Ops table; }
namespace avx2 { extern const Ops table; }
#endif
namespace portable { extern const Ops table; }
void bind_entropy(nb::module_& m);  // entropy.cpp

namespace {

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
using Floats = Array<float>;
using Input = Array<const float>;
template <class T>
T* pointer(const std::optional<Array<T>>& a) { return a ? a->data() : nullptr; }

std::vector<const Ops*> available() {
  std::vector<const Ops*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    tables.push_back(&avx512::table);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tables.push_back(&avx2::table);
#endif
  tables.push_back(&portable::table);
  return tables;
}

const Ops* ops = available().front();

void set_isa(const std::string& name) {
  for (const Ops* table : available())
    if (name == table->name) {
      ops = table;
      return;
    }
  throw std::invalid_argument("isa: '" + name + "' is not available on this processor");
}

template <class F>
double seconds(F&& f) {
  auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Threads that are waited for also where one of them could not be started.
struct Joined {
  std::vector<std::thread> threads;
  ~Joined() {
    for (auto& t : threads) t.join();
  }
};

// The best of several runs of `work` on every one of `threads` threads at once, in units per second.
template <class F>
double best_rate(int threads, F&& work) {
  double best = 0;
  for (int run = 0; run < 5; run++) {
    std::vector<double> done(threads);
    double s = seconds([&] {
      Joined others;
      for (int i = 1; i < threads; i++) others.threads.emplace_back([&, i] { done[i] = work(i); });
      done[0] = work(0);
    });
    double sum = 0;
    for (double d : done) sum += d;
    best = std::max(best, sum / s);
  }
  return best;
}

double measure_fma_gflops(int threads) {
  nb::gil_scoped_release release;
  if (threads < 1) threads = pool_threads();
  return best_rate(threads, [](int) { return ops->fma_gflops(4'000'000); }) * 1e-9;
}

// Read-modify-write over a buffer far larger than the caches: bytes read plus bytes written a second.
double measure_bandwidth_gbs(int threads) {
  nb::gil_scoped_release release;
  if (threads < 1) threads = pool_threads();
  const size_t n = size_t(48) << 20;
  std::vector<std::vector<float>> buffers;
  for (int i = 0; i < threads; i++) buffers.emplace_back(n / threads, 1.0f);
  return best_rate(threads, [&](int i) {
    for (float& x : buffers[i]) x += 1.0f;
    return 2.0 * sizeof(float) * (double)buffers[i].size();
  }) * 1e-9;
}

// For the tests of the pool: of so many chunks the first that is not the caller's throws, or the caller's where it has no
// helpers. The caller's own wait for it, ten seconds at most.
void fail_in_a_chunk(int64_t chunks) {
  struct Call {
    std::thread::id caller = std::this_thread::get_id();
    bool alone = pool_threads() == 1;
    std::atomic<bool> failed{false};
  } call;
  pool_run(chunks, 1, [](void* context, int64_t, int64_t) {
    Call& c = *static_cast<Call*>(context);
    if (c.alone || std::this_thread::get_id() != c.caller) {
      c.failed = true;
      throw std::bad_alloc();
    }
    for (int i = 0; i < 10000 && !c.failed; i++) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }, &call);
}

}  // namespace

NB_MODULE(_cpu, m) {
  nb::set_leak_warnings(false);  // at exit Python may still hold arrays, which is nobody's fault
#if defined(__GLIBC__)
  // A training step allocates and frees the same large buffers again and again; handing them back to the system each
  // time would cost a page fault per 4 kB.
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
#endif
  m.def("isa", [] { return std::string(ops->name); });
  m.def("set_isa", &set_isa, "name"_a);
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Ops* table : available()) names.push_back(table->name);
    return names;
  });
  m.def("set_num_threads", [](int n) {
    if (n < 0) throw std::invalid_argument("threads: expected 0 (all) or more, got " + std::to_string(n));
    nb::gil_scoped_release release;
    pool_set_threads(n);
  }, "threads"_a);
  m.def("get_num_threads", &pool_threads);
  m.def("fail_in_a_chunk", &fail_in_a_chunk, "chunks"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("measure_fma_gflops", &measure_fma_gflops, "threads"_a);
  m.def("measure_bandwidth_gbs", &measure_bandwidth_gbs, "threads"_a);
  m.attr("PROJECT_BLOCK") = PROJECT_BLOCK;
  m.attr("SH_BLOCK") = SH_BLOCK;
  m.attr("PAIR_FLOATS") = PAIR_FLOATS;
  m.attr("MAX_CHANNELS") = MAX_CHANNELS;
  m.attr("MAX_MAPS") = MAX_MAPS;
  m.attr("MAX_MAPS_RICH") = MAX_MAPS_RICH;
  m.attr("MAX_TOP") = MAX_TOP;
  m.def("record_floats", &blend_record_floats, "channels"_a);

  m.def("project_forward", [](Input means, Input quats, Input scales, Input opacities, Input viewmats, Input Ks, int width,
                              int height, float eps2d, float near_plane, float far_plane, float cull_radius_px, bool prefilter,
                              Floats means2d, Floats conics, Floats depths, Floats radii, Floats compensations) {
    ProjectArgs a{};
    a.C = (int64_t)viewmats.shape(0), a.N = (int64_t)means.shape(0);
    a.means = means.data(), a.quats = quats.data(), a.scales = scales.data(), a.opacities = opacities.data();
    a.viewmats = viewmats.data(), a.Ks = Ks.data(), a.width = width, a.height = height;
    a.eps2d = eps2d, a.near_plane = near_plane, a.far_plane = far_plane;
    a.cull_radius_px = cull_radius_px, a.prefilter = prefilter;
    a.means2d = means2d.data(), a.conics = conics.data(), a.depths = depths.data(), a.radii = radii.data();
    a.compensations = compensations.data();
    nb::gil_scoped_release release;
    ops->project_forward(a);
  });
  m.def("project_backward", [](Input means, Input quats, Input scales, Input viewmats, Input Ks, int width, int height,
                               float eps2d, bool prefilter, Input radii, Input v_means2d, Input v_conics, Input v_depths,
                               Input v_compensations, Floats v_means, Floats v_quats, Floats v_scales,
                               std::optional<Floats> v_viewmats_partial) {
    ProjectArgs a{};
    a.C = (int64_t)viewmats.shape(0), a.N = (int64_t)means.shape(0);
    a.means = means.data(), a.quats = quats.data(), a.scales = scales.data();
    a.viewmats = viewmats.data(), a.Ks = Ks.data(), a.width = width, a.height = height;
    a.eps2d = eps2d, a.prefilter = prefilter, a.radii = const_cast<float*>(radii.data());
    a.v_means2d = v_means2d.data(), a.v_conics = v_conics.data(), a.v_depths = v_depths.data();
    a.v_compensations = v_compensations.data();
    a.v_means = v_means.data(), a.v_quats = v_quats.data(), a.v_scales = v_scales.data();
    a.v_viewmats_partial = pointer(v_viewmats_partial);
    nb::gil_scoped_release release;
    ops->project_backward(a);
  });

  m.def("sh_forward", [](int degree, Input means, Input centers, Input sh0, Input shN,
                         std::optional<Array<const uint8_t>> visible, Floats colors) {
    ShArgs a{};
    a.C = (int64_t)centers.shape(0), a.N = (int64_t)means.shape(0), a.degree = degree, a.K = (int64_t)shN.shape(1) + 1;
    a.means = means.data(), a.centers = centers.data(), a.sh0 = sh0.data(), a.shN = shN.data();
    a.visible = pointer(visible), a.colors = colors.data();
    nb::gil_scoped_release release;
    ops->sh_forward(a);
  });
  m.def("sh_backward", [](int degree, Input means, Input centers, Input shN, std::optional<Array<const uint8_t>> visible,
                          Input colors, Input v_colors, Floats v_means, Floats v_sh0, std::optional<Floats> v_shN,
                          std::optional<Floats> v_centers_partial) {
    ShArgs a{};
    a.C = (int64_t)centers.shape(0), a.N = (int64_t)means.shape(0), a.degree = degree, a.K = (int64_t)shN.shape(1) + 1;
    a.means = means.data(), a.centers = centers.data(), a.shN = shN.data(), a.visible = pointer(visible);
    a.colors = const_cast<float*>(colors.data()), a.v_colors = v_colors.data();
    a.v_means = v_means.data(), a.v_sh0 = v_sh0.data(), a.v_shN = pointer(v_shN);
    a.v_centers_partial = pointer(v_centers_partial);
    nb::gil_scoped_release release;
    ops->sh_backward(a);
  });

  m.def("tiles_sort", [](Input means2d, Input radii, Input depths, int width, int height, int tile_size,
                         Array<int32_t> order, Array<int64_t> first, Array<int16_t> rects) {
    TilesArgs a{};
    a.C = (int64_t)depths.shape(0), a.N = (int64_t)depths.shape(1);
    a.means2d = means2d.data(), a.radii = radii.data(), a.depths = depths.data(), a.width = width, a.height = height;
    a.tile_size = tile_size, a.tiles_x = (width + tile_size - 1) / tile_size, a.tiles_y = (height + tile_size - 1) / tile_size;
    a.order = order.data(), a.first = first.data(), a.rects = rects.data();
    {
      nb::gil_scoped_release release;
      ops->tiles_sort(a);
    }
    return nb::make_tuple(a.V, a.P);
  });
  m.def("tiles_fill", [](int64_t images, int64_t gaussians, int64_t visible, int tiles_x, int tiles_y, int64_t per_tile_max,
                         Array<const int32_t> order, Array<const int64_t> first, Array<const int16_t> rects,
                         Array<int32_t> ids, Array<int32_t> slots, Array<int64_t> starts, Array<int64_t> ends) {
    TilesArgs a{};
    a.C = images, a.N = gaussians, a.V = visible, a.tiles_x = tiles_x, a.tiles_y = tiles_y, a.per_tile_max = per_tile_max;
    a.order = const_cast<int32_t*>(order.data()), a.first = const_cast<int64_t*>(first.data());
    a.rects = const_cast<int16_t*>(rects.data());
    a.ids = ids.data(), a.slots = slots.data(), a.starts = starts.data(), a.ends = ends.data();
    nb::gil_scoped_release release;
    ops->tiles_fill(a);
  });

  // What the blending calls share: the tile lists, which it keeps alive, and the picture's geometry.
  struct Lists {
    BlendArgs a{};
    Array<const int32_t> order, ids, slots;
    Array<const int64_t> first, starts, ends;
  };
  nb::class_<Lists>(m, "Lists")
      .def("__init__", [](Lists* self, int64_t images, int64_t gaussians, int64_t visible, int64_t pairs, int width, int height,
                          int tile_size, Array<const int32_t> order, Array<const int32_t> ids,
                          Array<const int32_t> slots, Array<const int64_t> first, Array<const int64_t> starts,
                          Array<const int64_t> ends) {
        new (self) Lists{{}, order, ids, slots, first, starts, ends};
        BlendArgs& a = self->a;
        a.C = images, a.N = gaussians, a.V = visible, a.P = pairs, a.width = width, a.height = height;
        a.tile_size = tile_size, a.tiles_x = (width + tile_size - 1) / tile_size, a.tiles_y = (height + tile_size - 1) / tile_size;
        a.order = order.data(), a.ids = ids.data(), a.slots = slots.data(), a.first = first.data();
        a.starts = starts.data(), a.ends = ends.data();
      })
      .def_prop_ro("visible", [](const Lists& self) { return self.a.V; })
      .def_prop_ro("tiles", [](const Lists& self) { return self.a.C * self.a.tiles_x * self.a.tiles_y; })
      .def_prop_ro("pairs", [](const Lists& self) { return self.a.P; });
  m.def("blend_forward", [](const Lists& lists, Input means2d, Input conics, Input colors, Input opacities, Input radii,
                            std::optional<Input> background, int max_splats_per_pixel, Floats records,
                            Array<int64_t> visited, Floats image, Floats alpha) {
    BlendArgs a = lists.a;
    a.D = (int)colors.shape(2), a.means2d = means2d.data(), a.conics = conics.data(), a.colors = colors.data();
    a.opacities = opacities.data(), a.radii = radii.data(), a.background = pointer(background);
    a.max_splats_per_pixel = max_splats_per_pixel, a.records = records.data(), a.visited = visited.data();
    a.image = image.data(), a.alpha = alpha.data();
    nb::gil_scoped_release release;
    ops->blend_pack(a);
    ops->blend_forward(a);
  });
  m.def("blend_backward", [](const Lists& lists, Input records, Array<const int64_t> visited, int max_splats_per_pixel,
                             Input image, Input alpha, Input v_image, std::optional<Input> v_alpha, Floats pairs,
                             Floats v_means2d, Floats v_conics, Floats v_colors, Floats v_opacities,
                             std::optional<Floats> v_abs) {
    BlendArgs a = lists.a;
    a.D = (int)v_colors.shape(2), a.records = const_cast<float*>(records.data()), a.visited = const_cast<int64_t*>(visited.data());
    a.max_splats_per_pixel = max_splats_per_pixel;
    a.image = const_cast<float*>(image.data()), a.alpha = const_cast<float*>(alpha.data());
    a.v_image = v_image.data(), a.v_alpha = pointer(v_alpha), a.pairs = pairs.data();
    a.v_means2d = v_means2d.data(), a.v_conics = v_conics.data(), a.v_colors = v_colors.data();
    a.v_opacities = v_opacities.data(), a.v_abs = pointer(v_abs);
    nb::gil_scoped_release release;
    ops->blend_backward(a);
  });
  // the order of splatexp_kernels.blend2d.MODES
  auto blend2d_args = [](const Lists& lists, int mode, int top_k, std::optional<Floats> gates) {
    Blend2dArgs a{};
    static_cast<BlendArgs&>(a) = lists.a;
    a.mode = (Blend2dMode)mode, a.top_k = top_k, a.gates = pointer(gates);
    return a;
  };
  m.def("blend2d_forward", [=](const Lists& lists, int mode, int top_k, Input means2d, Input conics, Input colors,
                               Input weights, Input radii, std::optional<Input> background, Floats records,
                               std::optional<Floats> gates, Floats image, Floats total) {
    Blend2dArgs a = blend2d_args(lists, mode, top_k, gates);
    a.D = (int)colors.shape(2), a.means2d = means2d.data(), a.conics = conics.data(), a.colors = colors.data();
    a.opacities = weights.data(), a.radii = radii.data(), a.background = pointer(background);
    a.records = records.data(), a.image = image.data(), a.alpha = total.data();
    nb::gil_scoped_release release;
    ops->blend_pack(a);
    ops->blend2d_forward(a);
  });
  m.def("blend2d_backward", [=](const Lists& lists, int mode, int top_k, Input records, std::optional<Floats> gates,
                                Input image, Input total, Input v_image, std::optional<Input> v_total, Floats pairs,
                                Floats v_means2d, Floats v_conics, Floats v_colors, Floats v_weights) {
    Blend2dArgs a = blend2d_args(lists, mode, top_k, gates);
    a.D = (int)v_colors.shape(2), a.records = const_cast<float*>(records.data());
    a.image = const_cast<float*>(image.data()), a.alpha = const_cast<float*>(total.data());
    a.v_image = v_image.data(), a.v_alpha = pointer(v_total), a.pairs = pairs.data();
    a.v_means2d = v_means2d.data(), a.v_conics = v_conics.data(), a.v_colors = v_colors.data();
    a.v_opacities = v_weights.data();
    nb::gil_scoped_release release;
    ops->blend2d_backward(a);
  });
  using MaybeInput = std::optional<Input>;
  using MaybeFloats = std::optional<Floats>;
  m.def("attribute", [](const Lists& lists, Input means2d, Input conics, Input colors, Input opacities, Input radii, Input maps,
                        float threshold, int max_splats_per_pixel, Floats records, Floats pairs, Floats weight_sum,
                        Floats weight_max, Floats weighted, Array<int32_t> hits, Array<int32_t> pixels, MaybeFloats covered,
                        std::optional<Array<int32_t>> dominant, MaybeFloats distance, MaybeFloats removal,
                        MaybeFloats removal_loss, MaybeFloats sensitivity, MaybeInput image, MaybeInput target) {
    BlendArgs a = lists.a;
    a.D = (int)colors.shape(2), a.means2d = means2d.data(), a.conics = conics.data(), a.colors = colors.data();
    a.opacities = opacities.data(), a.radii = radii.data(), a.maps = maps.data(), a.M = (int)maps.shape(3);
    a.threshold = threshold, a.max_splats_per_pixel = max_splats_per_pixel, a.records = records.data(), a.pairs = pairs.data();
    a.weight_sum = weight_sum.data(), a.weight_max = weight_max.data(), a.weighted = weighted.data();
    a.hits = hits.data(), a.pixels = pixels.data();
    a.covered = pointer(covered), a.dominant = pointer(dominant), a.distance = pointer(distance);
    a.removal = pointer(removal), a.removal_loss = pointer(removal_loss), a.sensitivity = pointer(sensitivity);
    a.image = const_cast<float*>(pointer(image)), a.target = pointer(target);
    nb::gil_scoped_release release;
    ops->blend_pack(a);
    ops->attribute(a);
  });

  m.def("ssim_forward", [](Input image, Input target, Floats map, std::optional<Floats> partials) {
    SsimArgs a{};
    a.C = (int64_t)image.shape(0), a.height = (int)image.shape(1), a.width = (int)image.shape(2), a.D = (int)image.shape(3);
    a.image = image.data(), a.target = target.data(), a.map = map.data(), a.partials = pointer(partials);
    nb::gil_scoped_release release;
    ops->ssim_forward(a);
  });
  m.def("ssim_backward", [](Input image, Input target, Input partials, Input v_map, Floats v_image) {
    SsimArgs a{};
    a.C = (int64_t)image.shape(0), a.height = (int)image.shape(1), a.width = (int)image.shape(2), a.D = (int)image.shape(3);
    a.image = image.data(), a.target = target.data(), a.partials = const_cast<float*>(partials.data());
    a.v_map = v_map.data(), a.v_image = v_image.data();
    nb::gil_scoped_release release;
    ops->ssim_backward(a);
  });

  m.def("adam_step", [](Floats param, Input grad, Floats exp_avg, Floats exp_avg_sq,
                        std::optional<Array<const uint8_t>> visible, double step_size, double beta1, double beta2,
                        double bias2_sqrt, double eps) {
    AdamArgs a{};
    a.rows = param.ndim() ? (int64_t)param.shape(0) : 1;
    a.columns = a.rows ? (int64_t)param.size() / a.rows : 0;
    a.param = param.data(), a.grad = grad.data(), a.exp_avg = exp_avg.data(), a.exp_avg_sq = exp_avg_sq.data();
    a.visible = pointer(visible), a.step_size = (float)step_size;
    a.rate1 = (float)(1 - beta1), a.rate2 = (float)(1 - beta2);
    a.bias2_sqrt = (float)bias2_sqrt, a.eps = (float)eps;
    nb::gil_scoped_release release;
    ops->adam_step(a);
  });

  m.def("noise", [](Floats means, Input quats, Input scales, Input opacities, Array<const int64_t> uid, float rate,
                    float sharpness, float threshold, uint64_t seed, uint64_t step) {
    NoiseArgs a{};
    a.N = (int64_t)means.shape(0), a.means = means.data(), a.quats = quats.data(), a.scales = scales.data();
    a.opacities = opacities.data(), a.uid = uid.data(), a.rate = rate, a.sharpness = sharpness, a.threshold = threshold;
    a.seed = seed, a.step = step;
    nb::gil_scoped_release release;
    ops->noise(a);
  });
  bind_entropy(m);
}
