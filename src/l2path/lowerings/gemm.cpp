// The kernels of l2path::tiled_bmm and l2path::tiled_mm, stacks of matrix products, which native.py declares. The
// parallel loop is torch's own, so there is one pool of threads, and a caller that asked for one thread gets one.

#include "handles.h"

namespace {

void check(const char* name, Index dimensions, const Operand& a, const Operand& b) {
  const auto refuse = [&](const std::string& expected) {
    throw std::runtime_error(std::string(name) + ": got a " + a.shape() + " and b " + b.shape() + "; expected " +
                             expected);
  };
  if (a.dimensions != dimensions || b.dimensions != dimensions) {
    refuse(dimensions == 3 ? "[stack, rows, depth] and [stack, depth, columns]" : "[rows, depth] and [depth, columns]");
  }
  if (a.size(1) != b.size(2)) refuse("as many columns of a as rows of b");
  if (a.count(2) != b.count(2)) refuse("stacks of the same length");
  if (a.dtype != b.dtype || !a.floating()) refuse("both float32 or both float64");
  if (!a.on_cpu() || !b.on_cpu()) refuse("both on the CPU");
}

// One call, as its tasks see it: each takes `rows` rows of one product, which has `blocks` of such.
struct Job {
  const Operand &a, &b, &c;
  Index rows, blocks;
};

template <class T>
void run(int64_t begin, int64_t end, void* context) {
  const Job& job = *static_cast<const Job*>(context);
  for (Index task = begin; task < end; task++) {
    const Index number = task / job.blocks, first = task % job.blocks * job.rows;
    const Index rows = std::min(job.rows, job.c.size(2) - first);
    if (rows <= 0) continue;
    product<T>(rows, job.c.size(1), job.a.size(1), job.a.matrix<const T>(number).at(first, 0),
               job.b.matrix<const T>(number), job.c.matrix<T>(number).at(first, 0));
  }
}

// The products of all matrices, cut into blocks of rows where there are fewer matrices than threads.
template <class T>
void multiply(const Operand& a, const Operand& b, const Operand& c) {
  const Index count = c.count(2);
  if (count == 0) return;
  constexpr Index least = 48;  // rows of a block: packing B is paid by every block
  uint32_t threads = 1;
  check(torch_get_num_threads(&threads));
  const Index wanted = count < threads ? (threads + count - 1) / count : 1;
  const Index blocks = std::max<Index>(1, std::min(wanted, c.size(2) / least));
  Job job{a, b, c, (c.size(2) + blocks - 1) / blocks, blocks};
  const double work = 2.0 * job.rows * c.size(1) * a.size(1);
  // A thread is worth waking for some ten microseconds of work.
  const Index grain = std::max<Index>(1, Index(1e6 / std::max(work, 1.0)));
  check(torch_parallel_for(0, count * blocks, grain, run<T>, &job));
}

void multiply(const Operand& a, const Operand& b, const Operand& c) {
  if (a.dtype == aoti_torch_dtype_float32()) {
    multiply<float>(a, b, c);
  } else {
    multiply<double>(a, b, c);
  }
}

// The product of two borrowed tensors, as a new one.
template <int dimensions>
AtenTensorHandle multiply(AtenTensorHandle left, AtenTensorHandle right) {
  const Operand a(left), b(right);
  check(dimensions == 3 ? "l2path::tiled_bmm" : "l2path::tiled_mm", dimensions, a, b);
  const Index sizes[] = {a.count(2), a.size(2), b.size(1)};
  Owned owned(empty(a, dimensions, sizes + 3 - dimensions));
  multiply(a, b, Operand(owned.handle));
  return owned.release();
}

// a, b -> their product, in the calling convention of torch's C interface: the handles on the stack are ours.
template <int dimensions>
void boxed(StableIValue* stack, uint64_t, uint64_t) {
  AtenTensorHandle handles[2], result;
  std::memcpy(handles, stack, sizeof handles);
  const Owned a(handles[0]), b(handles[1]);
  result = multiply<dimensions>(a.handle, b.handle);
  std::memcpy(stack, &result, sizeof result);
}

const bool gemm_installed = install(__FILE__, {{"tiled_bmm", boxed<3>}, {"tiled_mm", boxed<2>}});

}  // namespace

// The same in the convention of inductor's C++ wrapper (torch.compile with cpp_wrapper=True), which calls them directly
// and saves a quarter of a microsecond of dispatch. It derives the names from those of the operations.
extern "C" {
AOTITorchError aoti_torch_cpu_tiled_bmm(AtenTensorHandle a, AtenTensorHandle b, AtenTensorHandle* result) {
  return guarded([=] { *result = multiply<3>(a, b); });
}
AOTITorchError aoti_torch_cpu_tiled_mm(AtenTensorHandle a, AtenTensorHandle b, AtenTensorHandle* result) {
  return guarded([=] { *result = multiply<2>(a, b); });
}

// The same without tensors, for what loops.py writes: the shapes have been checked when the graph was traced.
AOTITorchError l2path_product(int64_t dimensions, int32_t dtype, void* a, const int64_t* a_sizes,
                              const int64_t* a_strides, void* b, const int64_t* b_sizes, const int64_t* b_strides,
                              void* c, const int64_t* c_sizes, const int64_t* c_strides) {
  return guarded([=] {
    const int32_t device = aoti_torch_device_type_cpu();
    multiply(Operand(dimensions, a_sizes, a_strides, dtype, device, a),
             Operand(dimensions, b_sizes, b_strides, dtype, device, b),
             Operand(dimensions, c_sizes, c_strides, dtype, device, c));
  });
}
}
