// The loops over an activation that BCN needs, as ops/planes.py has them in stock operators.
//
// T is the type in memory, A the type of the arithmetic. Sums run in A over short blocks and are added up in double.
// Every function is compiled for several generations of processors, and the right one is chosen when the library is
// loaded, so that one build serves all of them. The compiler must not contract a * x + b (-ffp-contract=off): backward
// evaluates the map again to see where ReLU cut it, and must find the same value.
#pragma once

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), noinline))
#else
#define FOR_EACH_PROCESSOR
#endif

namespace wsbcn {

constexpr int64_t kBlock = 2048;  // values of a plane, which stay in the first cache between two passes
constexpr int64_t kRows = 32;     // pixels of a channels-last activation

template <typename A, typename T>
inline A load(const T& value) {
  return value;
}

template <typename T, typename A>
inline T store(A value) {
  return value;
}

// As c10's conversions, without the branch that keeps compilers from vectorizing them.
template <>
inline float load(const c10::BFloat16& value) {
  const uint32_t bits = uint32_t(value.x) << 16;
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

template <>
inline c10::BFloat16 store(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;  // to the nearest, ties to even
  const uint32_t nan = value != value;
  return c10::BFloat16(uint16_t(nan ? 0x7FC0u : rounded), c10::BFloat16::from_bits());
}

// y = scale (x - center) + shift, and its ReLU, which hands on NaN as torch's does.
template <bool relu, typename A>
inline A affine(A x, A center, A scale, A shift) {
  const A y = scale * (x - center) + shift;
  return relu && y <= A(0) ? A(0) : y;
}

// dy where ReLU let the value pass, else 0. NaN passes, as in torch.
template <bool relu, typename A>
inline A passed(A dy, A x, A center, A scale, A shift) {
  return relu && scale * (x - center) + shift <= A(0) ? A(0) : dy;
}

// Merge the mean and the sum of squared deviations of `count` values into those of `total` (Chan et al.).
inline void merge(double& mean, double& squares, double total, double other_mean, double other_squares, double count) {
  const double difference = other_mean - mean, share = count / (total + count);
  squares += other_squares + difference * difference * total * share;
  mean += difference * share;
}

// ---- A plane: `n` adjacent values of one channel of one image ----

template <typename T, typename A>
FOR_EACH_PROCESSOR void plane_moments(const T* __restrict x, int64_t n, double* mean, double* squares) {
  *mean = *squares = 0;
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t length = std::min(kBlock, n - start);
    const T* block = x + start;
    A sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < length; i++) sum += load<A>(block[i]);
    const A center = sum / A(length);
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < length; i++) square += (load<A>(block[i]) - center) * (load<A>(block[i]) - center);
    merge(*mean, *squares, start, center, square, length);
  }
}

template <bool relu, typename T, typename A>
FOR_EACH_PROCESSOR void plane_affine(const T* __restrict x, T* __restrict y, int64_t n, A center, A scale, A shift) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) y[i] = store<T, A>(affine<relu>(load<A>(x[i]), center, scale, shift));
}

// The sums of dy and of dy (x - center).
template <bool relu, typename T, typename A>
FOR_EACH_PROCESSOR void plane_dots(const T* __restrict dy, const T* __restrict x, int64_t n, A center, A scale, A shift,
                                   double* sum_dy, double* dot_dy) {
  *sum_dy = *dot_dy = 0;
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t end = std::min(n, start + kBlock);
    A sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
    for (int64_t i = start; i < end; i++) {
      const A gradient = passed<relu>(load<A>(dy[i]), load<A>(x[i]), center, scale, shift);
      sum += gradient;
      dot += gradient * (load<A>(x[i]) - center);
    }
    *sum_dy += sum;
    *dot_dy += dot;
  }
}

// dx = scale_dy dy + scale_x (x - center) + constant.
template <bool relu, typename T, typename A>
FOR_EACH_PROCESSOR void plane_gradient(const T* __restrict dy, const T* __restrict x, T* __restrict dx, int64_t n,
                                       A center, A scale, A shift, A scale_dy, A scale_x, A constant) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const A gradient = passed<relu>(load<A>(dy[i]), load<A>(x[i]), center, scale, shift);
    dx[i] = store<T, A>(scale_dy * gradient + scale_x * (load<A>(x[i]) - center) + constant);
  }
}

