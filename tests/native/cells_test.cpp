// The layers of src/l2path/lowerings/cells.h against plain loops over one number at a time, over odd sizes and strides,
// and their functions against the standard library's; built and run under AddressSanitizer and
// UndefinedBehaviorSanitizer by `nox -s sanitize`. Every operand has an allocation of its own that ends with its last
// element, so that a read or write beyond it is seen.

#include "../../src/l2path/lowerings/cells.h"

#include <cmath>
#include <cstdio>

namespace {

long layers = 0, failures = 0;

enum class Order { rows, gaps, every_second, columns, shared };
constexpr Order kOrders[] = {Order::rows, Order::gaps, Order::every_second, Order::columns, Order::shared};

// A stack of matrices with numbers between -1 and 1 in an allocation of just the size that it needs.
template <class T>
struct Numbers {
  std::vector<T> held;
  Steps<const T> steps;

  Numbers(Index count, Index rows, Index columns, Order order, unsigned seed) {
    Index row = columns, column = 1;
    if (order == Order::gaps) row = columns + 3;
    if (order == Order::every_second) row = 2 * columns, column = 2;
    if (order == Order::columns) row = 1, column = rows;
    if (order == Order::shared) row = 0;
    const Index step = order == Order::shared ? 0 : order == Order::columns ? rows * columns : rows * row;
    held.resize((count - 1) * step + (rows - 1) * row + (columns - 1) * column + 1);
    held.shrink_to_fit();
    for (T& x : held) {
      seed = seed * 1664525u + 1013904223u;
      x = T(int(seed >> 8) - (1 << 23)) / T(1 << 23);
    }
    steps = {{held.data(), row, column}, step};
  }
  double operator()(Index t, Index i, Index j) const { return *steps[t].at(i, j).data; }
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

template <class T>
void compare(const char* what, Index hidden, const std::vector<T>& found, const std::vector<double>& wanted) {
  for (size_t i = 0; i < wanted.size(); i++) {
    if (std::abs(double(found[i]) - wanted[i]) <= 100 * std::numeric_limits<T>::epsilon() * (1 + std::abs(wanted[i]))) {
      continue;
    }
    if (failures++ < 10) std::printf("%s of %ld: %g, not %g\n", what, long(hidden), double(found[i]), wanted[i]);
    return;
  }
}

template <class T>
void lstm_layers(Index steps, Index batch, Index hidden, Order order) {
  const Index size = batch * hidden;
  const Numbers<T> z(steps, batch, 4 * hidden, order, 1), w(1, 4 * hidden, hidden, order, 2),
      first(2, batch, hidden, Order::rows, 3), dh(steps + 1, batch, hidden, order, 4), dc(1, batch, hidden, order, 5);
  std::vector<T> h(first.held.begin(), first.held.begin() + size), c(first.held.begin() + size, first.held.end()),
      gates(steps * size * 4), dz(gates.size()), dh0(size), dc0(size);
  h.resize((steps + 1) * size), c.resize((steps + 1) * size);
  lstm<T>({steps, batch, hidden}, z.steps, w.steps[0], h.data(), c.data(), gates.data());
  std::vector<double> eh(h.begin(), h.begin() + size), ec(c.begin(), c.begin() + size), eg;
  for (Index t = 0; t < steps; t++) {
    for (Index b = 0; b < batch; b++) {
      for (Index j = 0; j < 4 * hidden; j++) {
        double sum = z(t, b, j);
        for (Index k = 0; k < hidden; k++) sum += w(0, j, k) * eh[t * size + b * hidden + k];
        eg.push_back(j / hidden == 2 ? std::tanh(sum) : sigmoid(sum));
      }
      for (Index j = 0; j < hidden; j++) {
        const double* gate = &eg[(t * batch + b) * 4 * hidden + j];
        ec.push_back(gate[hidden] * ec[t * size + b * hidden + j] + gate[0] * gate[2 * hidden]);
        eh.push_back(gate[3 * hidden] * std::tanh(ec.back()));
      }
    }
  }
  compare("h", hidden, h, eh), compare("c", hidden, c, ec), compare("gates", hidden, gates, eg);

  const Steps<const T> held_gates{{gates.data(), 4 * hidden, 1}, 4 * size}, held_c{{c.data(), hidden, 1}, size};
  lstm_backward<T>({steps, batch, hidden}, held_gates, held_c, w.steps[0], dh.steps, dc.steps[0], dz.data(),
                   dh0.data(), dc0.data());
  std::vector<double> edz(dz.size()), edh(size), edc(size);
  for (Index i = 0; i < size; i++) edc[i] = dc(0, i / hidden, i % hidden);
  for (Index t = steps; t-- > 0;) {
    for (Index i = 0; i < size; i++) {
      const Index b = i / hidden, j = i % hidden;
      const double *gate = &eg[(t * batch + b) * 4 * hidden + j], y = std::tanh(ec[(t + 1) * size + i]);
      const double in = gate[0], f = gate[hidden], g = gate[2 * hidden], o = gate[3 * hidden];
      const double dy = dh(t + 1, b, j) + edh[i], ds = edc[i] + dy * o * (1 - y * y);
      double* d = &edz[(t * batch + b) * 4 * hidden + j];
      d[0] = ds * g * in * (1 - in), d[hidden] = ds * ec[t * size + i] * f * (1 - f);
      d[2 * hidden] = ds * in * (1 - g * g), d[3 * hidden] = dy * y * o * (1 - o);
      edc[i] = ds * f;
    }
    for (Index i = 0; i < size; i++) {
      edh[i] = 0;
      for (Index j = 0; j < 4 * hidden; j++) {
        edh[i] += edz[(t * batch + i / hidden) * 4 * hidden + j] * w(0, j, i % hidden);
      }
    }
  }
  for (Index i = 0; i < size; i++) edh[i] += dh(0, i / hidden, i % hidden);
  compare("dz", hidden, dz, edz), compare("dh0", hidden, dh0, edh), compare("dc0", hidden, dc0, edc);
  layers++;
}

template <class T>
void gru_layers(Index steps, Index batch, Index hidden, Order order) {
  const Index size = batch * hidden;
  const Numbers<T> z(steps, batch, 3 * hidden, order, 1), w(1, 3 * hidden, hidden, order, 2),
      bias(1, 1, hidden, order, 3), first(1, batch, hidden, Order::rows, 4), dh(steps + 1, batch, hidden, order, 5);
  std::vector<T> h(first.held), gates(steps * size * 4), d(gates.size()), dh0(size);
  h.resize((steps + 1) * size);
  gru<T>({steps, batch, hidden}, z.steps, w.steps[0], bias.steps[0], h.data(), gates.data());
  std::vector<double> eh(h.begin(), h.begin() + size), eg(gates.size());
  for (Index t = 0; t < steps; t++) {
    for (Index i = 0; i < size; i++) {
      const Index b = i / hidden, j = i % hidden;
      double sums[3] = {};
      for (Index gate = 0; gate < 3; gate++) {
        for (Index k = 0; k < hidden; k++) sums[gate] += w(0, gate * hidden + j, k) * eh[t * size + b * hidden + k];
      }
      const double r = sigmoid(z(t, b, hidden + j) + sums[0]), u = sigmoid(z(t, b, 2 * hidden + j) + sums[1]),
                   q = sums[2] + bias(0, 0, j), n = std::tanh(z(t, b, j) + r * q);
      double* gate = &eg[(t * batch + b) * 4 * hidden + j];
      gate[0] = n, gate[hidden] = r, gate[2 * hidden] = u, gate[3 * hidden] = q;
      eh.push_back((1 - u) * n + u * eh[t * size + i]);
    }
  }
  compare("GRU h", hidden, h, eh), compare("GRU gates", hidden, gates, eg);

  const Steps<const T> held_gates{{gates.data(), 4 * hidden, 1}, 4 * size}, held_h{{h.data(), hidden, 1}, size};
  gru_backward<T>({steps, batch, hidden}, held_gates, held_h, w.steps[0], dh.steps, d.data(), dh0.data());
  std::vector<double> ed(d.size()), edh(size);
  for (Index t = steps; t-- > 0;) {
    for (Index i = 0; i < size; i++) {
      const double* gate = &eg[(t * batch + i / hidden) * 4 * hidden + i % hidden];
      const double n = gate[0], r = gate[hidden], u = gate[2 * hidden], q = gate[3 * hidden];
      const double dy = edh[i] + dh(t + 1, i / hidden, i % hidden), dn = dy * (1 - u) * (1 - n * n);
      double* to = &ed[(t * batch + i / hidden) * 4 * hidden + i % hidden];
      to[0] = dn, to[hidden] = dn * q * r * (1 - r), to[3 * hidden] = dn * r;
      to[2 * hidden] = dy * (eh[t * size + i] - n) * u * (1 - u);
      edh[i] = dy * u;
    }
    for (Index i = 0; i < size; i++) {
      for (Index j = 0; j < 3 * hidden; j++) {
        edh[i] += ed[(t * batch + i / hidden) * 4 * hidden + hidden + j] * w(0, j, i % hidden);
      }
    }
  }
  for (Index i = 0; i < size; i++) edh[i] += dh(0, i / hidden, i % hidden);
  compare("GRU d", hidden, d, ed), compare("GRU dh0", hidden, dh0, edh);
  layers++;
}

// sigmoid and tanh within two units in the last place of long double's, and at the ends of the numbers.
template <class T, int LANES>
void functions() {
  using V = Wide<T, LANES>;
  using Exact = long double;
  const auto apply = [](T x) {
    T in[LANES], sigmoid[LANES], tanh[LANES];
    std::fill(in, in + LANES, x);
    V::store(sigmoid, V::sigmoid(V::load(in))), V::store(tanh, V::tanh(V::load(in)));
    return std::pair<T, T>(sigmoid[LANES - 1], tanh[LANES - 1]);
  };
  const auto wrong = [](T x, T found, Exact exact) {
    const Exact bound = 2 * std::numeric_limits<T>::epsilon() * std::abs(exact);
    if (!(std::abs(found - exact) <= bound) && failures++ < 10) {
      std::printf("at %g: %.17g, not %.17Lg\n", double(x), double(found), exact);
    }
  };
  for (int k = -20000; k <= 20000; k++) {
    for (const Exact size : {Exact(k) / 230, std::pow(Exact(10), Exact(k) / 700)}) {
      for (const Exact sign : {1, -1}) {
        const T x = T(sign * size);
        if (!(std::abs(x) < (sizeof(T) == 4 ? 87 : 700)) || std::abs(x) < std::numeric_limits<T>::min()) continue;
        const auto [s, t] = apply(x);
        wrong(x, s, x < 0 ? std::exp(Exact(x)) / (1 + std::exp(Exact(x))) : 1 / (1 + std::exp(-Exact(x))));
        wrong(x, t, std::tanh(Exact(x)));
      }
    }
  }
  constexpr T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  for (const T large : {T(800), std::numeric_limits<T>::max(), infinity}) {
    if (apply(large) != std::pair<T, T>(1, 1) || apply(-large) != std::pair<T, T>(0, -1)) failures++;
  }
  if (apply(nan).first == apply(nan).first || apply(nan).second == apply(nan).second) failures++;
  if (apply(T(0)) != std::pair<T, T>(T(0.5), 0) || !std::signbit(apply(-T(0)).second)) failures++;
  if constexpr (LANES > 1) functions<T, LANES / 2>();
}

template <class T>
void all() {
  functions<T, lanes<T>>();
  for (const Index hidden : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 20, 31, 33, 50}) {
    for (const Index batch : {1, 3, 13}) {
      for (const Index steps : {1, 2, 5}) {
        for (const Order order : kOrders) {
          lstm_layers<T>(steps, batch, hidden, order);
          gru_layers<T>(steps, batch, hidden, order);
        }
      }
    }
  }
}

}  // namespace

int main() {
  all<float>();
  all<double>();
  std::printf("%ld layers with vectors of %d bytes, %ld wrong\n", layers, kVectorBytes, failures);
  return failures ? 1 : 0;
}
