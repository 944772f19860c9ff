// cuBLAS: operations of vectors with vectors and matrices, and the matrix operations that are no product.
#include "blas/blas.h"
#include <cmath>
#include <vector>

using namespace sim::blas;

namespace {

template <class T>
T element(const T *a, int64_t ld, int op, int64_t row, int64_t column) {  // of op(A)
  const T value = op ? a[column + row * ld] : a[row + column * ld];
  return op == ADJOINT ? conjugate(value) : value;
}

template <class T>
int gemv(int op, int m, int n, T alpha, const T *a, int64_t lda, const T *x, int64_t step_x, T beta, T *y,
         int64_t step_y) {
  if (m < 0 || n < 0 || lda < std::max(1, m) || !step_x || !step_y) return INVALID_VALUE;
  const int rows = op ? n : m, columns = op ? m : n;
  if (!rows) return SUCCESS;
  if (!matrix_on_device(a, m, n, lda) || !vector_on_device(x, columns, step_x) || !vector_on_device(y, rows, step_y))
    return EXECUTION_FAILED;
  x = first(x, columns, step_x);
  y = first(y, rows, step_y);
  for (int i = 0; i < rows; i++) {
    T sum(0);
    for (int j = 0; j < columns; j++) sum += element(a, lda, op, i, j) * x[j * step_x];
    y[i * step_y] = beta == T(0) ? alpha * sum : alpha * sum + beta * y[i * step_y];
  }
  return SUCCESS;
}
template <class T>
int axpy(int64_t n, T alpha, const T *x, int64_t step_x, T *y, int64_t step_y) {
  if (n <= 0) return SUCCESS;
  if (!vector_on_device(x, n, step_x) || !vector_on_device(y, n, step_y)) return EXECUTION_FAILED;
  x = first(x, n, step_x);
  y = first(y, n, step_y);
  for (int64_t i = 0; i < n; i++) y[i * step_y] += alpha * x[i * step_x];
  return SUCCESS;
}
template <class T, class Factor>
int scal(int64_t n, Factor alpha, T *x, int64_t step) {
  if (n <= 0 || step <= 0) return SUCCESS;
  if (!vector_on_device(x, n, step)) return EXECUTION_FAILED;
  for (int64_t i = 0; i < n; i++) x[i * step] *= alpha;
  return SUCCESS;
}
template <class T>
int dot(int64_t n, const T *x, int64_t step_x, const T *y, int64_t step_y, T *out, bool conjugated) {
  T sum(0);
  if (n > 0) {
    if (!vector_on_device(x, n, step_x) || !vector_on_device(y, n, step_y)) return EXECUTION_FAILED;
    x = first(x, n, step_x);
    y = first(y, n, step_y);
    for (int64_t i = 0; i < n; i++) sum += (conjugated ? conjugate(x[i * step_x]) : x[i * step_x]) * y[i * step_y];
  }
  *out = sum;
  return SUCCESS;
}
template <class T>
int ger(int m, int n, T alpha, const T *x, int64_t step_x, const T *y, int64_t step_y, T *a, int64_t lda,
        bool conjugated) {
  if (m <= 0 || n <= 0) return SUCCESS;
  if (!vector_on_device(x, m, step_x) || !vector_on_device(y, n, step_y) || !matrix_on_device(a, m, n, lda))
    return EXECUTION_FAILED;
  x = first(x, m, step_x);
  y = first(y, n, step_y);
  for (int64_t j = 0; j < n; j++)
    for (int64_t i = 0; i < m; i++)
      a[i + j * lda] += alpha * x[i * step_x] * (conjugated ? conjugate(y[j * step_y]) : y[j * step_y]);
  return SUCCESS;
}

template <class T>
auto magnitude(T x) {
  return std::abs(x);
}
template <class R>
R magnitude(std::complex<R> x) {  // as BLAS defines it for amax and asum
  return std::fabs(x.real()) + std::fabs(x.imag());
}
template <class T>
int index_of_extreme(int64_t n, const T *x, int64_t step, int *out, bool largest) {
  *out = 0;
  if (n < 1 || step < 1) return SUCCESS;
  if (!vector_on_device(x, n, step)) return EXECUTION_FAILED;
  int64_t best = 0;
  for (int64_t i = 1; i < n; i++) {
    const auto value = magnitude(x[i * step]), known = magnitude(x[best * step]);
    if (largest ? value > known : value < known) best = i;
  }
  *out = (int)best + 1;  // counted from 1
  return SUCCESS;
}
template <class T, class R>
int norm(int64_t n, const T *x, int64_t step, R *out) {
  double sum = 0;
  if (n > 0 && step > 0) {
    if (!vector_on_device(x, n, step)) return EXECUTION_FAILED;
    for (int64_t i = 0; i < n; i++) sum += std::norm(x[i * step]);
  }
  *out = (R)std::sqrt(sum);
  return SUCCESS;
}
template <class T, class R>
int sum_of_magnitudes(int64_t n, const T *x, int64_t step, R *out) {
  double sum = 0;
  if (n > 0 && step > 0) {
    if (!vector_on_device(x, n, step)) return EXECUTION_FAILED;
    for (int64_t i = 0; i < n; i++) sum += magnitude(x[i * step]);
  }
  *out = (R)sum;
  return SUCCESS;
}

// C = alpha op(A) + beta op(B); C may be A or B
template <class T>
int geam(int op_a, int op_b, int64_t m, int64_t n, T alpha, const T *a, int64_t lda, T beta, const T *b, int64_t ldb,
         T *c, int64_t ldc) {
  if (m <= 0 || n <= 0) return SUCCESS;
  if (alpha != T(0) && !matrix_on_device(a, op_a ? n : m, op_a ? m : n, lda)) return EXECUTION_FAILED;
  if (beta != T(0) && !matrix_on_device(b, op_b ? n : m, op_b ? m : n, ldb)) return EXECUTION_FAILED;
  if (!matrix_on_device(c, m, n, ldc)) return EXECUTION_FAILED;
  std::vector<T> sum((size_t)(m * n), T(0));
  for (int64_t j = 0; j < n; j++)
    for (int64_t i = 0; i < m; i++) {
      if (alpha != T(0)) sum[i + j * m] += alpha * element(a, lda, op_a, i, j);
      if (beta != T(0)) sum[i + j * m] += beta * element(b, ldb, op_b, i, j);
    }
  for (int64_t j = 0; j < n; j++) std::copy_n(&sum[j * m], m, c + j * ldc);
  return SUCCESS;
}
// C = diag(x) A from the left (side 0) or A diag(x) from the right
template <class T>
int dgmm(int side, int64_t m, int64_t n, const T *a, int64_t lda, const T *x, int64_t step, T *c, int64_t ldc) {
  const int64_t length = side == 0 ? m : n;
  if (m <= 0 || n <= 0) return SUCCESS;
  if (!matrix_on_device(a, m, n, lda) || !vector_on_device(x, length, step) || !matrix_on_device(c, m, n, ldc))
    return EXECUTION_FAILED;
  x = first(x, length, step);
  for (int64_t j = 0; j < n; j++)
    for (int64_t i = 0; i < m; i++) c[i + j * ldc] = a[i + j * lda] * x[(side == 0 ? i : j) * step];
  return SUCCESS;
}
// C = alpha op(A) op(A)^T + beta C; only the lower (uplo 0) or upper triangle of C is used
template <class T>
int syrk(int uplo, int op, int64_t n, int64_t k, T alpha, const T *a, int64_t lda, T beta, T *c, int64_t ldc) {
  if (n <= 0) return SUCCESS;
  if (!matrix_on_device(a, op ? k : n, op ? n : k, lda) || !matrix_on_device(c, n, n, ldc)) return EXECUTION_FAILED;
  const int transposed = op ? TRANSPOSED : AS_IS;
  for (int64_t j = 0; j < n; j++)
    for (int64_t i = 0; i < n; i++) {
      if (uplo == 0 ? i < j : i > j) continue;
      T sum(0);
      for (int64_t p = 0; p < k; p++) sum += element(a, lda, transposed, i, p) * element(a, lda, transposed, j, p);
      c[i + j * ldc] = beta == T(0) ? alpha * sum : alpha * sum + beta * c[i + j * ldc];
    }
  return SUCCESS;
}

}  // namespace

