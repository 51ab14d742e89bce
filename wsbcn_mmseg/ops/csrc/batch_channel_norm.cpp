// Batch-Channel Normalization on the CPU: one reduction over the activation and one map of it, each way.
//
// The algebra is that of ops/fused.py. The mean and the variance of every plane, which is one channel of one image, give
// the batch statistics (Eq. 40, Eq. 43), the updated estimates (Algorithm 1) and the statistics of the groups (Eq. 42).
// So the output is y = scale (x - mean) + shift with one scale and shift per plane; ReLU may follow in the same pass.
// Every sum has a fixed order, so results do not depend on the number of threads.

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "passes.h"

namespace wsbcn {
namespace {

using at::Tensor;
using std::optional;

constexpr int64_t kGrain = 32768;  // values that make a thread worth waking, as in ATen
constexpr int64_t kChunk = 256;    // pixels of a channels-last activation that one thread reduces

struct Sizes {
  explicit Sizes(const Tensor& x, int64_t groups)
      : images(x.size(0)), channels(x.size(1)), pixels(x.numel() / (images * channels)), groups(groups),
        width(channels / groups), planes(images * channels), chunks((pixels + kChunk - 1) / kChunk),
        channels_last(!x.is_contiguous()) {}

  const int64_t images, channels, pixels, groups, width, planes, chunks;
  const bool channels_last;
};

// What backward needs besides x: numbers per plane, then numbers per channel, in one tensor.
template <typename A>
struct Saved {
  Saved(A* data, const Sizes& s)
      : mean(data), variance(data + s.planes), offset(data + 2 * s.planes), rstd(data + 3 * s.planes),
        scale(data + 4 * s.planes), shift(data + 5 * s.planes), center(data + 6 * s.planes),
        inverse_sigma(center + s.channels) {}

  static int64_t size(const Sizes& s) { return 6 * s.planes + 2 * s.channels; }

  A *mean, *variance;         // of the plane
  A *offset, *rstd;           // after Eq. 40: the plane's mean less its group's; of its group, Eq. 42
  A *scale, *shift;           // of the whole layer
  A *center, *inverse_sigma;  // of the channel, Eq. 40
};

template <typename F>
void parallel(int64_t items, int64_t values_per_item, const F& run) {
  at::parallel_for(0, items, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, values_per_item)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t item = begin; item < end; item++) run(item);
                   });
}

// Reduce every plane, close every group, map every plane. A group at a time, so that the map reads from cache what the
// reduction has just read, if that keeps all threads busy.
template <typename Reduce, typename Close, typename Map>
void by_groups(const Sizes& s, const Reduce& reduce, const Close& close, const Map& map) {
  const auto plane_of = [&](int64_t group, int64_t i) {
    return i / s.width * s.channels + group * s.width + i % s.width;
  };
  const int64_t planes = s.images * s.width;
  if (s.groups >= at::get_num_threads()) {
    parallel(s.groups, planes * s.pixels, [&](int64_t group) {
      for (int64_t i = 0; i < planes; i++) reduce(plane_of(group, i));
      close(group);
      for (int64_t i = 0; i < planes; i++) map(plane_of(group, i));
    });
  } else {
    parallel(s.planes, s.pixels, reduce);
    parallel(s.groups, planes, close);
    parallel(s.planes, s.pixels, map);
  }
}

// The same for a channels-last activation, whose planes are interleaved. `reduce` and `map` take an image, its first
// pixel and the number of pixels; `merge` takes an image.
template <typename Reduce, typename Merge, typename Close, typename Map>
void by_rows(const Sizes& s, const Reduce& reduce, const Merge& merge, const Close& close, const Map& map) {
  const auto each_chunk = [&](const auto& run) {
    parallel(s.images * s.chunks, std::min(kChunk, s.pixels) * s.channels, [&](int64_t chunk) {
      const int64_t start = chunk % s.chunks * kChunk;
      run(chunk / s.chunks, start, std::min(kChunk, s.pixels - start));
    });
  };
  each_chunk(reduce);
  parallel(s.images, s.chunks * s.channels, merge);
  parallel(s.groups, s.images * s.width, close);
  each_chunk(map);
}

