// The table of this instruction set's build, and a loop of dependent-free FMAs that tells what the processor can do.
#include "ops.h"
#include "simd.h"

namespace SPLATEXP_ISA {

double fma_gflops(int64_t repeats) {
  constexpr int CHAINS = 12;
  vf x[CHAINS], m = set1(0.999f), b = set1(0.001f);
  for (int i = 0; i < CHAINS; i++) x[i] = set1(1.0f + (float)i);
  for (int64_t r = 0; r < repeats; r++) {
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) x[i] = fma(x[i], m, b);
  }
  vf sum = x[0];
  for (int i = 1; i < CHAINS; i++) sum = sum + x[i];
  float lanes[LANES];
  store(lanes, sum);
  volatile float keep = lanes[0];
  (void)keep;
  return 2.0 * CHAINS * LANES * (double)repeats;
}

#define STRING_(x) #x
#define STRING(x) STRING_(x)
extern const Ops table;
const Ops table = {STRING(SPLATEXP_ISA), LANES,
#define X(name, args) &name,
                   SPLATEXP_OPS(X)
#undef X
                       &fma_gflops};

}  // namespace SPLATEXP_ISA
