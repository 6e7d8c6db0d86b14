// The kernel of l2path::max_pool, which pooling.py declares: see there for what it computes. It takes operands of any
// number of leading axes and runs on the caller's thread.

#include "handles.h"
#include "pooling.h"

namespace {

// x [..., rows, height, columns, width, channels] -> largest and where they are, [..., rows, columns, channels]
void max_pool(const AtenTensorHandle* given, AtenTensorHandle* results) {
  const Operand x(given[0]);
  Index next = 1, sizes[16];
  bool fits = x.dimensions >= 5 && x.dimensions <= 16 && x.floating() && x.on_cpu();
  for (Index i = 1; fits && i <= x.dimensions; next *= x.size(i++)) fits = x.size(i) == 1 || x.stride(i) == next;
  if (!fits || x.size(4) < 1 || x.size(2) < 1) {
    throw std::runtime_error("l2path::max_pool: got " + x.shape() +
                             "; expected contiguous floats on the CPU, [..., rows, height, columns, width, channels]");
  }
  for (Index i = 0; i < x.dimensions - 4; i++) sizes[i] = x.sizes[i];
  sizes[x.dimensions - 4] = x.size(3), sizes[x.dimensions - 3] = x.size(1);
  Owned y(empty(x, x.dimensions - 2, sizes)), at(empty(x, x.dimensions - 2, sizes));
  const Operand to_y(y.handle), to_at(at.handle);
  const Windows windows{x.count(4), x.size(4), x.size(3), x.size(2), x.size(1)};
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    if (windows.channels > 0) {
      find_largest(windows, x.part<const T>(0, 0), to_y.part<T>(0, 0), to_at.part<T>(0, 0));
    };
  });
  results[0] = y.release(), results[1] = at.release();
}

const bool pooling_installed = install(__FILE__, {{"max_pool", boxed<max_pool, 1, 2>}});

}  // namespace

extern "C" AOTITorchError aoti_torch_cpu_max_pool(AtenTensorHandle x, AtenTensorHandle* y, AtenTensorHandle* at) {
  return direct<max_pool>({x}, y, at);
}
