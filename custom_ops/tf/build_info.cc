// What this library was built for, for tf_slipstream.build_info().

// TensorFlow's minor version; then, where CUDA kernels are in it, a space and their architectures,
// separated by commas, "-real" where there is no PTX.
extern "C" __attribute__((visibility("default"))) const char* SlipstreamBuildInfo() {
#ifdef SLIPSTREAM_CUDA_ARCHITECTURES
  return SLIPSTREAM_TF_VERSION " " SLIPSTREAM_CUDA_ARCHITECTURES;
#else
  return SLIPSTREAM_TF_VERSION;
#endif
}