// Two numbers per chunk and channel, and where those of a chunk begin.
struct Partials {
  explicit Partials(const Sizes& s) : channels(s.channels), chunks(s.chunks), values(2 * s.images * s.chunks * s.channels) {}

  double* at(int64_t image, int64_t start) { return values.data() + 2 * channels * (image * chunks + start / kChunk); }

  const int64_t channels, chunks;
  std::vector<double> values;
};

// The estimates of a channel, and the batch's statistics that they follow.
template <typename A>
struct Estimates {
  A *mean, *variance;
  int64_t* skipped;  // or null
  double rate;

  // Steps 3 and 4 of Algorithm 1. A channel whose batch is not finite keeps its estimates.
  void update(int64_t c, double batch_mean, double batch_variance) const {
    const A new_mean = mean[c] + rate * (batch_mean - mean[c]);
    const A new_variance = variance[c] + rate * (batch_variance - variance[c]);
    if (std::isfinite(new_mean + new_variance)) {
      mean[c] = new_mean;
      variance[c] = new_variance;
    } else if (skipped && std::isfinite(mean[c] + variance[c])) {
      skipped[c]++;
    }
  }
};

template <typename A>
struct Parameters {
  const A *batch_weight, *batch_bias, *channel_weight, *channel_bias;
};

// Eq. 40 to 42 for the numbers of a group's planes, from their means and variances.
template <typename A>
void close_forward(const Sizes& s, int64_t group, const Saved<A>& saved, const Parameters<A>& parameters,
                   const Estimates<A>& estimates, bool update, bool batch_statistics, double eps) {
  const int64_t first = group * s.width, last = first + s.width;
  for (int64_t c = first; c < last; c++) {
    double mean = 0, variance = 0;
    if (update || batch_statistics) {
      for (int64_t plane = c; plane < s.planes; plane += s.channels) mean += saved.mean[plane];
      mean /= s.images;
      const double around = batch_statistics ? mean : estimates.mean[c];  // Algorithm 1: the estimate before the update
      for (int64_t plane = c; plane < s.planes; plane += s.channels)
        variance += saved.variance[plane] + (saved.mean[plane] - around) * (saved.mean[plane] - around);
      variance /= s.images;
    }
    if (update) {
      const double count = s.images * s.pixels;  // BatchNorm stores the unbiased variance
      estimates.update(c, mean, batch_statistics ? variance * (count / (count - 1)) : variance);
    }
    saved.center[c] = batch_statistics ? mean : estimates.mean[c];
    saved.inverse_sigma[c] = 1 / std::sqrt((batch_statistics ? variance : estimates.variance[c]) + eps);
  }
  for (int64_t image = 0; image < s.images; image++) {
    const int64_t planes = image * s.channels;
    double group_mean = 0, group_variance = 0;
    const auto scale = [&](int64_t c) { return double(parameters.batch_weight[c]) * saved.inverse_sigma[c]; };
    const auto mean = [&](int64_t c) {
      return scale(c) * (double(saved.mean[planes + c]) - saved.center[c]) + parameters.batch_bias[c];
    };
    for (int64_t c = first; c < last; c++) group_mean += mean(c);
    group_mean /= s.width;
    for (int64_t c = first; c < last; c++) {
      const double offset = mean(c) - group_mean;
      group_variance += scale(c) * scale(c) * saved.variance[planes + c] + offset * offset;
      saved.offset[planes + c] = offset;
    }
    const double rstd = 1 / std::sqrt(group_variance / s.width + eps), gain = parameters.channel_weight[group] * rstd;
    for (int64_t c = first; c < last; c++) {
      saved.rstd[planes + c] = rstd;
      saved.scale[planes + c] = gain * scale(c);
      saved.shift[planes + c] = gain * saved.offset[planes + c] + parameters.channel_bias[group];
    }
  }
}

