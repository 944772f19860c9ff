// Modules and functions of the driver API.
#pragma once
#include "ptx/program.h"
#include <mutex>

namespace sim {

struct LoadedFunction {  // a CUfunction
  Module *module;
  Kernel *kernel;
};
extern std::mutex modules_mutex;  // held while modules are read and kernels are made

// Prints why a kernel cannot run, as soon as it is asked for.
void warn_if_broken(const Kernel &);
int launch(const LoadedFunction &, Extent grid, Extent block, unsigned shared, void *stream, void **parameters);
int set_function_attribute(Kernel &, int attribute, int value);

constexpr int DEFAULT_SHARED = 49152, MAX_SHARED = 65536;

}  // namespace sim
