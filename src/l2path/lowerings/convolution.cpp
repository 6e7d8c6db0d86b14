// The kernels of l2path::convolve and l2path::convolve_weight, which convolution.py declares: see there for what they
// compute. They take operands of any strides with any number of leading axes, the members', and run on the caller's
// thread.

#include "convolution.h"
#include "handles.h"

namespace {

// Sizes of a call with images x [..., count, height, width, channels] and another operand with the same leading axes.
struct Convolution {
  const char* name;
  const Operand &x, &other;

  Convolution(const char* name, const Operand& x, const Operand& other) : name(name), x(x), other(other) {
    bool fits = x.dimensions >= 4 && x.dimensions <= 12 && other.dimensions == x.dimensions && x.floating() &&
                x.dtype == other.dtype && x.on_cpu() && other.on_cpu();
    for (Index i = 0; fits && i < x.dimensions - 4; i++) fits = x.sizes[i] == other.sizes[i];
    if (!fits) refuse("the same leading axes before four others each, both float32 or both float64 on the CPU");
  }

  [[noreturn]] void refuse(const std::string& expected) const {
    throw std::runtime_error(std::string("l2path::") + name + ": got " + x.shape() + " and " + other.shape() +
                             "; expected " + expected);
  }

  Images images(Index kernel_height, Index kernel_width, Index out) const {
    const Images s{x.size(4), x.size(3), x.size(2), x.size(1), kernel_height, kernel_width, out};
    if (s.kernel_height < 1 || s.kernel_width < 1 || s.rows() < 1 || s.columns() < 1) refuse("a kernel that fits");
    return s;
  }

  // A new tensor [..., *sizes].
  AtenTensorHandle result(const Index (&sizes)[4]) const {
    Index all[16];
    for (Index i = 0; i < x.dimensions; i++) all[i] = i < x.dimensions - 4 ? x.sizes[i] : sizes[i - x.dimensions + 4];
    return empty(x, x.dimensions, all);
  }
};

// The last four axes of a part of an operand, as they are or copied to where they are contiguous.
template <class T>
struct Contiguous {
  std::vector<T> copy;

  const T* of(const Operand& operand, Index number) {
    const T* data = operand.part<const T>(4, number);
    Index next = 1;
    bool contiguous = true;
    for (Index i = 1; i <= 4; next *= operand.size(i++)) {
      contiguous &= operand.size(i) == 1 || operand.stride(i) == next;
    }
    if (contiguous) return data;
    copy.resize(next);
    T* to = copy.data();
    for (Index a = 0; a < operand.size(4); a++) {
      for (Index b = 0; b < operand.size(3); b++) {
        for (Index c = 0; c < operand.size(2); c++) {
          const T* from = data + a * operand.stride(4) + b * operand.stride(3) + c * operand.stride(2);
          for (Index d = 0; d < operand.size(1); d++) *to++ = from[d * operand.stride(1)];
        }
      }
    }
    return copy.data();
  }
};

// x, w [..., kernel_height, kernel_width, channels, out] -> y
void convolve(const AtenTensorHandle* given, AtenTensorHandle* results) {
  const Operand x(given[0]), w(given[1]);
  const Convolution call("convolve", x, w);
  if (w.size(2) != x.size(1)) call.refuse("as many channels of both");
  const Images s = call.images(w.size(4), w.size(3), w.size(1));
  Owned y(call.result({s.count, s.rows(), s.columns(), s.out}));
  const Operand to(y.handle);
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    Contiguous<T> images, weights;
    for (Index i = 0; i < x.count(4); i++) {
      convolution<T>(s, images.of(x, i), {weights.of(w, i), s.out, 1}, to.part<T>(4, i));
    }
  });
  results[0] = y.release();
}

// x, dy [..., count, rows, columns, out] -> dw
void convolve_weight(const AtenTensorHandle* given, AtenTensorHandle* results) {
  const Operand x(given[0]), dy(given[1]);
  const Convolution call("convolve_weight", x, dy);
  if (dy.size(4) != x.size(4)) call.refuse("as many images of both");
  const Images s = call.images(x.size(3) - dy.size(3) + 1, x.size(2) - dy.size(2) + 1, dy.size(1));
  Owned dw(call.result({s.kernel_height, s.kernel_width, s.channels, s.out}));
  const Operand to(dw.handle);
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    Contiguous<T> images, gradients;
    for (Index i = 0; i < x.count(4); i++) {
      T* sum = to.part<T>(4, i);
      if (s.count == 0) std::fill_n(sum, s.depth() * s.out, T(0));
      convolution_weight<T>(s, images.of(x, i), gradients.of(dy, i), sum);
    }
  });
  results[0] = dw.release();
}

const bool convolution_installed =
    install(__FILE__, {{"convolve", boxed<convolve, 2, 1>}, {"convolve_weight", boxed<convolve_weight, 2, 1>}});

}  // namespace

extern "C" {
AOTITorchError aoti_torch_cpu_convolve(AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* y) {
  return direct<convolve>({x, w}, y);
}
AOTITorchError aoti_torch_cpu_convolve_weight(AtenTensorHandle x, AtenTensorHandle dy, AtenTensorHandle* dw) {
  return direct<convolve_weight>({x, dy}, dw);
}
}