template <bool relu, typename T, typename A>
auto map_of_plane(const T* in, T* out, const Sizes& s, const Saved<A>& saved) {
  return [=, &s](int64_t plane) {
    plane_affine<relu, T, A>(in + plane * s.pixels, out + plane * s.pixels, s.pixels, saved.mean[plane],
                             saved.scale[plane], saved.shift[plane]);
  };
}

template <bool relu, typename T, typename A>
auto map_of_rows(const T* in, T* out, const Sizes& s, const Saved<A>& saved) {
  return [=, &s](int64_t image, int64_t start, int64_t pixels) {
    const int64_t at = (image * s.pixels + start) * s.channels, plane = image * s.channels;
    rows_affine<relu, T, A>(in + at, out + at, pixels, s.channels, saved.mean + plane, saved.scale + plane,
                            saved.shift + plane);
  };
}

template <typename T, bool relu>
void forward(const Tensor& x, const Tensor& y, const Sizes& s, const Saved<at::opmath_type<T>>& saved,
             const Parameters<at::opmath_type<T>>& parameters, const Estimates<at::opmath_type<T>>& estimates,
             bool update, bool batch_statistics, double eps) {
  using A = at::opmath_type<T>;
  const T* in = x.const_data_ptr<T>();
  T* out = y.mutable_data_ptr<T>();
  const auto close = [&](int64_t group) {
    close_forward(s, group, saved, parameters, estimates, update, batch_statistics, eps);
  };
  if (!s.channels_last) {
    by_groups(
        s,
        [&](int64_t plane) {
          double mean, squares;
          plane_moments<T, A>(in + plane * s.pixels, s.pixels, &mean, &squares);
          saved.mean[plane] = mean;
          saved.variance[plane] = squares / s.pixels;
        },
        close, map_of_plane<relu>(in, out, s, saved));
    return;
  }
  Partials partials(s);
  by_rows(
      s,
      [&](int64_t image, int64_t start, int64_t pixels) {
        std::vector<A> scratch(2 * s.channels);
        double* partial = partials.at(image, start);
        rows_moments<T, A>(in + (image * s.pixels + start) * s.channels, pixels, s.channels, partial,
                           partial + s.channels, scratch.data());
      },
      [&](int64_t image) {
        for (int64_t c = 0; c < s.channels; c++) {
          double mean = 0, squares = 0;
          for (int64_t start = 0; start < s.pixels; start += kChunk) {
            const double* partial = partials.at(image, start) + c;
            merge(mean, squares, start, partial[0], partial[s.channels], std::min(kChunk, s.pixels - start));
          }
          saved.mean[image * s.channels + c] = mean;
          saved.variance[image * s.channels + c] = squares / s.pixels;
        }
      },
      close, map_of_rows<relu>(in, out, s, saved));
}

template <typename A>
struct Gradients {
  double *sum_dy, *dot_dy;            // per plane: of dy, and of dy (x - mean)
  A *scale_dy, *scale_x, *constant;   // per plane: dx = scale_dy dy + scale_x (x - mean) + constant
  A *batch_weight, *batch_bias, *channel_weight, *channel_bias;
};

