// The constants of splatexp_kernels/constants.py, repeated for C++ (a test holds the two equal).
#pragma once
constexpr float ALPHA_MIN = 1.0f / 255.0f;
constexpr float ALPHA_MAX = 0.99f;
constexpr float NORMALIZER_EPS = 1e-4f;
constexpr float T_MIN = 1e-4f;
constexpr float COMPENSATION_MIN2 = 2.5e-5f;
constexpr float FRUSTUM_MARGIN = 0.3f;