// ---- The same over `n` pixels of `channels` adjacent values; all numbers are arrays of `channels` ----

// `scratch` holds 2 * channels.
template <typename T, typename A>
FOR_EACH_PROCESSOR void rows_moments(const T* __restrict x, int64_t n, int64_t channels, double* __restrict mean,
                                     double* __restrict squares, A* __restrict scratch) {
  A* __restrict center = scratch;
  A* __restrict square = scratch + channels;
  std::fill_n(mean, channels, 0.0);
  std::fill_n(squares, channels, 0.0);
  for (int64_t start = 0; start < n; start += kRows) {
    const int64_t rows = std::min(kRows, n - start);
    const T* block = x + start * channels;
    std::fill_n(scratch, 2 * channels, A(0));
    for (int64_t row = 0; row < rows; row++)
#pragma omp simd
      for (int64_t c = 0; c < channels; c++) center[c] += load<A>(block[row * channels + c]);
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) center[c] /= A(rows);
    for (int64_t row = 0; row < rows; row++)
#pragma omp simd
      for (int64_t c = 0; c < channels; c++) {
        const A deviation = load<A>(block[row * channels + c]) - center[c];
        square[c] += deviation * deviation;
      }
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) merge(mean[c], squares[c], start, center[c], square[c], rows);
  }
}

template <bool relu, typename T, typename A>
FOR_EACH_PROCESSOR void rows_affine(const T* __restrict x, T* __restrict y, int64_t n, int64_t channels,
                                    const A* __restrict center, const A* __restrict scale, const A* __restrict shift) {
  for (int64_t row = 0; row < n; row++)
#pragma omp simd
    for (int64_t c = 0; c < channels; c++)
      y[row * channels + c] = store<T, A>(affine<relu>(load<A>(x[row * channels + c]), center[c], scale[c], shift[c]));
}

template <bool relu, typename T, typename A>
FOR_EACH_PROCESSOR void rows_dots(const T* __restrict dy, const T* __restrict x, int64_t n, int64_t channels,
                                  const A* __restrict center, const A* __restrict scale, const A* __restrict shift,
                                  double* __restrict sum_dy, double* __restrict dot_dy, A* __restrict scratch) {
  A* __restrict sum = scratch;
  A* __restrict dot = scratch + channels;
  std::fill_n(sum_dy, channels, 0.0);
  std::fill_n(dot_dy, channels, 0.0);
  for (int64_t start = 0; start < n; start += kRows) {
    const int64_t end = std::min(n, start + kRows);
    std::fill_n(scratch, 2 * channels, A(0));
    for (int64_t row = start; row < end; row++)
#pragma omp simd
      for (int64_t c = 0; c < channels; c++) {
        const A value = load<A>(x[row * channels + c]);
        const A gradient = passed<relu>(load<A>(dy[row * channels + c]), value, center[c], scale[c], shift[c]);
        sum[c] += gradient;
        dot[c] += gradient * (value - center[c]);
      }
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) {
      sum_dy[c] += sum[c];
      dot_dy[c] += dot[c];
    }
  }
}

template <bool relu, typename T, typename A>
FOR_EACH_PROCESSOR void rows_gradient(const T* __restrict dy, const T* __restrict x, T* __restrict dx, int64_t n,
                                      int64_t channels, const A* __restrict center, const A* __restrict scale,
                                      const A* __restrict shift, const A* __restrict scale_dy,
                                      const A* __restrict scale_x, const A* __restrict constant) {
  for (int64_t row = 0; row < n; row++)
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) {
      const A value = load<A>(x[row * channels + c]);
      const A gradient = passed<relu>(load<A>(dy[row * channels + c]), value, center[c], scale[c], shift[c]);
      dx[row * channels + c] = store<T, A>(scale_dy[c] * gradient + scale_x[c] * (value - center[c]) + constant[c]);
    }
}

}  // namespace wsbcn
