// What the reference ops need of their number type: float, double, or std::complex<double> for
// derivatives by a complex step (Squire and Trapp 1998): with f real-analytic, Im f(x + ih) / h is
// f'(x) without any subtraction, so h may be 1e-50. It needs functions free of abs and conj; order
// is decided by the real part.
#pragma once

#include <cmath>
#include <complex>
#include <cstdint>

namespace openmoe::ref {

using Index = std::int64_t;

inline float real_part(float x) {
  return x;
}
inline double real_part(double x) {
  return x;
}
inline double real_part(const std::complex<double>& x) {
  return x.real();
}

template <typename T>
T larger(const T& a, const T& b) {
  return real_part(a) < real_part(b) ? b : a;
}

// 1 / (1 + e^-x)
template <typename T>
T sigmoid(const T& x) {
  using std::exp;
  return T(1) / (T(1) + exp(-x));
}

// log(sum over n of e^x[i]), -infinity for n = 0 is not supported.
template <typename T>
T log_sum_exp(const T* x, Index n) {
  using std::exp;
  using std::log;
  T top = x[0];
  for (Index i = 1; i < n; ++i) top = larger(top, x[i]);
  T sum(0);
  for (Index i = 0; i < n; ++i) sum += exp(x[i] - top);
  return top + log(sum);
}

}  // namespace openmoe::ref
