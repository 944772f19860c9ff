// What the files of the cuBLAS replacement share. Matrices are column-major, as in BLAS.
#pragma once
#include "common/api.h"
#include "common/small_floats.h"
#include <algorithm>
#include <complex>
#include <cstdint>
#include <cstdio>

namespace sim::blas {

using ComplexFloat = std::complex<float>;
using ComplexDouble = std::complex<double>;

enum Status { SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum Operation { AS_IS = 0, TRANSPOSED = 1, ADJOINT = 2 };  // other than AS_IS: cublasOperation_t of real types, too

struct Handle {
  void *stream = nullptr;
  int pointer_mode = 0, math_mode = 0;
};

// Begins a call: counts and notes it, and runs the work that its stream depends on.
inline void begin(Handle *h, const char *counter, const char *name) {
  cudasim_count(counter);
  cudasim_note(name);
  cudasim_stream_flush(h->stream);
}

inline ComplexFloat conjugate(ComplexFloat x) { return std::conj(x); }
inline ComplexDouble conjugate(ComplexDouble x) { return std::conj(x); }
template <class T>
T conjugate(T x) {
  return x;
}

// Whether all elements are in one allocation on the device; if not, says so. A GPU would fault, or go on in silence.
template <class T>
bool on_device(const T *p, int64_t elements) {
  if (cudasim_is_device(p, (uint64_t)elements * sizeof(T))) return true;
  char text[120];
  snprintf(text, sizeof text, "cuBLAS was given %lld elements at %p that are not device memory", (long long)elements,
           (const void *)p);
  cudasim_warn(text);
  return false;
}
template <class T>
bool matrix_on_device(const T *p, int64_t rows, int64_t columns, int64_t ld) {
  return rows == 0 || columns == 0 || on_device(p, (columns - 1) * ld + rows);
}
template <class T>
bool vector_on_device(const T *p, int64_t n, int64_t step) {
  return n == 0 || on_device(p, (n - 1) * std::abs(step) + 1);
}
// The first element of a vector: with a negative step it is the last in memory.
template <class T>
T *first(T *x, int64_t n, int64_t step) {
  return step < 0 ? x - (n - 1) * step : x;
}

}  // namespace sim::blas