#define FOR_EACH_TYPE(letter, T)                                                                                    \
  API int cublas##letter##gemv_v2(Handle *h, int op, int m, int n, const T *alpha, const T *a, int lda, const T *x, \
                                  int step_x, const T *beta, T *y, int step_y) {                                    \
    begin(h, "blas_other", "cublas" #letter "gemv");                                                                \
    return gemv<T>(op, m, n, *alpha, a, lda, x, step_x, *beta, y, step_y);                                          \
  }                                                                                                                 \
  API int cublas##letter##axpy_v2(Handle *h, int n, const T *alpha, const T *x, int step_x, T *y, int step_y) {     \
    begin(h, "blas_other", "cublas" #letter "axpy");                                                                \
    return axpy<T>(n, *alpha, x, step_x, y, step_y);                                                                \
  }                                                                                                                 \
  API int cublas##letter##scal_v2(Handle *h, int n, const T *alpha, T *x, int step) {                               \
    begin(h, "blas_other", "cublas" #letter "scal");                                                                \
    return scal(n, *alpha, x, step);                                                                                \
  }                                                                                                                 \
  API int cublas##letter##geam(Handle *h, int op_a, int op_b, int m, int n, const T *alpha, const T *a, int lda,    \
                               const T *beta, const T *b, int ldb, T *c, int ldc) {                                 \
    begin(h, "blas_other", "cublas" #letter "geam");                                                                \
    return geam<T>(op_a, op_b, m, n, *alpha, a, lda, *beta, b, ldb, c, ldc);                                        \
  }                                                                                                                 \
  API int cublas##letter##dgmm(Handle *h, int side, int m, int n, const T *a, int lda, const T *x, int step, T *c,  \
                               int ldc) {                                                                           \
    begin(h, "blas_other", "cublas" #letter "dgmm");                                                                \
    return dgmm<T>(side, m, n, a, lda, x, step, c, ldc);                                                            \
  }                                                                                                                 \
  API int cublas##letter##syrk_v2(Handle *h, int uplo, int op, int n, int k, const T *alpha, const T *a, int lda,   \
                                  const T *beta, T *c, int ldc) {                                                   \
    begin(h, "blas_other", "cublas" #letter "syrk");                                                                \
    return syrk<T>(uplo, op, n, k, *alpha, a, lda, *beta, c, ldc);                                                  \
  }
FOR_EACH_TYPE(S, float)
FOR_EACH_TYPE(D, double)
FOR_EACH_TYPE(C, ComplexFloat)
FOR_EACH_TYPE(Z, ComplexDouble)

#define SCALE_BY_REAL(name, T, R)                                  \
  API int name(Handle *h, int n, const R *alpha, T *x, int step) { \
    begin(h, "blas_other", #name);                                 \
    return scal(n, *alpha, x, step);                               \
  }
SCALE_BY_REAL(cublasCsscal_v2, ComplexFloat, float)
SCALE_BY_REAL(cublasZdscal_v2, ComplexDouble, double)

#define DOT(name, T, conjugated)                                                           \
  API int name(Handle *h, int n, const T *x, int step_x, const T *y, int step_y, T *out) { \
    begin(h, "blas_other", #name);                                                         \
    return dot<T>(n, x, step_x, y, step_y, out, conjugated);                               \
  }
DOT(cublasSdot_v2, float, false)
DOT(cublasDdot_v2, double, false)
DOT(cublasCdotu_v2, ComplexFloat, false)
DOT(cublasCdotc_v2, ComplexFloat, true)
DOT(cublasZdotu_v2, ComplexDouble, false)
DOT(cublasZdotc_v2, ComplexDouble, true)

#define GER(name, T, conjugated)                                                                              \
  API int name(Handle *h, int m, int n, const T *alpha, const T *x, int step_x, const T *y, int step_y, T *a, \
               int lda) {                                                                                     \
    begin(h, "blas_other", #name);                                                                            \
    return ger<T>(m, n, *alpha, x, step_x, y, step_y, a, lda, conjugated);                                    \
  }
GER(cublasSger_v2, float, false)
GER(cublasDger_v2, double, false)
GER(cublasCgeru_v2, ComplexFloat, false)
GER(cublasCgerc_v2, ComplexFloat, true)
GER(cublasZgeru_v2, ComplexDouble, false)
GER(cublasZgerc_v2, ComplexDouble, true)

#define INDEX_OF_EXTREME(name, T, largest)                         \
  API int name(Handle *h, int n, const T *x, int step, int *out) { \
    begin(h, "blas_other", #name);                                 \
    return index_of_extreme<T>(n, x, step, out, largest);          \
  }
INDEX_OF_EXTREME(cublasIsamax_v2, float, true)
INDEX_OF_EXTREME(cublasIdamax_v2, double, true)
INDEX_OF_EXTREME(cublasIcamax_v2, ComplexFloat, true)
INDEX_OF_EXTREME(cublasIzamax_v2, ComplexDouble, true)
INDEX_OF_EXTREME(cublasIsamin_v2, float, false)
INDEX_OF_EXTREME(cublasIdamin_v2, double, false)
INDEX_OF_EXTREME(cublasIcamin_v2, ComplexFloat, false)
INDEX_OF_EXTREME(cublasIzamin_v2, ComplexDouble, false)

#define REDUCTION(name, function, T, R)                          \
  API int name(Handle *h, int n, const T *x, int step, R *out) { \
    begin(h, "blas_other", #name);                               \
    return function<T, R>(n, x, step, out);                      \
  }
REDUCTION(cublasSnrm2_v2, norm, float, float)
REDUCTION(cublasDnrm2_v2, norm, double, double)
REDUCTION(cublasScnrm2_v2, norm, ComplexFloat, float)
REDUCTION(cublasDznrm2_v2, norm, ComplexDouble, double)
REDUCTION(cublasSasum_v2, sum_of_magnitudes, float, float)
REDUCTION(cublasDasum_v2, sum_of_magnitudes, double, double)
REDUCTION(cublasScasum_v2, sum_of_magnitudes, ComplexFloat, float)
REDUCTION(cublasDzasum_v2, sum_of_magnitudes, ComplexDouble, double)
