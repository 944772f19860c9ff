// cuRAND host API: right distributions, not the device's number sequence.
#include <cmath>
#include <cstdint>
#include <vector>
#define API extern "C" __attribute__((visibility("default")))
extern "C" void cudasim_stream_flush(void *);
extern "C" void cudasim_add(const char *, uint64_t);
struct Gen {
  uint64_t seed, ctr;
  int type;
  void *stream;
};
static uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}
static uint64_t next(Gen *g) { return mix(mix(g->seed) ^ (g->ctr++ * 0xD1342543DE82EF95ull)); }
static double u01(Gen *g) { return ((next(g) >> 11) + 1) * 0x1p-53; }
static double gauss(Gen *g) {
  double a = u01(g), b = u01(g);
  return std::sqrt(-2 * std::log(a)) * std::cos(2 * M_PI * b);
}
API int curandCreateGenerator(Gen **g, int t) {
  *g = new Gen{0, 0, t, nullptr};
  return 0;
}
API int curandDestroyGenerator(Gen *g) {
  delete g;
  return 0;
}
API int curandGetVersion(int *v) {
  *v = 10400;
  return 0;
}
API int curandSetStream(Gen *g, void *s) {
  g->stream = s;
  return 0;
}
API int curandSetPseudoRandomGeneratorSeed(Gen *g, unsigned long long s) {
  g->seed = s;
  g->ctr = 0;
  return 0;
}
API int curandSetGeneratorOffset(Gen *g, unsigned long long o) {
  g->ctr = o;
  return 0;
}
API int curandSetGeneratorOrdering(Gen *, int) { return 0; }
API int curandGenerate(Gen *g, unsigned *p, size_t n) {
  cudasim_add("curand", 1), cudasim_stream_flush(g->stream);
  for (size_t i = 0; i < n; i++) p[i] = (unsigned)(next(g) >> 32);
  return 0;
}
API int curandGenerateLongLong(Gen *g, unsigned long long *p, size_t n) {
  cudasim_add("curand", 1), cudasim_stream_flush(g->stream);
  for (size_t i = 0; i < n; i++) p[i] = next(g);
  return 0;
}
API int curandGenerateUniform(Gen *g, float *p, size_t n) {
  cudasim_add("curand", 1), cudasim_stream_flush(g->stream);
  for (size_t i = 0; i < n; i++) p[i] = (float)(((next(g) >> 40) + 1) * 0x1p-24);
  return 0;
}
API int curandGenerateUniformDouble(Gen *g, double *p, size_t n) {
  cudasim_add("curand", 1), cudasim_stream_flush(g->stream);
  for (size_t i = 0; i < n; i++) p[i] = u01(g);
  return 0;
}
API int curandGenerateNormal(Gen *g, float *p, size_t n, float m, float s) {
  if (n & 1) return 105;
  cudasim_add("curand", 1), cudasim_stream_flush(g->stream);
  for (size_t i = 0; i < n; i++) p[i] = (float)(m + s * gauss(g));
  return 0;
}
API int curandGenerateNormalDouble(Gen *g, double *p, size_t n, double m, double s) {
  if (n & 1) return 105;
  cudasim_add("curand", 1), cudasim_stream_flush(g->stream);
  for (size_t i = 0; i < n; i++) p[i] = m + s * gauss(g);
  return 0;
}
API int curandGenerateLogNormal(Gen *g, float *p, size_t n, float m, float s) {
  if (n & 1) return 105;
  cudasim_add("curand", 1), cudasim_stream_flush(g->stream);
  for (size_t i = 0; i < n; i++) p[i] = (float)std::exp(m + s * gauss(g));
  return 0;
}
API int curandGenerateLogNormalDouble(Gen *g, double *p, size_t n, double m, double s) {
  if (n & 1) return 105;
  cudasim_add("curand", 1), cudasim_stream_flush(g->stream);
  for (size_t i = 0; i < n; i++) p[i] = std::exp(m + s * gauss(g));
  return 0;
}
API int curandGeneratePoisson(Gen *g, unsigned *p, size_t n, double l) {
  cudasim_add("curand", 1), cudasim_stream_flush(g->stream);
  for (size_t i = 0; i < n; i++) {
    if (l > 500) {
      double v = std::floor(l + std::sqrt(l) * gauss(g) + 0.5);
      p[i] = v < 0 ? 0 : (unsigned)v;
      continue;
    }
    double L = std::exp(-l), q = 1;
    unsigned k = 0;
    do {
      k++;
      q *= u01(g);
    } while (q > L);
    p[i] = k - 1;
  }
  return 0;
}
