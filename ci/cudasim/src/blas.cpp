// The cuBLAS entry points CuPy uses, as plain loops on host memory (column-major).
#include "fp.h"
#include <algorithm>
#include <complex>
#include <cstdio>
#include <cstdlib>
#include <type_traits>
#include <vector>
#define API extern "C" __attribute__((visibility("default")))
extern "C" void cudasim_add(const char *, uint64_t);
extern "C" void cudasim_note(const char *);
extern "C" int cudasim_is_device(const void *);
extern "C" void cudasim_stream_flush(void *);
using sim::b16f;
using sim::h16;
typedef std::complex<float> cf;
typedef std::complex<double> cd;
struct Handle {
  void *stream;
  int pmode, mmode;
};
enum { OK = 0, BADVAL = 7, EXECFAIL = 13, UNSUP = 15 };
template <class T>
static T cj(T x) {
  return x;
}
static inline cf cj(cf x) { return std::conj(x); }
static inline cd cj(cd x) { return std::conj(x); }
static void tick(const char *n, const char *f, Handle *h) {
  cudasim_add(n, 1);
  cudasim_note(f);
  cudasim_stream_flush(h->stream);
}
template <class... P>
static bool dev(P... p) {
  bool ok = true;
  (void)std::initializer_list<int>{(ok = ok && cudasim_is_device((const void *)p), 0)...};
  if (!ok && !getenv("CUDASIM_QUIET"))
    fprintf(stderr, "cudasim: cuBLAS was given a pointer that is not device memory\n");
  return ok;
}

API int cublasCreate_v2(Handle **h) {
  *h = new Handle{nullptr, 0, 0};
  return OK;
}
API int cublasDestroy_v2(Handle *h) {
  delete h;
  return OK;
}
API int cublasSetStream_v2(Handle *h, void *s) {
  h->stream = s;
  return OK;
}
API int cublasGetStream_v2(Handle *h, void **s) {
  *s = h->stream;
  return OK;
}
API int cublasGetVersion_v2(Handle *, int *v) {
  *v = 130000;
  return OK;
}
API int cublasSetPointerMode_v2(Handle *h, int m) {
  h->pmode = m;
  return OK;
}
API int cublasGetPointerMode_v2(Handle *h, int *m) {
  *m = h->pmode;
  return OK;
}
API int cublasSetMathMode(Handle *h, int m) {
  h->mmode = m;
  return OK;
}
API int cublasGetMathMode(Handle *h, int *m) {
  *m = h->mmode;
  return OK;
}