// Backward through Eq. 42 and 40 for the numbers of a group's planes, from the sums over them.
template <typename A>
void close_backward(const Sizes& s, int64_t group, const Saved<A>& saved, const A* batch_weight,
                    const A* channel_weight, const Gradients<A>& gradients, bool batch_statistics) {
  const int64_t first = group * s.width, last = first + s.width;
  const double values = double(s.width) * s.pixels, gamma = channel_weight[group];
  const auto scale = [&](int64_t c) { return double(batch_weight[c]) * saved.inverse_sigma[c]; };
  double weight = 0, bias = 0;
  for (int64_t c = first; c < last; c++) gradients.batch_weight[c] = gradients.batch_bias[c] = 0;
  std::vector<double> d_weight(s.width), d_bias(s.width);
  for (int64_t image = 0; image < s.images; image++) {
    const int64_t planes = image * s.channels;
    const double rstd = saved.rstd[planes + first];
    double sum = 0, dot = 0;  // over the group: of dy, and of dy times the normalized value
    for (int64_t c = first; c < last; c++) {
      const double sum_dy = gradients.sum_dy[planes + c];
      sum += sum_dy;
      dot += rstd * (scale(c) * gradients.dot_dy[planes + c] + saved.offset[planes + c] * sum_dy);
    }
    bias += sum;
    weight += dot;
    const double gain = gamma * rstd, slope = -gain * rstd * dot / values;
    for (int64_t c = first; c < last; c++) {
      const int64_t plane = planes + c;
      // dz = gain dy + constant + slope scale (x - mean), and its sums
      const double constant = -gain * sum / values + slope * saved.offset[plane];
      const double sum_dz = gain * gradients.sum_dy[plane] + s.pixels * constant;
      const double dot_dz = gain * gradients.dot_dy[plane] + s.pixels * double(saved.variance[plane]) * slope * scale(c);
      const double deviation = double(saved.mean[plane]) - saved.center[c];
      d_bias[c - first] += sum_dz;
      d_weight[c - first] += (dot_dz + deviation * sum_dz) * saved.inverse_sigma[c];
      gradients.scale_dy[plane] = gain * scale(c);
      gradients.scale_x[plane] = slope * scale(c) * scale(c);
      gradients.constant[plane] = constant * scale(c);
    }
  }
  gradients.channel_weight[group] = weight;
  gradients.channel_bias[group] = bias;
  for (int64_t c = first; c < last; c++) {
    gradients.batch_weight[c] = d_weight[c - first];
    gradients.batch_bias[c] = d_bias[c - first];
    if (!batch_statistics) continue;
    const double count = s.images * s.pixels;  // Eq. 43: mean and sigma are functions of x too
    const double through_mean = scale(c) * d_bias[c - first] / count;
    const double through_sigma = scale(c) * saved.inverse_sigma[c] * d_weight[c - first] / count;
    for (int64_t plane = c; plane < s.planes; plane += s.channels) {
      gradients.scale_x[plane] -= through_sigma;
      gradients.constant[plane] -= through_mean + through_sigma * (double(saved.mean[plane]) - saved.center[c]);
    }
  }
}

template <typename T, bool relu>
void backward(const Tensor& dy, const Tensor& x, const Tensor& dx, const Sizes& s,
              const Saved<at::opmath_type<T>>& saved, const at::opmath_type<T>* batch_weight,
              const at::opmath_type<T>* channel_weight, const Gradients<at::opmath_type<T>>& g,
              bool batch_statistics) {
  using A = at::opmath_type<T>;
  const T *above = dy.const_data_ptr<T>(), *in = x.const_data_ptr<T>();
  T* below = dx.mutable_data_ptr<T>();
  const auto close = [&](int64_t group) {
    close_backward(s, group, saved, batch_weight, channel_weight, g, batch_statistics);
  };
  if (!s.channels_last) {
    by_groups(
        s,
        [&](int64_t p) {
          plane_dots<relu, T, A>(above + p * s.pixels, in + p * s.pixels, s.pixels, saved.mean[p], saved.scale[p],
                                 saved.shift[p], g.sum_dy + p, g.dot_dy + p);
        },
        close,
        [&](int64_t p) {
          const int64_t at = p * s.pixels;
          plane_gradient<relu, T, A>(above + at, in + at, below + at, s.pixels, saved.mean[p], saved.scale[p],
                                     saved.shift[p], g.scale_dy[p], g.scale_x[p], g.constant[p]);
        });
    return;
  }
  Partials partials(s);
  by_rows(
      s,
      [&](int64_t image, int64_t start, int64_t pixels) {
        std::vector<A> scratch(2 * s.channels);
        const int64_t at = (image * s.pixels + start) * s.channels, p = image * s.channels;
        double* partial = partials.at(image, start);
        rows_dots<relu, T, A>(above + at, in + at, pixels, s.channels, saved.mean + p, saved.scale + p, saved.shift + p,
                              partial, partial + s.channels, scratch.data());
      },
      [&](int64_t image) {
        for (int64_t c = 0; c < s.channels; c++) {
          double sum = 0, dot = 0;
          for (int64_t start = 0; start < s.pixels; start += kChunk) {
            const double* partial = partials.at(image, start) + c;
            sum += partial[0];
            dot += partial[s.channels];
          }
          g.sum_dy[image * s.channels + c] = sum;
          g.dot_dy[image * s.channels + c] = dot;
        }
      },
      close,
      [&](int64_t image, int64_t start, int64_t pixels) {
        const int64_t at = (image * s.pixels + start) * s.channels, p = image * s.channels;
        rows_gradient<relu, T, A>(above + at, in + at, below + at, pixels, s.channels, saved.mean + p, saved.scale + p,
                                  saved.shift + p, g.scale_dy + p, g.scale_x + p, g.constant + p);
      });
}

