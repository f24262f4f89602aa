// Shared by the CUDA bindings: the current device, the stream to launch on, and the dispatch key of
// the kernels. Under MMSSL_EMULATE_CUDA the same bindings are built for the CPU, with the kernels
// on the emulator, so that a test can call them without a GPU.
#pragma once
#include "common/cuda_kernel.h"
#include "common/torch.h"

#if defined(MMSSL_EMULATE_CUDA)
// The bindings replace the CPU kernels. They take meta tensors too, in place of another device's.
#define MMSSL_CUDA_LIBRARY(m)                                                     \
  static void register_cuda_kernels(torch::stable::detail::StableLibrary& m);                   \
  STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, library) { register_cuda_kernels(library); }  \
  STABLE_TORCH_LIBRARY_IMPL(mmssl, Meta, library) { register_cuda_kernels(library); } \
  static void register_cuda_kernels(torch::stable::detail::StableLibrary& m)
#define MMSSL_CUDA_CHECK(call) STD_TORCH_CHECK((call) == cudaSuccess, "mmssl: a launch failed")
// For the test that counts the launches of a training step.
extern "C" __attribute__((weak)) int64_t mmssl_emu_started() { return emu_started(); }
#else
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#define MMSSL_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(mmssl, CUDA, m)
#define MMSSL_CUDA_CHECK(call) STD_CUDA_CHECK(call)
#endif

namespace mmssl::cuda {

// Makes the device of a tensor current for as long as it lives.
class CurrentDevice {
 public:
#if defined(MMSSL_EMULATE_CUDA)
  explicit CurrentDevice(const Tensor& t) : index_(t.get_device_index()) {}
  int processors() const { return 4; }
  bool hopper() const { return true; }
  const cudaStream_t stream = nullptr;

 private:
  int32_t index_;
#else
  explicit CurrentDevice(const Tensor& t)
      : stream(stream_of(t.get_device_index())),
        index_(t.get_device_index()),
        guard_(t.get_device_index()) {}
  int processors() const { return attribute(cudaDevAttrMultiProcessorCount); }
  // Compute capability 9.0, for which *_sm90a.cu are compiled.
  bool hopper() const {
    return attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
           attribute(cudaDevAttrComputeCapabilityMinor) == 0;
  }
  const cudaStream_t stream;

 private:
  int attribute(cudaDeviceAttr name) const {
    int value = 0;
    MMSSL_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, index_));
    return value;
  }
  static cudaStream_t stream_of(int32_t device) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    return static_cast<cudaStream_t>(stream);
  }
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

inline Tensor new_scratch(const Tensor& x, int64_t bytes) {
  return new_empty(x, {bytes}, ScalarType::Byte);
}

// What the kernels of an op run with: the device and the stream of a tensor, and scratch memory.
struct Launch {
  Launch(const Tensor& on, int64_t bytes) : device(on), memory(new_scratch(on, bytes)) {}
  template <class T>
  T* scratch() const {
    return static_cast<T*>(memory.mutable_data_ptr());
  }

  CurrentDevice device;
  Tensor memory;
};

}  // namespace mmssl::cuda
