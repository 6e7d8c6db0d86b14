// Values of a loop in a program of inductor's C++ wrapper, without tensors around them: what loops.py writes in their
// place. A tensor costs some 60 nanoseconds to make and to drop, and the wrapper makes several for each value.

// Of the native library; see gemm.cpp.
extern "C" AOTITorchError l2path_product(int64_t dimensions, int32_t dtype, void* a, const int64_t* a_sizes,
                                         const int64_t* a_strides, void* b, const int64_t* b_sizes,
                                         const int64_t* b_strides, void* c, const int64_t* c_sizes,
                                         const int64_t* c_strides);

namespace l2path_loop {

inline void check(AOTITorchError error) { AOTI_TORCH_ERROR_CODE_CHECK(error); }

// Where data begin and how they lie. The memory belongs to somebody who lives longer.
struct Local {
  char* data = nullptr;
  int64_t dimensions = 0;
  const int64_t *sizes = nullptr, *strides = nullptr;
  int32_t dtype = 0;
  int64_t width = 0;  // bytes of an element
  mutable AtenTensorHandle handle = nullptr;  // a tensor of it, for who asks for one

  Local() = default;
  Local(void* data, int64_t dimensions, const int64_t* sizes, const int64_t* strides, int32_t dtype, int64_t width)
      : data(static_cast<char*>(data)),
        dimensions(dimensions),
        sizes(sizes),
        strides(strides),
        dtype(dtype),
        width(width) {}
  Local(const Local& from)
      : Local(from.data, from.dimensions, from.sizes, from.strides, from.dtype, from.width) {}
  Local& operator=(const Local& from) {
    drop();
    data = from.data, dimensions = from.dimensions, sizes = from.sizes, strides = from.strides;
    dtype = from.dtype, width = from.width;
    return *this;
  }
  ~Local() { drop(); }

  void* data_ptr() const { return data; }
  operator AtenTensorHandle() const {
    if (handle == nullptr) {
      check(aoti_torch_create_tensor_from_blob(data, dimensions, sizes, strides, 0, dtype,
                                               aoti_torch_device_type_cpu(), 0, &handle));
    }
    return handle;
  }

 private:
  void drop() {
    if (handle != nullptr) aoti_torch_delete_tensor_object(handle);
    handle = nullptr;
  }
};

// A tensor that lives longer, seen as one.
inline Local local(const Local& x) { return x; }
inline Local local(const RAIIAtenTensorHandle& x) {
  Local found;
  int64_t *sizes, *strides;
  check(aoti_torch_get_dim(x, &found.dimensions));
  check(aoti_torch_get_sizes(x, &sizes));
  check(aoti_torch_get_strides(x, &strides));
  check(aoti_torch_get_dtype(x, &found.dtype));
  found.data = static_cast<char*>(x.data_ptr()), found.sizes = sizes, found.strides = strides;
  found.width = static_cast<int64_t>(aoti_torch_dtype_element_size(found.dtype));
  return found;
}

// The same data in another shape; `offset` counts elements.
inline Local view(const Local& x, int64_t dimensions, const int64_t* sizes, const int64_t* strides, int64_t offset) {
  return {x.data + offset * x.width, dimensions, sizes, strides, x.dtype, x.width};
}

inline RAIIAtenTensorHandle allocate(int64_t elements, int32_t dtype) {
  const int64_t one = 1;
  AtenTensorHandle made;
  check(aoti_torch_empty_strided(1, &elements, &one, dtype, aoti_torch_device_type_cpu(), 0, &made));
  return RAIIAtenTensorHandle(made);
}

// Memory for what steps make and forget.
struct Arena {
  RAIIAtenTensorHandle owned;
  char* data;

  explicit Arena(int64_t bytes)
      : owned(allocate(bytes, aoti_torch_dtype_uint8())), data(static_cast<char*>(owned.data_ptr())) {}
};

// Memory for what a step hands to the next one: two places, which take turns.
struct Turns {
  RAIIAtenTensorHandle owned[2];
  char* places[2];
  int next = 0;
  bool used = false;

  Turns(int64_t elements, int32_t dtype) {
    for (int i = 0; i < 2; i++) {
      owned[i] = allocate(elements, dtype);
      places[i] = static_cast<char*>(owned[i].data_ptr());
    }
  }

  void* data() const { return places[next]; }
  void turn() { next = 1 - next, used = true; }
  // Gives what was handed on last to a tensor that stays.
  void leave(RAIIAtenTensorHandle& to, const Local& last) {
    if (!used) return;
    AtenTensorHandle made;
    check(aoti_torch__reinterpret_tensor(owned[1 - next], last.dimensions, last.sizes, last.strides, 0, &made));
    to = RAIIAtenTensorHandle(made);
  }
};

inline void product(const Local& a, const Local& b, const Local& c) {
  check(l2path_product(c.dimensions, c.dtype, a.data, a.sizes, a.strides, b.data, b.sizes, b.strides, c.data, c.sizes,
                       c.strides));
}

}  // namespace l2path_loop
