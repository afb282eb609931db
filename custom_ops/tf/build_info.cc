// What this library was built for, for tf_slipstream.build_info(), and what it knows of tables.
#include "../kernels/schema.h"

// TensorFlow's minor version; then, where CUDA kernels are in it, a space and their architectures,
// separated by commas, "-real" where there is no PTX.
extern "C" __attribute__((visibility("default"))) const char* SlipstreamBuildInfo() {
#ifdef SLIPSTREAM_CUDA_ARCHITECTURES
  return SLIPSTREAM_TF_VERSION " " SLIPSTREAM_CUDA_ARCHITECTURES;
#else
  return SLIPSTREAM_TF_VERSION;
#endif
}

// The columns of what a table carries, see schema.h: a line each of its lists.
extern "C" __attribute__((visibility("default"))) const char* SlipstreamSchema() {
  return SLIPSTREAM_SCHEMA;
}
