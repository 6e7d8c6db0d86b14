// The kernels of l2path::native_lstm and its kin, which recurrent.py declares: see there for what they compute. They
// take operands of any strides with any number of leading axes, the members', which torch's threads share.

#include "cells.h"
#include "handles.h"

namespace {

// Sizes of a call, and how operands are refused that do not fit them.
struct Call {
  const char* name;
  const Operand& z;  // [..., steps, batch, gates * hidden]
  Index gates, steps, batch, hidden, members;

  Call(const char* name, const Operand& z, Index gates) : name(name), z(z), gates(gates) {
    const bool fits = z.dimensions >= 3 && z.floating() && z.on_cpu() && z.size(1) % gates == 0;
    if (!fits) refuse("the first operand is " + z.shape(), "[..., steps, batch, gates * hidden] of floats on the CPU");
    steps = z.size(3), batch = z.size(2), hidden = z.size(1) / gates, members = z.count(3);
  }

  Layer layer() const { return {steps, batch, hidden}; }

  [[noreturn]] void refuse(const std::string& got, const std::string& expected) const {
    throw std::runtime_error(std::string("l2path::") + name + ": " + got + "; expected " + expected);
  }

  // Operand number `which` must have z's leading axes, dtype and device, and these sizes after them.
  void expect(int which, const Operand& operand, std::initializer_list<Index> sizes) const {
    const Index leading = z.dimensions - 3, inner = Index(sizes.size());
    bool fits = operand.dimensions == leading + inner && operand.dtype == z.dtype && operand.device == z.device;
    for (Index i = 0; fits && i < leading; i++) fits = operand.sizes[i] == z.sizes[i];
    std::string wanted;
    for (Index i = 0; i < inner; i++) {
      const Index size = sizes.begin()[i];
      fits = fits && operand.sizes[leading + i] == size;
      wanted += (i ? ", " : "") + std::to_string(size);
    }
    if (!fits) {
      refuse("operand " + std::to_string(which) + " is " + operand.shape(),
             "[" + wanted + "] after the leading axes of " + z.shape() + ", all of one dtype");
    }
  }