// ---- The operators ----

#define FOR_DTYPE_AND_RELU(dtype, relu, ...)                                                               \
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, dtype, "batch_channel_norm", [&] {                         \
    using A = at::opmath_type<scalar_t>;                                                                   \
    if (relu) {                                                                                            \
      constexpr bool kReLU = true;                                                                         \
      __VA_ARGS__                                                                                          \
    } else {                                                                                               \
      constexpr bool kReLU = false;                                                                        \
      __VA_ARGS__                                                                                          \
    }                                                                                                      \
  })

// The arguments come from Python, checked; here the kernels' reads and writes are kept inside their tensors.
void check_dense(const Tensor& x) {
  TORCH_CHECK_VALUE(x.is_contiguous() || x.is_contiguous(x.suggest_memory_format()),
                    "expected x to be contiguous or channels-last, got strides ", x.strides());
}

void check_sizes(const Tensor& x, const Tensor& batch_weight, const Tensor& channel_weight) {
  TORCH_CHECK_VALUE(x.dim() >= 2 && x.numel() > 0 && batch_weight.numel() == x.size(1) && channel_weight.numel() > 0 &&
                        x.size(1) % channel_weight.numel() == 0,
                    "expected x of shape (N, C, *), C batch weights and a number of channel weights that divides C, got ",
                    x.sizes(), ", ", batch_weight.sizes(), " and ", channel_weight.sizes());
  check_dense(x);
}

void check_same(const Tensor& expected, std::initializer_list<Tensor> others) {
  for (const Tensor& other : others)
    TORCH_CHECK_VALUE(other.numel() == expected.numel() && other.scalar_type() == expected.scalar_type() &&
                          other.is_contiguous() && other.is_cpu(),
                      "expected contiguous CPU tensors of shape ", expected.sizes(), " and one dtype, got ",
                      other.sizes(), " and ", other.scalar_type());
}

// y and what backward needs. Dense x; parameters and estimates of the arithmetic's dtype.
std::tuple<Tensor, Tensor> forward_cpu(const Tensor& x, const Tensor& batch_weight, const Tensor& batch_bias,
                                       const Tensor& running_mean, const Tensor& running_var,
                                       const Tensor& channel_weight, const Tensor& channel_bias, bool update,
                                       bool batch_statistics, const Tensor& rate, double eps, bool relu,
                                       const optional<Tensor>& skipped_updates) {
  check_sizes(x, batch_weight, channel_weight);
  check_same(batch_weight, {batch_weight, batch_bias, running_mean, running_var});
  check_same(channel_weight, {channel_weight, channel_bias});
  TORCH_CHECK_VALUE(!skipped_updates || skipped_updates->numel() == x.size(1), "expected a counter for every channel");
  const Sizes s(x, channel_weight.numel());
  // In the recomputation of a checkpointed segment the estimates have been updated already
  update = update && torch::autograd::get_current_graph_task_id() == -1;
  Tensor y = at::empty_like(x);
  Tensor kept;
  FOR_DTYPE_AND_RELU(x.scalar_type(), relu, {
    kept = at::empty({Saved<A>::size(s)}, batch_weight.options());
    const Saved<A> saved(kept.mutable_data_ptr<A>(), s);
    const Parameters<A> parameters{batch_weight.const_data_ptr<A>(), batch_bias.const_data_ptr<A>(),
                                   channel_weight.const_data_ptr<A>(), channel_bias.const_data_ptr<A>()};
    const Estimates<A> estimates{running_mean.data_ptr<A>(), running_var.data_ptr<A>(),
                                 skipped_updates ? skipped_updates->data_ptr<int64_t>() : nullptr,
                                 update ? rate.item<double>() : 0};
    forward<scalar_t, kReLU>(x, y, s, saved, parameters, estimates, update, batch_statistics, eps);
  });
  return {y, kept};
}

