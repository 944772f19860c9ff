// cuRAND host API: the right distributions, but not the sequences of numbers that the real library gives.
#include "common/api.h"
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace {

enum Status { SUCCESS = 0, LENGTH_NOT_MULTIPLE = 105, LAUNCH_FAILURE = 201 };

class Generator {
 public:
  void *stream = nullptr;
  void seed(uint64_t s) {
    seed_ = s;
    count_ = 0;
  }
  void skip_to(uint64_t count) { count_ = count; }

  // A hash of the seed and of how many numbers came before.
  uint64_t bits() { return mix(mix(seed_) ^ (count_++ * 0xD1342543DE82EF95ull)); }
  double uniform() { return (double)((bits() >> 11) + 1) * 0x1p-53; }  // in (0, 1], as cuRAND
  float uniform_float() { return (float)((double)((bits() >> 40) + 1) * 0x1p-24); }
  double normal() {  // Box and Muller
    const double u = uniform(), v = uniform();
    return std::sqrt(-2 * std::log(u)) * std::cos(2 * M_PI * v);
  }
  unsigned poisson(double mean) {
    if (mean > 500) {  // nearly normal, and the product below would underflow
      const double value = std::floor(mean + std::sqrt(mean) * normal() + 0.5);
      return value < 0 ? 0 : (unsigned)value;
    }
    const double limit = std::exp(-mean);
    double product = 1;
    unsigned k = 0;
    do {
      k++;
      product *= uniform();
    } while (product > limit);
    return k - 1;
  }

 private:
  uint64_t seed_ = 0, count_ = 0;
  static uint64_t mix(uint64_t x) {  // SplitMix64
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
  }
};

template <class T, class F>
int fill(Generator *g, T *out, size_t n, F next) {
  cudasim_count("curand");
  cudasim_stream_flush(g->stream);
  if (n && !cudasim_is_device(out, n * sizeof(T))) {
    cudasim_warn("cuRAND was given a pointer that is not device memory, or too little of it");
    return LAUNCH_FAILURE;
  }
  for (size_t k = 0; k < n; k++) out[k] = (T)next();
  return SUCCESS;
}
// The real library makes normal numbers in pairs and refuses an odd count.
template <class T, class F>
int fill_pairs(Generator *g, T *out, size_t n, F next) {
  return n % 2 ? (int)LENGTH_NOT_MULTIPLE : fill(g, out, n, next);
}

}  // namespace

API int curandCreateGenerator(Generator **g, int) {
  *g = new Generator;
  return SUCCESS;
}
API int curandDestroyGenerator(Generator *g) {
  delete g;
  return SUCCESS;
}
API int curandGetVersion(int *version) {
  *version = 10400;
  return SUCCESS;
}
API int curandSetStream(Generator *g, void *stream) {
  g->stream = stream;
  return SUCCESS;
}
API int curandSetPseudoRandomGeneratorSeed(Generator *g, unsigned long long seed) {
  g->seed(seed);
  return SUCCESS;
}
API int curandSetGeneratorOffset(Generator *g, unsigned long long offset) {
  g->skip_to(offset);
  return SUCCESS;
}
API int curandSetGeneratorOrdering(Generator *, int) { return SUCCESS; }

API int curandGenerate(Generator *g, unsigned *out, size_t n) {
  return fill(g, out, n, [g] { return g->bits() >> 32; });
}
API int curandGenerateLongLong(Generator *g, unsigned long long *out, size_t n) {
  return fill(g, out, n, [g] { return g->bits(); });
}
API int curandGenerateUniform(Generator *g, float *out, size_t n) {
  return fill(g, out, n, [g] { return g->uniform_float(); });
}
API int curandGenerateUniformDouble(Generator *g, double *out, size_t n) {
  return fill(g, out, n, [g] { return g->uniform(); });
}
API int curandGenerateNormal(Generator *g, float *out, size_t n, float mean, float deviation) {
  return fill_pairs(g, out, n, [=] { return mean + deviation * g->normal(); });
}
API int curandGenerateNormalDouble(Generator *g, double *out, size_t n, double mean, double deviation) {
  return fill_pairs(g, out, n, [=] { return mean + deviation * g->normal(); });
}
API int curandGenerateLogNormal(Generator *g, float *out, size_t n, float mean, float deviation) {
  return fill_pairs(g, out, n, [=] { return std::exp(mean + deviation * g->normal()); });
}
API int curandGenerateLogNormalDouble(Generator *g, double *out, size_t n, double mean, double deviation) {
  return fill_pairs(g, out, n, [=] { return std::exp(mean + deviation * g->normal()); });
}
API int curandGeneratePoisson(Generator *g, unsigned *out, size_t n, double mean) {
  return fill(g, out, n, [=] { return g->poisson(mean); });
}