  // A new tensor [..., *sizes].
  AtenTensorHandle result(std::initializer_list<Index> sizes) const {
    Index all[16], count = 0;
    if (z.dimensions > 13) refuse("the first operand is " + z.shape(), "at most 13 axes");
    for (; count < z.dimensions - 3; count++) all[count] = z.sizes[count];
    for (const Index size : sizes) all[count++] = size;
    return empty(z, count, all);
  }
};

template <class T>
Steps<const T> steps(const Operand& operand, Index member) {
  return {{operand.part<const T>(3, member), operand.stride(2), operand.stride(1)}, operand.stride(3)};
}

// Copies a matrix to adjacent numbers.
template <class T>
void copy(Matrix<const T> from, Index rows, Index columns, T* to) {
  for (Index i = 0; i < rows; i++) {
    for (Index j = 0; j < columns; j++) *to++ = *from.at(i, j).data;
  }
}

// z, w, h0, c0 -> h, c, gates
void native_lstm(const AtenTensorHandle* given, AtenTensorHandle* results) {
  const Operand z(given[0]), w(given[1]), h0(given[2]), c0(given[3]);
  const Call call("native_lstm", z, 4);
  const Index n = call.steps, b = call.batch, k = call.hidden;
  call.expect(1, w, {4 * k, k}), call.expect(2, h0, {b, k}), call.expect(3, c0, {b, k});
  Owned h(call.result({n + 1, b, k})), c(call.result({n + 1, b, k})), gates(call.result({n, b, 4 * k}));
  const Operand to_h(h.handle), to_c(c.handle), to_gates(gates.handle);
  by_type(z, [&](auto zero) {
    using T = decltype(zero);
    side_by_side(call.members, [&](Index i) {
      T *states = to_h.part<T>(3, i), *cells = to_c.part<T>(3, i);
      copy(h0.matrix<const T>(i), b, k, states);
      copy(c0.matrix<const T>(i), b, k, cells);
      lstm<T>(call.layer(), steps<T>(z, i), w.matrix<const T>(i), states, cells, to_gates.part<T>(3, i));
    });
  });
  results[0] = h.release(), results[1] = c.release(), results[2] = gates.release();
}

// gates, c, w, dh, dc of the last step -> dz, dh0, dc0
void native_lstm_backward(const AtenTensorHandle* given, AtenTensorHandle* results) {
  const Operand gates(given[0]), c(given[1]), w(given[2]), dh(given[3]), dc(given[4]);
  const Call call("native_lstm_backward", gates, 4);
  const Index n = call.steps, b = call.batch, k = call.hidden;
  call.expect(1, c, {n + 1, b, k}), call.expect(2, w, {4 * k, k});
  call.expect(3, dh, {n + 1, b, k}), call.expect(4, dc, {b, k});
  Owned dz(call.result({n, b, 4 * k})), dh0(call.result({b, k})), dc0(call.result({b, k}));
  const Operand to_dz(dz.handle), to_dh0(dh0.handle), to_dc0(dc0.handle);
  by_type(gates, [&](auto zero) {
    using T = decltype(zero);
    side_by_side(call.members, [&](Index i) {
      lstm_backward<T>(call.layer(), steps<T>(gates, i), steps<T>(c, i), w.matrix<const T>(i), steps<T>(dh, i),
                       dc.matrix<const T>(i), to_dz.part<T>(3, i), to_dh0.part<T>(2, i), to_dc0.part<T>(2, i));
    });
  });
  results[0] = dz.release(), results[1] = dh0.release(), results[2] = dc0.release();
}

// z, w, bias of q, h0 -> h, gates
void native_gru(const AtenTensorHandle* given, AtenTensorHandle* results) {
  const Operand z(given[0]), w(given[1]), bias(given[2]), h0(given[3]);
  const Call call("native_gru", z, 3);
  const Index n = call.steps, b = call.batch, k = call.hidden;
  call.expect(1, w, {3 * k, k}), call.expect(2, bias, {k}), call.expect(3, h0, {b, k});
  Owned h(call.result({n + 1, b, k})), gates(call.result({n, b, 4 * k}));
  const Operand to_h(h.handle), to_gates(gates.handle);
  by_type(z, [&](auto zero) {
    using T = decltype(zero);
    side_by_side(call.members, [&](Index i) {
      T* states = to_h.part<T>(3, i);
      copy(h0.matrix<const T>(i), b, k, states);
      gru<T>(call.layer(), steps<T>(z, i), w.matrix<const T>(i), {bias.part<const T>(1, i), 0, bias.stride(1)}, states,
             to_gates.part<T>(3, i));
    });
  });
  results[0] = h.release(), results[1] = gates.release();
}

// gates, h, w, dh -> the gradients of the gates, dh0
void native_gru_backward(const AtenTensorHandle* given, AtenTensorHandle* results) {
  const Operand gates(given[0]), h(given[1]), w(given[2]), dh(given[3]);
  const Call call("native_gru_backward", gates, 4);
  const Index n = call.steps, b = call.batch, k = call.hidden;
  call.expect(1, h, {n + 1, b, k}), call.expect(2, w, {3 * k, k}), call.expect(3, dh, {n + 1, b, k});
  Owned d(call.result({n, b, 4 * k})), dh0(call.result({b, k}));
  const Operand to_d(d.handle), to_dh0(dh0.handle);
  by_type(gates, [&](auto zero) {
    using T = decltype(zero);
    side_by_side(call.members, [&](Index i) {
      gru_backward<T>(call.layer(), steps<T>(gates, i), steps<T>(h, i), w.matrix<const T>(i), steps<T>(dh, i),
                      to_d.part<T>(3, i), to_dh0.part<T>(2, i));
    });
  });
  results[0] = d.release(), results[1] = dh0.release();
}

const bool recurrent_installed = install(__FILE__, {{"native_lstm", boxed<native_lstm, 4, 3>},
                                                 {"native_lstm_backward", boxed<native_lstm_backward, 5, 3>},
                                          {"native_gru", boxed<native_gru, 4, 2>},
                                          {"native_gru_backward", boxed<native_gru_backward, 4, 2>}});

}  // namespace

extern "C" {
using Handle = AtenTensorHandle;
AOTITorchError aoti_torch_cpu_native_lstm(Handle z, Handle w, Handle h0, Handle c0, Handle* h, Handle* c,
                                          Handle* gates) {
  return direct<native_lstm>({z, w, h0, c0}, h, c, gates);
}
AOTITorchError aoti_torch_cpu_native_lstm_backward(Handle gates, Handle c, Handle w, Handle dh, Handle dc, Handle* dz,
                                                   Handle* dh0, Handle* dc0) {
  return direct<native_lstm_backward>({gates, c, w, dh, dc}, dz, dh0, dc0);
}
AOTITorchError aoti_torch_cpu_native_gru(Handle z, Handle w, Handle bias, Handle h0, Handle* h, Handle* gates) {
  return direct<native_gru>({z, w, bias, h0}, h, gates);
}
AOTITorchError aoti_torch_cpu_native_gru_backward(Handle gates, Handle h, Handle w, Handle dh, Handle* d,
                                                  Handle* dh0) {
  return direct<native_gru_backward>({gates, h, w, dh}, d, dh0);
}
}
