// The attribution of pixels to Gaussians, with the exact weights of blend.cpp, and what the picture would lose without
// each; the maths is in kernels/README.md, "blend". Slots and threads as in blend.cpp.
#include "blend_tile.h"
#include "constants.h"
#include "ops.h"
#include "parallel.h"
#include "simd.h"

#include <type_traits>

namespace SPLATEXP_ISA {
namespace {

// A pair's slot: sum w, pixels, then per map sum w*map, hits and, in a rich pass, the map itself; the rest from the end.
enum Sum { WEIGHT, PIXELS, MAPS, REMOVAL = 10, REMOVAL_LOSS, SENSITIVITY, DISTANCE, DOMINANT, WEIGHT_MAX };
static_assert(WEIGHT_MAX == PAIR_FLOATS - 1 && MAPS + 2 * MAX_MAPS <= WEIGHT_MAX, "a slot's room");
static_assert(MAPS + 3 * MAX_MAPS_RICH <= REMOVAL, "a slot's room in a rich pass");

// A rich pass looks at what need not be wanted; each such field costs only where it is.
struct Wants {
  bool distance, dominant, removal, rich;
  explicit Wants(const BlendArgs& a)
      : distance(a.distance), dominant(a.dominant), removal(a.removal || a.removal_loss || a.sensitivity),
        rich(a.covered || distance || dominant || removal) {}
};

template <int M, bool RICH>
struct Shares : Pixels<M + (RICH ? 8 : 0)> {
  // own fields: the maps; of a rich pass the largest weight so far and whose it is (its place in the tile's list); the
  // color that lies behind the Gaussian at hand, background included, and what the picture is above its target
  using State = Pixels<M + (RICH ? 8 : 0)>;
  static constexpr int MAP = State::OWN, BEST = MAP + M, WINNER = BEST + 1, BEHIND = WINNER + 1, RESIDUAL = BEHIND + 3;

