// cuBLAS: handles and their settings, and what is not supported.
#include "blas/blas.h"

using namespace sim::blas;

API int cublasCreate_v2(Handle **h) {
  *h = new Handle;
  return SUCCESS;
}
API int cublasDestroy_v2(Handle *h) {
  delete h;
  return SUCCESS;
}
API int cublasSetStream_v2(Handle *h, void *stream) {
  h->stream = stream;
  return SUCCESS;
}
API int cublasGetStream_v2(Handle *h, void **stream) {
  *stream = h->stream;
  return SUCCESS;
}
API int cublasGetVersion_v2(Handle *, int *version) {
  *version = 130000;
  return SUCCESS;
}
// Both modes work alike: device memory can be read here.
API int cublasSetPointerMode_v2(Handle *h, int mode) {
  h->pointer_mode = mode;
  return SUCCESS;
}
API int cublasGetPointerMode_v2(Handle *h, int *mode) {
  *mode = h->pointer_mode;
  return SUCCESS;
}
// Remembered only: TF32 is never used.
API int cublasSetMathMode(Handle *h, int mode) {
  h->math_mode = mode;
  return SUCCESS;
}
API int cublasGetMathMode(Handle *h, int *mode) {
  *mode = h->math_mode;
  return SUCCESS;
}

#define NOT_SUPPORTED_HERE(name)             \
  API int name() {                           \
    cudasim_warn(#name " is not supported"); \
    return NOT_SUPPORTED;                    \
  }
#define NOT_SUPPORTED_FOR(letter)                  \
  NOT_SUPPORTED_HERE(cublas##letter##trsm_v2)      \
  NOT_SUPPORTED_HERE(cublas##letter##trsmBatched)  \
  NOT_SUPPORTED_HERE(cublas##letter##getrfBatched) \
  NOT_SUPPORTED_HERE(cublas##letter##getriBatched) \
  NOT_SUPPORTED_HERE(cublas##letter##getrsBatched)
NOT_SUPPORTED_FOR(S)
NOT_SUPPORTED_FOR(D)
NOT_SUPPORTED_FOR(C)
NOT_SUPPORTED_FOR(Z)
NOT_SUPPORTED_HERE(cublasSsbmv_v2)
NOT_SUPPORTED_HERE(cublasDsbmv_v2)
NOT_SUPPORTED_HERE(cublasStpttr)
NOT_SUPPORTED_HERE(cublasDtpttr)
NOT_SUPPORTED_HERE(cublasStrttp)
NOT_SUPPORTED_HERE(cublasDtrttp)
