// Reference Adafactor update (Shazeer and Stern 2018, algorithm 4 with parameter scaling, in the
// t5x variant). See core/ops.h.
#pragma once

#include <vector>

#include "core/ref/number.h"

namespace openmoe::ref {

struct AdafactorScalars {
  double learning_rate, decay, clip_threshold, epsilon_square, epsilon_scale;
};

// decay * old + (1 - decay) * fresh; with decay 0, the first step, `old` is not read: it may hold
// anything.
template <typename T>
T running_mean(const T& old, const T& fresh, double decay) {
  return decay == 0.0 ? fresh : T(decay) * old + T(1.0 - decay) * fresh;
}

// w -= learning_rate * max(rms(w), epsilon_scale) * u / max(1, rms(u) / clip_threshold) over one
// matrix of n elements.
template <typename T>
void adafactor_apply(T* w, const T* u, const AdafactorScalars& scalars, Index n) {
  using std::sqrt;
  T w_square(0), u_square(0);
  for (Index i = 0; i < n; ++i) {
    w_square += w[i] * w[i];
    u_square += u[i] * u[i];
  }
  const T size(static_cast<double>(n));
  const T scale = larger(T(sqrt(w_square / size)), T(scalars.epsilon_scale));
  const T clip = larger(T(sqrt(u_square / size)) / T(scalars.clip_threshold), T(1));
  for (Index i = 0; i < n; ++i) w[i] -= T(scalars.learning_rate) * scale * u[i] / clip;
}

// w, g (stack, R, C), row (stack, R), col (stack, C)
template <typename T>
void adafactor_factored(T* w, T* row, T* col, const T* g, const AdafactorScalars& scalars,
                        Index stack, Index R, Index C) {
  using std::sqrt;
  std::vector<T> u(static_cast<std::size_t>(R * C));
  for (Index s = 0; s < stack; ++s, w += R * C, g += R * C, row += R, col += C) {
    T row_mean(0);
    for (Index r = 0; r < R; ++r) {
      T sum(0);
      for (Index c = 0; c < C; ++c) sum += g[r * C + c] * g[r * C + c] + T(scalars.epsilon_square);
      row[r] = running_mean(row[r], sum / T(static_cast<double>(C)), scalars.decay);
      row_mean += row[r] / T(static_cast<double>(R));
    }
    for (Index c = 0; c < C; ++c) {
      T sum(0);
      for (Index r = 0; r < R; ++r) sum += g[r * C + c] * g[r * C + c] + T(scalars.epsilon_square);
      col[c] = running_mean(col[c], sum / T(static_cast<double>(R)), scalars.decay);
    }
    for (Index r = 0; r < R; ++r)
      for (Index c = 0; c < C; ++c)
        u[static_cast<std::size_t>(r * C + c)] =
            g[r * C + c] / (sqrt(row[r] / row_mean) * sqrt(col[c]));
    adafactor_apply(w, u.data(), scalars, R * C);
  }
}

// w, v, g (n)
template <typename T>
void adafactor_full(T* w, T* v, const T* g, const AdafactorScalars& scalars, Index n) {
  using std::sqrt;
  std::vector<T> u(static_cast<std::size_t>(n));
  for (Index i = 0; i < n; ++i) {
    v[i] = running_mean(v[i], T(g[i] * g[i] + T(scalars.epsilon_square)), scalars.decay);
    u[static_cast<std::size_t>(i)] = g[i] / sqrt(v[i]);
  }
  adafactor_apply(w, u.data(), scalars, n);
}

}  // namespace openmoe::ref