  Shares(const BlendArgs& a, const Tile& t, const Wants& wants) : State(a, t) {
    t.for_block_rows(a, [&](int64_t pixel, int n, int b, int i) {
      for (int j = 0; j < n; j++) {
        for (int m = 0; m < M; m++) this->at[b][MAP + m][i + j] = a.maps[(pixel + j) * M + m];
        if (RICH && wants.removal)
          for (int c = 0; c < 3; c++) {
            const float color = a.image[(pixel + j) * 3 + c];
            this->at[b][BEHIND + c][i + j] = color, this->at[b][RESIDUAL + c][i + j] = color - a.target[(pixel + j) * 3 + c];
          }
      }
    });
  }
  // The picture loses dC = w color - alpha / (1 - alpha) behind with the Gaussian, and dC/alpha is its derivative by alpha.
  INLINE void remove(Shares& p, int b, int i, const Share& s, const float* g, vf* sums) {
    const vf inverse = rcp(set1(1.0f) - s.alpha), odds = s.alpha * inverse;
    vf square = set1(0.0f), cross = square, slope = square;
    for (int c = 0; c < 3; c++) {
      const vf color = set1(g[CHANNELS + c]);
      float* left = p.at[b][BEHIND + c] + i;
      const vf behind = load(left) - s.w * color, loss = s.w * color - odds * behind;
      store(left, behind);
      square = fma(loss, loss, square), cross = fma(loss, load(p.at[b][RESIDUAL + c] + i), cross);
      slope = slope + (s.T * color - inverse * behind);
    }
    slope = zero_unless(lt(s.alpha, set1(ALPHA_MAX)), set1(g[OPACITY]) * slope);
    sums[REMOVAL] = sums[REMOVAL] + zero_unless(s.ok, square);
    sums[REMOVAL_LOSS] = sums[REMOVAL_LOSS] + zero_unless(s.ok, square - set1(2.0f) * cross);
    sums[SENSITIVITY] = sums[SENSITIVITY] + zero_unless(s.ok, slope * slope);
  }
  // Each pixel counts for the Gaussian with its largest weight, the nearest of equals.
  void count_winners(const BlendArgs& a, const Tile& t) {
    const int32_t* slots = a.slots + a.starts[t.index];
    t.for_block_rows(a, [&](int64_t, int n, int b, int i) {
      for (int j = i; j < i + n; j++)
        if (this->at[b][BEST][j] > 0.0f)
          a.pairs[(int64_t)slots[(int64_t)this->at[b][WINNER][j]] * PAIR_FLOATS + DOMINANT] += 1.0f;
    });
  }
};

template <int M, bool CAP, bool RICH>
void attribute_tile(const BlendArgs& a, const Tile& t, const Lanes& lanes, const Wants& wants) {
  using State = Shares<M, RICH>;
  constexpr int PER_MAP = RICH ? 3 : 2;
  const int S = blend_record_floats(a.D);
  State p(a, t, wants);
  Batch batch;
  const int64_t start = a.starts[t.index], end = a.ends[t.index];
  const int64_t beyond = t.index + 1 < a.C * a.tiles_x * a.tiles_y ? a.starts[t.index + 1] : a.P;
  for (int64_t k = start, j = 0, n = 0; k < beyond; k++, j++) {
    float* slot = a.pairs + (int64_t)a.slots[k] * PAIR_FLOATS;
    if (j == n && k < end && p.live) n = Batch::fill(batch, a, t, lanes, k, end, S), j = 0;
    const uint64_t mask = k < end && p.live ? batch.mask[j] & p.live : 0;
    if (k + 4 < beyond) __builtin_prefetch(a.pairs + (int64_t)a.slots[k + 4] * PAIR_FLOATS, 1);
    if (!mask) {
      std::memset(slot, 0, sizeof(float) * PAIR_FLOATS);
      continue;
    }
    const Footprint& f = batch.f[j];
    vf sums[PAIR_FLOATS], top = set1(0.0f);
    for (auto& s : sums) s = set1(0.0f);
    for (uint64_t rest = mask; rest; rest &= rest - 1) {
      const int b = __builtin_ctzll(rest);
      for (int v = 0; v < VECTORS; v++) {
        const int i = v * LANES;
        Share s = composite<CAP>(Footprint::exponent(f, lanes, b, v), b, i, p, (float)a.max_splats_per_pixel);
        const vf one = zero_unless(s.ok, set1(1.0f));
        sums[WEIGHT] = sums[WEIGHT] + s.w, sums[PIXELS] = sums[PIXELS] + one, top = vmax(top, s.w);
        for (int m = 0; m < M; m++) {
          const vf value = load(p.at[b][State::MAP + m] + i);
          vf* sum = sums + MAPS + PER_MAP * m;
          sum[0] = fma(s.w, value, sum[0]);
          sum[1] = sum[1] + zero_unless(gt(value, set1(a.threshold)), one);
          if (RICH) sum[2] = sum[2] + zero_unless(s.ok, value);
        }
        if (RICH && wants.distance) {
          const vf x = set1(f.x[b]) + lanes.x, y = set1(f.y[b]) + lanes.y[v];
          sums[DISTANCE] = sums[DISTANCE] + zero_unless(s.ok, vsqrt(fma(x, x, y * y)));
        }
        if (RICH && wants.dominant) {
          float *best = p.at[b][State::BEST] + i, *winner = p.at[b][State::WINNER] + i;
          const vm more = gt(s.w, load(best));
          store(best, select(more, s.w, load(best))), store(winner, select(more, set1((float)(k - start)), load(winner)));
        }
        if (RICH && wants.removal) State::remove(p, b, i, s, a.records + (int64_t)a.ids[k] * S, sums);
      }
    }
    reduce16(sums, slot);
    alignas(64) float each[LANES];
    store(each, top);
    float most = 0;
    for (float x : each) most = x > most ? x : most;
    slot[WEIGHT_MAX] = most;
  }
  if (RICH && wants.dominant) p.count_winners(a, t);
}

// Adds up the pairs of each Gaussian in their fixed order.
void gather_shares(const BlendArgs& a, int per_map, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; j++) {
    float sum[PAIR_FLOATS] = {0};
    for (int64_t k = a.first[j]; k < a.first[j + 1]; k++) {
      const float* pair = a.pairs + k * PAIR_FLOATS;
      for (int i = 0; i < WEIGHT_MAX; i++) sum[i] += pair[i];
      sum[WEIGHT_MAX] = pair[WEIGHT_MAX] > sum[WEIGHT_MAX] ? pair[WEIGHT_MAX] : sum[WEIGHT_MAX];
    }
    const int64_t o = a.order[j];
    a.weight_sum[o] = sum[WEIGHT], a.weight_max[o] = sum[WEIGHT_MAX], a.pixels[o] = (int32_t)sum[PIXELS];
    for (int m = 0; m < a.M; m++) {
      const float* of_map = sum + MAPS + per_map * m;
      a.weighted[o * a.M + m] = of_map[0], a.hits[o * a.M + m] = (int32_t)of_map[1];
      if (a.covered) a.covered[o * a.M + m] = of_map[2];
    }
    if (a.distance) a.distance[o] = sum[DISTANCE];
    if (a.dominant) a.dominant[o] = (int32_t)sum[DOMINANT];
    if (a.removal) a.removal[o] = sum[REMOVAL];
    if (a.removal_loss) a.removal_loss[o] = sum[REMOVAL_LOSS];
    if (a.sensitivity) a.sensitivity[o] = sum[SENSITIVITY];
  }
}

// Numbers of maps are compiled one by one, as the channels of blend.cpp are.
template <bool RICH, class F>
void with_maps(int M, F&& f) {
  switch (M) {
    case 0: return f(std::integral_constant<int, 0>{});
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    default: break;
  }
  if constexpr (!RICH) switch (M) {
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    case 5: return f(std::integral_constant<int, 5>{});
    default: return f(std::integral_constant<int, 6>{});
  }
}

template <bool RICH>
void attribute_tiles(const BlendArgs& a, const Wants& wants) {
  with_maps<RICH>(a.M, [&](auto maps) {
    constexpr int M = decltype(maps)::value;
    if (a.max_splats_per_pixel > 0)
      for_tiles(a, [&](const Tile& t, const Lanes& l) { attribute_tile<M, true, RICH>(a, t, l, wants); });
    else
      for_tiles(a, [&](const Tile& t, const Lanes& l) { attribute_tile<M, false, RICH>(a, t, l, wants); });
  });
}

}  // namespace

void attribute(const BlendArgs& a) {
  const Wants wants(a);
  wants.rich ? attribute_tiles<true>(a, wants) : attribute_tiles<false>(a, wants);
  parallel_for(a.V, 1024, [&](int64_t begin, int64_t end) { gather_shares(a, wants.rich ? 3 : 2, begin, end); });
}

}  // namespace SPLATEXP_ISA