// Gradients of x, batch_weight, batch_bias, channel_weight, channel_bias. dy has x's strides.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& kept,
                                                                const Tensor& batch_weight,
                                                                const Tensor& channel_weight, bool batch_statistics,
                                                                bool relu) {
  check_sizes(x, batch_weight, channel_weight);
  TORCH_CHECK_VALUE(dy.sizes() == x.sizes() && dy.strides() == x.strides(), "expected dy like x, got ", dy.sizes());
  const Sizes s(x, channel_weight.numel());
  Tensor dx = at::empty_like(x);
  Tensor d_batch_weight = at::empty_like(batch_weight), d_batch_bias = at::empty_like(batch_weight);
  Tensor d_channel_weight = at::empty_like(channel_weight), d_channel_bias = at::empty_like(channel_weight);
  std::vector<double> sums(2 * s.planes);
  FOR_DTYPE_AND_RELU(x.scalar_type(), relu, {
    std::vector<A> map(3 * s.planes);
    const Gradients<A> gradients{sums.data(), sums.data() + s.planes, map.data(), map.data() + s.planes,
                                 map.data() + 2 * s.planes, d_batch_weight.data_ptr<A>(), d_batch_bias.data_ptr<A>(),
                                 d_channel_weight.data_ptr<A>(), d_channel_bias.data_ptr<A>()};
    backward<scalar_t, kReLU>(dy, x, dx, s, Saved<A>(kept.data_ptr<A>(), s), batch_weight.const_data_ptr<A>(),
                              channel_weight.const_data_ptr<A>(), gradients, batch_statistics);
  });
  return {dx, d_batch_weight, d_batch_bias, d_channel_weight, d_channel_bias};
}

// The output of a forward pass again, from what it kept, whatever has become of the estimates.
Tensor map_cpu(const Tensor& x, const Tensor& kept, bool relu) {
  check_dense(x);
  const Sizes s(x, 1);
  Tensor y = at::empty_like(x);
  FOR_DTYPE_AND_RELU(x.scalar_type(), relu, {
    TORCH_CHECK_VALUE(kept.numel() == Saved<A>::size(s), "expected what the forward pass of x kept");
    const auto* in = x.const_data_ptr<scalar_t>();
    const Saved<A> saved(kept.data_ptr<A>(), s);
    const auto nothing = [](auto...) {};
    if (s.channels_last)
      by_rows(s, nothing, nothing, nothing, map_of_rows<kReLU>(in, y.data_ptr<scalar_t>(), s, saved));
    else
      by_groups(s, nothing, nothing, map_of_plane<kReLU>(in, y.data_ptr<scalar_t>(), s, saved));
  });
  return y;
}

template <typename Operator>
auto lookup(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Operator>();
}

