// cuBLAS: products of matrices, C = alpha op(A) op(B) + beta C. Each element is summed over k in ascending order.
#include "blas/blas.h"
#include <type_traits>
#include <vector>

using namespace sim::blas;
using sim::BFloat16;
using sim::Half;

namespace {

template <class Stored, class Sum>
Sum load(const Stored *p) {
  if constexpr (std::is_same_v<Stored, Half> || std::is_same_v<Stored, BFloat16>) return Sum((float)*p);
  else return Sum(*p);
}

struct Shape {
  int op_a, op_b, m, n, k;  // op(A) is m x k, op(B) is k x n
};

// Stored: type of A and B; Sum: type of the arithmetic; Result: type of C.
template <class Stored, class Sum, class Result>
int gemm(Shape s, Sum alpha, const Stored *a, int64_t lda, const Stored *b, int64_t ldb, Sum beta, Result *c,
         int64_t ldc) {
  const auto [op_a, op_b, m, n, k] = s;
  const int a_rows = op_a ? k : m, a_columns = op_a ? m : k, b_rows = op_b ? n : k, b_columns = op_b ? k : n;
  if (m < 0 || n < 0 || k < 0) return INVALID_VALUE;
  if (lda < std::max(1, a_rows) || ldb < std::max(1, b_rows) || ldc < std::max(1, m)) return INVALID_VALUE;
  if (m == 0 || n == 0) return SUCCESS;
  const bool product = k > 0 && alpha != Sum(0);
  if (!matrix_on_device(c, m, n, ldc)) return EXECUTION_FAILED;
  if (product && !(matrix_on_device(a, a_rows, a_columns, lda) && matrix_on_device(b, b_rows, b_columns, ldb)))
    return EXECUTION_FAILED;

  std::vector<Sum> packed(product ? (size_t)m * k : 0), column(m);  // op(A), column after column
  if (product)
    for (int p = 0; p < k; p++)
      for (int i = 0; i < m; i++) {
        const Sum value = op_a ? load<Stored, Sum>(a + p + i * lda) : load<Stored, Sum>(a + i + p * lda);
        packed[(size_t)p * m + i] = op_a == ADJOINT ? conjugate(value) : value;
      }
  for (int j = 0; j < n; j++) {
    std::fill(column.begin(), column.end(), Sum(0));
    if (product)
      for (int p = 0; p < k; p++) {
        Sum factor = op_b ? load<Stored, Sum>(b + j + p * ldb) : load<Stored, Sum>(b + p + j * ldb);
        if (op_b == ADJOINT) factor = conjugate(factor);
        const Sum *from = &packed[(size_t)p * m];
        Sum *to = column.data();
        for (int i = 0; i < m; i++) to[i] += from[i] * factor;
      }
    for (int i = 0; i < m; i++) {
      Result *to = c + i + j * ldc;
      Sum value = alpha * column[i];
      if (beta != Sum(0)) value += beta * load<Result, Sum>(to);  // beta 0: what C holds may be NaN
      *to = Result(value);
    }
  }
  return SUCCESS;
}

// cudaDataType_t and cublasComputeType_t
enum DataType {
  REAL_32 = 0,
  REAL_64 = 1,
  REAL_16 = 2,
  INTEGER_8 = 3,
  COMPLEX_32 = 4,
  COMPLEX_64 = 5,
  INTEGER_32 = 10,
  BFLOAT_16 = 14
};
enum ComputeType {
  COMPUTE_16 = 64,
  COMPUTE_16_PEDANTIC = 65,
  COMPUTE_32 = 68,
  COMPUTE_64 = 70,
  COMPUTE_64_PEDANTIC = 71,
  COMPUTE_INTEGER_32 = 72,
  COMPUTE_INTEGER_32_PEDANTIC = 73
};

double read_scalar(const void *p, int compute_type) {
  switch (compute_type) {
    case COMPUTE_16:
    case COMPUTE_16_PEDANTIC: return (float)*(const Half *)p;
    case COMPUTE_64:
    case COMPUTE_64_PEDANTIC: return *(const double *)p;
    case COMPUTE_INTEGER_32:
    case COMPUTE_INTEGER_32_PEDANTIC: return *(const int32_t *)p;
    default: return *(const float *)p;
  }
}
int size_of(int type) {
  switch (type) {
    case INTEGER_8: return 1;
    case REAL_16:
    case BFLOAT_16: return 2;
    case REAL_32:
    case INTEGER_32: return 4;
    case REAL_64:
    case COMPLEX_32: return 8;
    case COMPLEX_64: return 16;
    default: return 0;
  }
}

struct Operand {  // a matrix of a type known at run time
  const void *data;
  int type;
  int64_t ld;
};
template <class Stored, class Sum, class Result>
int typed_gemm(Shape s, Sum alpha, Operand a, Operand b, Sum beta, Operand c) {
  return gemm<Stored, Sum, Result>(s, alpha, (const Stored *)a.data, a.ld, (const Stored *)b.data, b.ld, beta,
                                   (Result *)c.data, c.ld);
}
int gemm_of_any_type(Shape s, const void *alpha, Operand a, Operand b, const void *beta, Operand c, int compute_type) {
  const auto is = [&](int input, int output) { return a.type == input && b.type == input && c.type == output; };
  if (is(COMPLEX_32, COMPLEX_32))
    return typed_gemm<ComplexFloat, ComplexFloat, ComplexFloat>(s, *(const ComplexFloat *)alpha, a, b,
                                                                *(const ComplexFloat *)beta, c);
  if (is(COMPLEX_64, COMPLEX_64))
    return typed_gemm<ComplexDouble, ComplexDouble, ComplexDouble>(s, *(const ComplexDouble *)alpha, a, b,
                                                                   *(const ComplexDouble *)beta, c);
  const double x = read_scalar(alpha, compute_type), y = read_scalar(beta, compute_type);
  const auto f = (float)x, g = (float)y;
  if (is(REAL_32, REAL_32)) return typed_gemm<float, float, float>(s, f, a, b, g, c);
  if (is(REAL_64, REAL_64)) return typed_gemm<double, double, double>(s, x, a, b, y, c);
  if (is(REAL_16, REAL_16)) return typed_gemm<Half, float, Half>(s, f, a, b, g, c);
  if (is(REAL_16, REAL_32)) return typed_gemm<Half, float, float>(s, f, a, b, g, c);
  if (is(BFLOAT_16, BFLOAT_16)) return typed_gemm<BFloat16, float, BFloat16>(s, f, a, b, g, c);
  if (is(BFLOAT_16, REAL_32)) return typed_gemm<BFloat16, float, float>(s, f, a, b, g, c);
  if (is(INTEGER_8, INTEGER_32))  // summed unsigned, so that it wraps
    return typed_gemm<int8_t, uint32_t, int32_t>(s, (uint32_t)(int)x, a, b, (uint32_t)(int)y, c);
  return NOT_SUPPORTED;
}
Operand at_index(Operand m, int index, long long stride) {
  return {(const char *)m.data + index * stride * size_of(m.type), m.type, m.ld};
}

template <class T>
int gemm_batched(Shape s, const T *alpha, const T *const *a, int lda, const T *const *b, int ldb, const T *beta,
                 T *const *c, int ldc, int batch) {
  for (int k = 0; k < batch; k++)
    if (const int e = gemm<T, T, T>(s, *alpha, a[k], lda, b[k], ldb, *beta, c[k], ldc)) return e;
  return SUCCESS;
}
template <class T>
int gemm_strided(Shape s, const T *alpha, const T *a, int lda, long long stride_a, const T *b, int ldb,
                 long long stride_b, const T *beta, T *c, int ldc, long long stride_c, int batch) {
  for (int k = 0; k < batch; k++)
    if (const int e =
            gemm<T, T, T>(s, *alpha, a + k * stride_a, lda, b + k * stride_b, ldb, *beta, c + k * stride_c, ldc))
      return e;
  return SUCCESS;
}

}  // namespace

