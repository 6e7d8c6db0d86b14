// Tensors through torch's C interface: it is stable between versions, and its headers compile in half a second where
// those of the C++ interface take six.

#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstdio>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>

#include "product.h"

namespace {

void check(AOTITorchError error) {
  if (error != AOTI_TORCH_SUCCESS) throw std::runtime_error("l2path: a call into torch failed");
}

// Deletes a handle at the end.
struct Owned {
  AtenTensorHandle handle;

  explicit Owned(AtenTensorHandle given) : handle(given) {}
  Owned(const Owned&) = delete;
  ~Owned() {
    if (handle) aoti_torch_delete_tensor_object(handle);
  }
  AtenTensorHandle release() { return std::exchange(handle, nullptr); }
};

// A tensor, borrowed: a stack of any number of axes whose parts have the last one, two or three axes.
struct Operand {
  int64_t dimensions;
  const int64_t *sizes, *strides;
  int32_t dtype, device;
  void* data;

  Operand(int64_t dimensions, const int64_t* sizes, const int64_t* strides, int32_t dtype, int32_t device, void* data)
      : dimensions(dimensions), sizes(sizes), strides(strides), dtype(dtype), device(device), data(data) {}
  explicit Operand(AtenTensorHandle handle) {
    int64_t *extents, *distances;
    check(aoti_torch_get_dim(handle, &dimensions));
    check(aoti_torch_get_sizes(handle, &extents));
    check(aoti_torch_get_strides(handle, &distances));
    sizes = extents, strides = distances;
    check(aoti_torch_get_dtype(handle, &dtype));
    check(aoti_torch_get_device_type(handle, &device));
    check(aoti_torch_get_data_ptr(handle, &data));
  }

  Index size(Index from_last) const { return sizes[dimensions - from_last]; }
  Index stride(Index from_last) const { return strides[dimensions - from_last]; }

  // Parts in the stack, each with its `inner` last axes.
  Index count(Index inner) const {
    Index product = 1;
    for (Index i = 0; i < dimensions - inner; i++) product *= sizes[i];
    return product;
  }

  template <class T>
  T* part(Index inner, Index number) const {
    Index offset = 0;
    for (Index i = dimensions - inner; i-- > 0; number /= sizes[i]) offset += number % sizes[i] * strides[i];
    return static_cast<T*>(data) + offset;
  }

  template <class T>
  Matrix<T> matrix(Index number) const {
    return {part<T>(2, number), stride(2), stride(1)};
  }

  bool floating() const { return dtype == aoti_torch_dtype_float32() || dtype == aoti_torch_dtype_float64(); }
  bool on_cpu() const { return device == aoti_torch_device_type_cpu(); }

  std::string shape() const {
    std::string text = "[";
    for (Index i = 0; i < dimensions; i++) text += (i ? ", " : "") + std::to_string(sizes[i]);
    return text + "]";
  }
};

// A new contiguous tensor of the dtype and on the device of another.
AtenTensorHandle empty(const Operand& like, Index dimensions, const Index* sizes) {
  Index strides[16], next = 1;
  if (dimensions > 16) throw std::runtime_error("l2path: a tensor of more than 16 axes");
  for (Index i = dimensions; i-- > 0; next *= std::max<Index>(1, sizes[i])) strides[i] = next;
  AtenTensorHandle made;
  check(aoti_torch_empty_strided(dimensions, sizes, strides, like.dtype, like.device, 0, &made));
  return made;
}

// What inductor's C++ wrapper calls returns an error in place of throwing one.
template <class Call>
AOTITorchError guarded(Call call) try {
  call();
  return AOTI_TORCH_SUCCESS;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return AOTI_TORCH_FAILURE;
}

using Boxed = void (*)(StableIValue*, uint64_t, uint64_t);

// Registers kernels of operations that native.py declares.
bool install(const char* file, std::initializer_list<std::pair<const char*, Boxed>> kernels) try {
  TorchLibraryHandle library;  // lives as long as the process
  check(aoti_torch_library_init_impl("l2path", "CPU", file, __LINE__, &library));
  for (const auto& [name, kernel] : kernels) check(torch_library_impl(library, name, kernel, TORCH_ABI_VERSION));
  return true;
} catch (const std::exception&) {
  return false;  // an exception out of here would end the process; native.py finds the kernels missing
}

// Calls `call` with a zero of the operands' type.
template <class Function>
void by_type(const Operand& operand, Function call) {
  if (operand.dtype == aoti_torch_dtype_float32()) return call(0.0F);
  call(0.0);
}

// Calls `call` with each number below `count`, on as many threads as torch has set: one inside of its own parallel loops.
template <class Function>
void side_by_side(Index count, const Function& call) {
  const auto part = [](int64_t begin, int64_t end, void* context) {
    for (Index i = begin; i < end; i++) (*static_cast<const Function*>(context))(i);
  };
  check(torch_parallel_for(0, count, 1, part, const_cast<Function*>(&call)));
}

// A kernel in the calling convention of torch's C interface: the handles on the stack are ours.
template <auto kernel, int operands, int results>
void boxed(StableIValue* stack, uint64_t, uint64_t) {
  AtenTensorHandle given[operands], made[results];
  std::memcpy(given, stack, sizeof given);
  struct Release {
    AtenTensorHandle* given;
    ~Release() {
      for (int i = 0; i < operands; i++) aoti_torch_delete_tensor_object(given[i]);
    }
  } const release{given};
  kernel(given, made);
  std::memcpy(stack, made, sizeof made);
}

// A kernel in the convention of inductor's C++ wrapper.
template <auto kernel, class... Results>
AOTITorchError direct(std::initializer_list<AtenTensorHandle> given, Results... results) {
  return guarded([&] {
    AtenTensorHandle made[sizeof...(results)], *next = made;
    kernel(given.begin(), made);
    ((*results = *next++), ...);
  });
}

}  // namespace