// In: storage type of A and B, Acc: arithmetic type, Out: storage type of C
template <class In, class Acc>
static Acc ld(const In *p) {
  if constexpr (std::is_same<In, h16>::value || std::is_same<In, b16f>::value) return Acc((float)*p);
  else return Acc(*p);
}
template <class In, class Acc, class Out>
static int gemm(int ta, int tb, int m, int n, int k, Acc al, const In *A, int64_t lda, const In *B, int64_t ldb, Acc be,
                Out *C, int64_t ldc) {
  if (m < 0 || n < 0 || k < 0 || lda < std::max(1, ta ? k : m) || ldb < std::max(1, tb ? n : k) || ldc < std::max(1, m))
    return BADVAL;
  if (m == 0 || n == 0) return OK;
  if (!dev(C) || (k > 0 && al != Acc(0) && !dev(A, B))) return EXECFAIL;
  std::vector<Acc> pa((size_t)m * std::max(k, 1)), col(m);
  if (k > 0 && al != Acc(0))
    for (int p = 0; p < k; p++)
      for (int i = 0; i < m; i++) {
        Acc v = ta ? ld<In, Acc>(A + p + i * lda) : ld<In, Acc>(A + i + p * lda);
        pa[(size_t)p * m + i] = ta == 2 ? cj(v) : v;
      }
  for (int j = 0; j < n; j++) {
    std::fill(col.begin(), col.end(), Acc(0));
    if (al != Acc(0))
      for (int p = 0; p < k; p++) {
        Acc b = tb ? ld<In, Acc>(B + j + p * ldb) : ld<In, Acc>(B + p + j * ldb);
        if (tb == 2) b = cj(b);
        const Acc *a = &pa[(size_t)p * m];
        Acc *c = col.data();
        for (int i = 0; i < m; i++) c[i] += a[i] * b;
      }
    for (int i = 0; i < m; i++) {
      Out *c = C + i + j * ldc;
      Acc v = al * col[i];
      if (be != Acc(0)) v += be * ld<Out, Acc>(c);
      *c = Out(v);
    }
  }
  return OK;
}
#define GEMM(L, T)                                                                                                   \
  API int cublas##L##gemm_v2(Handle *h_, int ta, int tb, int m, int n, int k, const T *al, const T *A, int lda,      \
                             const T *B, int ldb, const T *be, T *C, int ldc) {                                      \
    tick("gemm", "cublas" #L "gemm", h_);                                                                            \
    return gemm<T, T, T>(ta, tb, m, n, k, *al, A, lda, B, ldb, *be, C, ldc);                                         \
  }                                                                                                                  \
  API int cublas##L##gemmBatched(Handle *h_, int ta, int tb, int m, int n, int k, const T *al, const T *const *A,    \
                                 int lda, const T *const *B, int ldb, const T *be, T *const *C, int ldc, int bc) {   \
    tick("gemm", "cublas" #L "gemmBatched", h_);                                                                     \
    for (int b = 0; b < bc; b++)                                                                                     \
      if (int e = gemm<T, T, T>(ta, tb, m, n, k, *al, A[b], lda, B[b], ldb, *be, C[b], ldc)) return e;               \
    return OK;                                                                                                       \
  }                                                                                                                  \
  API int cublas##L##gemmStridedBatched(Handle *h_, int ta, int tb, int m, int n, int k, const T *al, const T *A,    \
                                        int lda, long long sa, const T *B, int ldb, long long sb, const T *be, T *C, \
                                        int ldc, long long sc, int bc) {                                             \
    tick("gemm", "cublas" #L "gemmStridedBatched", h_);                                                              \
    for (int b = 0; b < bc; b++)                                                                                     \
      if (int e = gemm<T, T, T>(ta, tb, m, n, k, *al, A + b * sa, lda, B + b * sb, ldb, *be, C + b * sc, ldc))       \
        return e;                                                                                                    \
    return OK;                                                                                                       \
  }
GEMM(S, float)
GEMM(D, double) GEMM(C, cf) GEMM(Z, cd)

    static double scalar(const void *p, int ct) {
  switch (ct) {
    case 64:
    case 65: return (float)*(const h16 *)p;
    case 70:
    case 71: return *(const double *)p;
    case 72:
    case 73: return *(const int32_t *)p;
    default: return *(const float *)p;
  }
}
static int tsize(int t) {
  switch (t) {
    case 0:
    case 10: return 4;
    case 1:
    case 4: return 8;
    case 2:
    case 14: return 2;
    case 3: return 1;
    case 5: return 16;
  }
  return 0;
}
static int gemm_any(int ta, int tb, int m, int n, int k, const void *al, const char *A, int at, int64_t lda,
                    const char *B, int bt, int64_t ldb, const void *be, char *C, int ct, int64_t ldc, int comp) {
  if (at != bt) return UNSUP;
  if (at == 4 && ct == 4)
    return gemm<cf, cf, cf>(ta, tb, m, n, k, *(const cf *)al, (const cf *)A, lda, (const cf *)B, ldb, *(const cf *)be,
                            (cf *)C, ldc);
  if (at == 5 && ct == 5)
    return gemm<cd, cd, cd>(ta, tb, m, n, k, *(const cd *)al, (const cd *)A, lda, (const cd *)B, ldb, *(const cd *)be,
                            (cd *)C, ldc);
  double a = scalar(al, comp), b = scalar(be, comp);
  if (at == 0 && ct == 0)
    return gemm<float, float, float>(ta, tb, m, n, k, a, (const float *)A, lda, (const float *)B, ldb, b, (float *)C,
                                     ldc);
  if (at == 1 && ct == 1)
    return gemm<double, double, double>(ta, tb, m, n, k, a, (const double *)A, lda, (const double *)B, ldb, b,
                                        (double *)C, ldc);
  if (at == 2 && ct == 2)
    return gemm<h16, float, h16>(ta, tb, m, n, k, a, (const h16 *)A, lda, (const h16 *)B, ldb, b, (h16 *)C, ldc);
  if (at == 2 && ct == 0)
    return gemm<h16, float, float>(ta, tb, m, n, k, a, (const h16 *)A, lda, (const h16 *)B, ldb, b, (float *)C, ldc);
  if (at == 14 && ct == 14)
    return gemm<b16f, float, b16f>(ta, tb, m, n, k, a, (const b16f *)A, lda, (const b16f *)B, ldb, b, (b16f *)C, ldc);
  if (at == 14 && ct == 0)
    return gemm<b16f, float, float>(ta, tb, m, n, k, a, (const b16f *)A, lda, (const b16f *)B, ldb, b, (float *)C, ldc);
  if (at == 3 && ct == 10)
    return gemm<int8_t, int32_t, int32_t>(ta, tb, m, n, k, (int)a, (const int8_t *)A, lda, (const int8_t *)B, ldb,
                                          (int)b, (int32_t *)C, ldc);
  return UNSUP;
}
API int cublasGemmEx(Handle *h_, int ta, int tb, int m, int n, int k, const void *al, const void *A, int at, int lda,
                     const void *B, int bt, int ldb, const void *be, void *C, int ct, int ldc, int comp, int) {
  tick("gemm", "cublasGemmEx", h_);
  return gemm_any(ta, tb, m, n, k, al, (const char *)A, at, lda, (const char *)B, bt, ldb, be, (char *)C, ct, ldc,
                  comp);
}
API int cublasSgemmEx(Handle *h_, int ta, int tb, int m, int n, int k, const float *al, const void *A, int at, int lda,
                      const void *B, int bt, int ldb, const float *be, void *C, int ct, int ldc) {
  tick("gemm", "cublasSgemmEx", h_);
  return gemm_any(ta, tb, m, n, k, al, (const char *)A, at, lda, (const char *)B, bt, ldb, be, (char *)C, ct, ldc, 68);
}
API int cublasGemmStridedBatchedEx(Handle *h_, int ta, int tb, int m, int n, int k, const void *al, const void *A,
                                   int at, int lda, long long sa, const void *B, int bt, int ldb, long long sb,
                                   const void *be, void *C, int ct, int ldc, long long sc, int bc, int comp, int) {
  tick("gemm", "cublasGemmStridedBatchedEx", h_);
  for (int b = 0; b < bc; b++)
    if (int e =
            gemm_any(ta, tb, m, n, k, al, (const char *)A + b * sa * tsize(at), at, lda,
                     (const char *)B + b * sb * tsize(bt), bt, ldb, be, (char *)C + b * sc * tsize(ct), ct, ldc, comp))
      return e;
  return OK;
}

template <class T>
static int gemv(int ta, int m, int n, T al, const T *A, int64_t lda, const T *x, int64_t ix, T be, T *y, int64_t iy) {
  if (m < 0 || n < 0 || lda < std::max(1, m) || !ix || !iy) return BADVAL;
  int ny = ta ? n : m, nx = ta ? m : n;
  if (!ny) return OK;
  if (!dev(A, x, y)) return EXECFAIL;
  if (ix < 0) x -= (nx - 1) * ix;
  if (iy < 0) y -= (ny - 1) * iy;
  for (int i = 0; i < ny; i++) {
    T s(0);
    for (int j = 0; j < nx; j++) {
      T a = ta ? A[j + i * lda] : A[i + j * lda];
      if (ta == 2) a = cj(a);
      s += a * x[j * ix];
    }
    y[i * iy] = be == T(0) ? al * s : al * s + be * y[i * iy];
  }
  return OK;
}
template <class T>
static T dotp(int n, const T *x, int64_t ix, const T *y, int64_t iy, bool c) {
  T s(0);
  if (ix < 0) x -= (n - 1) * ix;
  if (iy < 0) y -= (n - 1) * iy;
  for (int i = 0; i < n; i++) s += (c ? cj(x[i * ix]) : x[i * ix]) * y[i * iy];
  return s;
}
template <class T>
static void ger(int m, int n, T al, const T *x, int64_t ix, const T *y, int64_t iy, T *A, int64_t lda, bool c) {
  for (int j = 0; j < n; j++)
    for (int i = 0; i < m; i++) A[i + j * lda] += al * x[i * ix] * (c ? cj(y[j * iy]) : y[j * iy]);
}
template <class T>
static auto mag(T x) {
  return std::abs(x);
}
static inline float mag(cf x) { return std::fabs(x.real()) + std::fabs(x.imag()); }
static inline double mag(cd x) { return std::fabs(x.real()) + std::fabs(x.imag()); }
template <class T>
static int iam(int n, const T *x, int64_t ix, bool mx) {
  if (n < 1) return 0;
  int b = 0;
  for (int i = 1; i < n; i++)
    if (mx ? mag(x[i * ix]) > mag(x[b * ix]) : mag(x[i * ix]) < mag(x[b * ix])) b = i;
  return b + 1;
}
#define LEVEL1(L, T)                                                                                                 \
  API int cublas##L##gemv_v2(Handle *h_, int ta, int m, int n, const T *al, const T *A, int lda, const T *x, int ix, \
                             const T *be, T *y, int iy) {                                                            \
    tick("blas_other", "cublas" #L "gemv", h_);                                                                      \
    return gemv<T>(ta, m, n, *al, A, lda, x, ix, *be, y, iy);                                                        \
  }                                                                                                                  \
  API int cublas##L##axpy_v2(Handle *h_, int n, const T *al, const T *x, int ix, T *y, int iy) {                     \
    tick("blas_other", "cublas" #L "axpy", h_);                                                                      \
    if (n > 0 && !dev(x, y)) return EXECFAIL;                                                                        \
    for (int64_t i = 0; i < n; i++) y[i * iy] += *al * x[i * ix];                                                    \
    return OK;                                                                                                       \
  }                                                                                                                  \
  API int cublas##L##scal_v2(Handle *h_, int n, const T *al, T *x, int ix) {                                         \
    tick("blas_other", "cublas" #L "scal", h_);                                                                      \
    for (int64_t i = 0; i < n; i++) x[i * ix] *= *al;                                                                \
    return OK;                                                                                                       \
  }                                                                                                                  \
  API int cublas##L##geam(Handle *h_, int ta, int tb, int m, int n, const T *al, const T *A, int lda, const T *be,   \
                          const T *B, int ldb, T *C, int ldc) {                                                      \
    tick("blas_other", "cublas" #L "geam", h_);                                                                      \
    std::vector<T> o((size_t)m * n);                                                                                 \
    for (int64_t j = 0; j < n; j++)                                                                                  \
      for (int64_t i = 0; i < m; i++) {                                                                              \
        T v(0);                                                                                                      \
        if (*al != T(0)) {                                                                                           \
          T a = ta ? A[j + i * lda] : A[i + j * lda];                                                                \
          v += *al * (ta == 2 ? cj(a) : a);                                                                          \
        }                                                                                                            \
        if (*be != T(0)) {                                                                                           \
          T b = tb ? B[j + i * ldb] : B[i + j * ldb];                                                                \
          v += *be * (tb == 2 ? cj(b) : b);                                                                          \
        }                                                                                                            \
        o[i + j * m] = v;                                                                                            \
      }                                                                                                              \
    for (int64_t j = 0; j < n; j++)                                                                                  \
      for (int64_t i = 0; i < m; i++) C[i + j * ldc] = o[i + j * m];                                                 \
    return OK;                                                                                                       \
  }                                                                                                                  \
  API int cublas##L##dgmm(Handle *h_, int side, int m, int n, const T *A, int lda, const T *x, int ix, T *C,         \
                          int ldc) {                                                                                 \
    tick("blas_other", "cublas" #L "dgmm", h_);                                                                      \
    for (int64_t j = 0; j < n; j++)                                                                                  \
      for (int64_t i = 0; i < m; i++)                                                                                \
        C[i + j * ldc] =                                                                                             \
            A[i + j * lda] * x[(side == 0 ? i : j) * ix + (ix < 0 ? -(int64_t)ix * ((side == 0 ? m : n) - 1) : 0)];  \
    return OK;                                                                                                       \
  }                                                                                                                  \
  API int cublas##L##syrk_v2(Handle *h_, int uplo, int ta, int n, int k, const T *al, const T *A, int lda,           \
                             const T *be, T *C, int ldc) {                                                           \
    tick("blas_other", "cublas" #L "syrk", h_);                                                                      \
    for (int64_t j = 0; j < n; j++)                                                                                  \
      for (int64_t i = 0; i < n; i++) {                                                                              \
        if (uplo == 0 ? i < j : i > j) continue;                                                                     \
        T s(0);                                                                                                      \
        for (int64_t p = 0; p < k; p++)                                                                              \
          s += (ta ? A[p + i * lda] : A[i + p * lda]) * (ta ? A[p + j * lda] : A[j + p * lda]);                      \
        C[i + j * ldc] = *be == T(0) ? *al * s : *al * s + *be * C[i + j * ldc];                                     \
      }                                                                                                              \
    return OK;                                                                                                       \
  }                                                                                                                  \
  API int cublas##L##trsm_v2() {                                                                                     \
    cudasim_note("cublas" #L "trsm unsupported");                                                                    \
    return UNSUP;                                                                                                    \
  }                                                                                                                  \
  API int cublas##L##trsmBatched() { return UNSUP; }                                                                 \
  API int cublas##L##getrfBatched() { return UNSUP; }                                                                \
  API int cublas##L##getriBatched() { return UNSUP; }                                                                \
  API int cublas##L##getrsBatched() { return UNSUP; }
LEVEL1(S, float)
LEVEL1(D, double) LEVEL1(C, cf) LEVEL1(Z, cd)
#define DOT(N, T, CJ)                                                          \
  API int N(Handle *h_, int n, const T *x, int ix, const T *y, int iy, T *r) { \
    tick("blas_other", #N, h_);                                                \
    if (n > 0 && !dev(x, y)) return EXECFAIL;                                  \
    *r = dotp<T>(n, x, ix, y, iy, CJ);                                         \
    return OK;                                                                 \
  }
    DOT(cublasSdot_v2, float, false) DOT(cublasDdot_v2, double, false) DOT(cublasCdotu_v2, cf, false)
        DOT(cublasCdotc_v2, cf, true) DOT(cublasZdotu_v2, cd, false) DOT(cublasZdotc_v2, cd, true)
#define GER(N, T, CJ)                                                                                       \
  API int N(Handle *h_, int m, int n, const T *al, const T *x, int ix, const T *y, int iy, T *A, int lda) { \
    tick("blas_other", #N, h_);                                                                             \
    if (m > 0 && n > 0 && !dev(x, y, A)) return EXECFAIL;                                                   \
    ger<T>(m, n, *al, x, ix, y, iy, A, lda, CJ);                                                            \
    return OK;                                                                                              \
  }
            GER(cublasSger_v2, float, false) GER(cublasDger_v2, double, false) GER(cublasCgeru_v2, cf, false)
                GER(cublasCgerc_v2, cf, true) GER(cublasZgeru_v2, cd, false) GER(cublasZgerc_v2, cd, true)
#define IAM(N, T, MX)                                        \
  API int N(Handle *h_, int n, const T *x, int ix, int *r) { \
    tick("blas_other", #N, h_);                              \
    *r = iam<T>(n, x, ix, MX);                               \
    return OK;                                               \
  }
                    IAM(cublasIsamax_v2, float, true) IAM(cublasIdamax_v2, double, true) IAM(cublasIcamax_v2, cf, true)
                        IAM(cublasIzamax_v2, cd, true) IAM(cublasIsamin_v2, float, false)
                            IAM(cublasIdamin_v2, double, false) IAM(cublasIcamin_v2, cf, false)
                                IAM(cublasIzamin_v2, cd, false)
#define NRM(N, T, R)                                           \
  API int N(Handle *h_, int n, const T *x, int ix, R *r) {     \
    tick("blas_other", #N, h_);                                \
    double s = 0;                                              \
    for (int64_t i = 0; i < n; i++) s += std::norm(x[i * ix]); \
    *r = (R)std::sqrt(s);                                      \
    return OK;                                                 \
  }
                                    NRM(cublasSnrm2_v2, float, float) NRM(cublasDnrm2_v2, double, double)
                                        NRM(cublasScnrm2_v2, cf, float) NRM(cublasDznrm2_v2, cd, double)
#define ASUM(N, T, R)                                      \
  API int N(Handle *h_, int n, const T *x, int ix, R *r) { \
    tick("blas_other", #N, h_);                            \
    double s = 0;                                          \
    for (int64_t i = 0; i < n; i++) s += mag(x[i * ix]);   \
    *r = (R)s;                                             \
    return OK;                                             \
  }
                                            ASUM(cublasSasum_v2, float, float) ASUM(cublasDasum_v2, double, double)
                                                ASUM(cublasScasum_v2, cf, float) ASUM(cublasDzasum_v2, cd, double) API
    int cublasCsscal_v2(Handle *, int n, const float *a, cf *x, int ix) {
  for (int64_t i = 0; i < n; i++) x[i * ix] *= *a;
  return OK;
}
API int cublasZdscal_v2(Handle *, int n, const double *a, cd *x, int ix) {
  for (int64_t i = 0; i < n; i++) x[i * ix] *= *a;
  return OK;
}
#define NO(N) \
  API int N() { return UNSUP; }
NO(cublasSsbmv_v2) NO(cublasDsbmv_v2) NO(cublasStpttr) NO(cublasDtpttr) NO(cublasStrttp) NO(cublasDtrttp)