#define GEMM(letter, T)                                                                                              \
  API int cublas##letter##gemm_v2(Handle *h, int op_a, int op_b, int m, int n, int k, const T *alpha, const T *a,    \
                                  int lda, const T *b, int ldb, const T *beta, T *c, int ldc) {                      \
    begin(h, "gemm", "cublas" #letter "gemm");                                                                       \
    return gemm<T, T, T>({op_a, op_b, m, n, k}, *alpha, a, lda, b, ldb, *beta, c, ldc);                              \
  }                                                                                                                  \
  API int cublas##letter##gemmBatched(Handle *h, int op_a, int op_b, int m, int n, int k, const T *alpha,            \
                                      const T *const *a, int lda, const T *const *b, int ldb, const T *beta,         \
                                      T *const *c, int ldc, int batch) {                                             \
    begin(h, "gemm", "cublas" #letter "gemmBatched");                                                                \
    return gemm_batched<T>({op_a, op_b, m, n, k}, alpha, a, lda, b, ldb, beta, c, ldc, batch);                       \
  }                                                                                                                  \
  API int cublas##letter##gemmStridedBatched(                                                                        \
      Handle *h, int op_a, int op_b, int m, int n, int k, const T *alpha, const T *a, int lda, long long stride_a,   \
      const T *b, int ldb, long long stride_b, const T *beta, T *c, int ldc, long long stride_c, int batch) {        \
    begin(h, "gemm", "cublas" #letter "gemmStridedBatched");                                                         \
    return gemm_strided<T>({op_a, op_b, m, n, k}, alpha, a, lda, stride_a, b, ldb, stride_b, beta, c, ldc, stride_c, \
                           batch);                                                                                   \
  }
GEMM(S, float)
GEMM(D, double)
GEMM(C, ComplexFloat)
GEMM(Z, ComplexDouble)

API int cublasGemmEx(Handle *h, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int a_type,
                     int lda, const void *b, int b_type, int ldb, const void *beta, void *c, int c_type, int ldc,
                     int compute_type, int) {
  begin(h, "gemm", "cublasGemmEx");
  return gemm_of_any_type({op_a, op_b, m, n, k}, alpha, {a, a_type, lda}, {b, b_type, ldb}, beta, {c, c_type, ldc},
                          compute_type);
}
API int cublasSgemmEx(Handle *h, int op_a, int op_b, int m, int n, int k, const float *alpha, const void *a, int a_type,
                      int lda, const void *b, int b_type, int ldb, const float *beta, void *c, int c_type, int ldc) {
  begin(h, "gemm", "cublasSgemmEx");
  return gemm_of_any_type({op_a, op_b, m, n, k}, alpha, {a, a_type, lda}, {b, b_type, ldb}, beta, {c, c_type, ldc},
                          COMPUTE_32);
}
API int cublasGemmStridedBatchedEx(Handle *h, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a,
                                   int a_type, int lda, long long stride_a, const void *b, int b_type, int ldb,
                                   long long stride_b, const void *beta, void *c, int c_type, int ldc,
                                   long long stride_c, int batch, int compute_type, int) {
  begin(h, "gemm", "cublasGemmStridedBatchedEx");
  for (int i = 0; i < batch; i++)
    if (const int e = gemm_of_any_type({op_a, op_b, m, n, k}, alpha, at_index({a, a_type, lda}, i, stride_a),
                                       at_index({b, b_type, ldb}, i, stride_b), beta,
                                       at_index({c, c_type, ldc}, i, stride_c), compute_type))
      return e;
  return SUCCESS;
}