class BatchChannelNorm : public torch::autograd::Function<BatchChannelNorm> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& batch_weight,
                        const Tensor& batch_bias, const Tensor& running_mean, const Tensor& running_var,
                        const Tensor& channel_weight, const Tensor& channel_bias, bool update, bool batch_statistics,
                        const Tensor& rate, double eps, bool relu, const optional<Tensor>& skipped_updates) {
    static const auto run = lookup<decltype(forward_cpu)>("wsbcn::batch_channel_norm_forward");
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [y, kept] = run.call(x, batch_weight, batch_bias, running_mean, running_var, channel_weight, channel_bias,
                              update, batch_statistics, rate, eps, relu, skipped_updates);
    context->save_for_backward({x, kept, batch_weight, channel_weight});
    context->saved_data["batch_statistics"] = batch_statistics;
    context->saved_data["relu"] = relu;
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list above) {
    static const auto run = lookup<decltype(backward_cpu)>("wsbcn::batch_channel_norm_backward");
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "the C++ batch_channel_norm has no second derivative; choose the one that has by impl='reference' or "
                "WSBCN_IMPL=reference");
    const auto saved = context->get_saved_variables();
    const Tensor& x = saved[0];
    auto [dx, d_batch_weight, d_batch_bias, d_channel_weight, d_channel_bias] =
        run.call(above[0].contiguous(x.is_contiguous() ? at::MemoryFormat::Contiguous : x.suggest_memory_format()), x,
                 saved[1], saved[2], saved[3], context->saved_data["batch_statistics"].toBool(),
                 context->saved_data["relu"].toBool());
    const Tensor none;
    return {dx,   d_batch_weight, d_batch_bias, none, none, d_channel_weight, d_channel_bias,
            none, none,           none,         none, none, none};
  }
};

// A tensor as the kernels take it. Most are so already, and two operators that return their argument cost microseconds.
Tensor dense_as(const Tensor& tensor, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype && tensor.is_contiguous() ? tensor : tensor.to(dtype).contiguous();
}

// A buffer, which may be a copy that must be written back.
struct Buffer {
  Buffer(const Tensor& tensor, at::ScalarType dtype) : tensor(tensor), dense(dense_as(tensor, dtype)) {}

  void write_back() const {
    if (!dense.is_same(tensor)) tensor.copy_(dense);
  }

  const Tensor tensor, dense;
};

Tensor batch_channel_norm(const Tensor& x, const Tensor& batch_weight, const Tensor& batch_bias,
                          const Tensor& running_mean, const Tensor& running_var, const Tensor& channel_weight,
                          const Tensor& channel_bias, bool update, bool batch_statistics, const Tensor& rate,
                          double eps, bool relu, const optional<Tensor>& skipped_updates) {
  const auto dtype = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Buffer mean(running_mean, dtype), variance(running_var, dtype);
  optional<Buffer> skipped;
  if (skipped_updates) skipped.emplace(*skipped_updates, at::kLong);
  Tensor y = BatchChannelNorm::apply(
      x.is_contiguous() ? x : x.contiguous(x.suggest_memory_format()), dense_as(batch_weight, dtype),
      dense_as(batch_bias, dtype), mean.dense, variance.dense, dense_as(channel_weight, dtype),
      dense_as(channel_bias, dtype), update, batch_statistics, rate, eps, relu,
      skipped ? optional<Tensor>(skipped->dense) : std::nullopt);
  if (update) {
    mean.write_back();
    variance.write_back();
    if (skipped) skipped->write_back();
  }
  return y;
}

#define FORWARD_ARGUMENTS                                                                                   \
  "(Tensor x, Tensor batch_weight, Tensor batch_bias, Tensor(a!) running_mean, Tensor(b!) running_var, "    \
  "Tensor channel_weight, Tensor channel_bias, bool update, bool batch_statistics, Tensor rate, float eps, " \
  "bool relu, Tensor(c!)? skipped_updates) -> "

}  // namespace

TORCH_LIBRARY_FRAGMENT(wsbcn, library) {
  library.def("batch_channel_norm" FORWARD_ARGUMENTS "Tensor", batch_channel_norm);
  library.def("batch_channel_norm_forward" FORWARD_ARGUMENTS "(Tensor, Tensor)");
  library.def(
      "batch_channel_norm_backward(Tensor dy, Tensor x, Tensor kept, Tensor batch_weight, Tensor channel_weight, "
      "bool batch_statistics, bool relu) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def("batch_channel_norm_map(Tensor x, Tensor kept, bool relu) -> Tensor");
}

TORCH_LIBRARY_IMPL(wsbcn, CPU, library) {
  library.impl("batch_channel_norm_forward", forward_cpu);
  library.impl("batch_channel_norm_backward", backward_cpu);
  library.impl("batch_channel_norm_map", map_cpu);
}

}  // namespace wsbcn
