// LSTM and GRU layers over whole sequences, forward and backward, for one member and on one thread.
//
// A step is a small matrix product and then, for each row, functions of the gates.

#pragma once

#include <vector>

#include "vectors.h"

namespace {

// Sizes of a layer: steps, sequences and hidden features.
struct Layer {
  Index steps, batch, hidden;
};

// A matrix with rows of adjacent numbers: the given one, or a copy of it where they are apart.
template <class T>
struct Rows {
  std::vector<T> copy;

  Matrix<const T> of(Matrix<const T> given, Index rows, Index columns) {
    if (given.column == 1) return given;
    copy.resize(rows * columns);
    for (Index i = 0; i < rows; i++) {
      for (Index j = 0; j < columns; j++) copy[i * columns + j] = *given.at(i, j).data;
    }
    return {copy.data(), columns, 1};
  }
};

// The right factor of all steps' products, with rows of adjacent numbers and at least a vector of them, so that no
// step has to pack it: columns beyond its own are zeros.
template <class T>
struct Factor {
  Index depth, columns;
  std::vector<T> packed;
  Matrix<const T> matrix;

  Factor(Matrix<const T> given, Index depth, Index width)
      : depth(depth), columns(std::max<Index>(width, lanes<T>)), matrix(given) {
    if (given.column == 1 && columns == width) return;
    packed.resize(depth * columns);
    pack<T>(given, width, depth, packed.data(), columns);
    matrix = {packed.data(), columns, 1};
  }

  // to [rows, columns] = a [rows, depth] times this
  void multiply(Index rows, Matrix<const T> a, T* to) const {
    product<T>(rows, columns, depth, a, matrix, {to, columns, 1});
  }
};

// A stack of matrices, one for each step.
template <class T>
struct Steps {
  Matrix<T> first;
  Index step;

  Matrix<T> operator[](Index t) const { return {first.data + t * step, first.row, first.column}; }
};

// i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of z + W h;  c = f c + i g;  h = o tanh(c)
//
// z [steps, batch, 4 hidden], w [4 hidden, hidden]; h and c [steps + 1, batch, hidden], of which the first is given
// and already there; gates [steps, batch, 4 hidden]. h, c and gates are contiguous.
template <class T>
void lstm(Layer layer, Steps<const T> z, Matrix<const T> w, T* h, T* c, T* gates) {
  const Index batch = layer.batch, hidden = layer.hidden;
  const Factor<T> factor(w.transposed(), hidden, 4 * hidden);
  std::vector<T> recurrent(batch * factor.columns);
  Rows<T> rows;
  with_vectors<T>(hidden, [&](auto vectors) {
    using V = decltype(vectors);
    for (Index t = 0; t < layer.steps; t++) {
      factor.multiply(batch, {h, hidden, 1}, recurrent.data());
      const Matrix<const T> given = rows.of(z[t], batch, 4 * hidden);
      const T* last = c;
      h += batch * hidden, c += batch * hidden;
      each<V>(batch, hidden, [=, &recurrent, &factor](Index row, Index j) {
        const T *x = given.at(row, j).data, *y = &recurrent[row * factor.columns + j];
        const auto sum = [=](Index gate) { return V::load(x + gate * hidden) + V::load(y + gate * hidden); };
        const auto i = V::sigmoid(sum(0)), f = V::sigmoid(sum(1)), g = V::tanh(sum(2)), o = V::sigmoid(sum(3));
        const auto cell = f * V::load(last + row * hidden + j) + i * g;
        T* saved = gates + row * 4 * hidden + j;
        V::store(saved, i), V::store(saved + hidden, f), V::store(saved + 2 * hidden, g);
        V::store(saved + 3 * hidden, o), V::store(c + row * hidden + j, cell);
        V::store(h + row * hidden + j, o * V::tanh(cell));
      });
      gates += batch * 4 * hidden;
    }
  });
}

// The gradients of all of z, of h[0] and of c[0], from those of all of h and of the last c.
//
// dz [steps, batch, 4 hidden], dh0 and dc0 [batch, hidden] are contiguous.
template <class T>
void lstm_backward(Layer layer, Steps<const T> gates, Steps<const T> c, Matrix<const T> w, Steps<const T> dh,
                   Matrix<const T> dc, T* dz, T* dh0, T* dc0) {
  const Index batch = layer.batch, hidden = layer.hidden;
  const Factor<T> factor(w, 4 * hidden, hidden);
  std::vector<T> recurrent(batch * factor.columns), carried[2];
  for (auto& carry : carried) carry.resize(batch * hidden);
  Rows<T> rows[4];
  for (Index row = 0; row < batch; row++) {
    for (Index j = 0; j < hidden; j++) carried[layer.steps % 2][row * hidden + j] = *dc.at(row, j).data;
  }
  with_vectors<T>(hidden, [&](auto vectors) {
    using V = decltype(vectors);
    for (Index t = layer.steps; t-- > 0;) {
      const Matrix<const T> saved = rows[0].of(gates[t], batch, 4 * hidden), last = rows[1].of(c[t], batch, hidden),
                            cells = rows[2].of(c[t + 1], batch, hidden), given = rows[3].of(dh[t + 1], batch, hidden);
      const T* carry = carried[(t + 1) % 2].data();
      T *next = carried[t % 2].data(), *to = dz + t * batch * 4 * hidden;
      each<V>(batch, hidden, [=, &recurrent, &factor](Index row, Index j) {
        const T* gate = saved.at(row, j).data;
        const auto i = V::load(gate), f = V::load(gate + hidden), g = V::load(gate + 2 * hidden),
                   o = V::load(gate + 3 * hidden), tanh = V::tanh(V::load(cells.at(row, j).data)),
                   dy = V::load(given.at(row, j).data) + V::load(&recurrent[row * factor.columns + j]),
                   ds = V::load(carry + row * hidden + j) + dy * o * (T(1) - tanh * tanh);
        T* d = to + row * 4 * hidden + j;
        V::store(d, ds * g * i * (T(1) - i));
        V::store(d + hidden, ds * V::load(last.at(row, j).data) * f * (T(1) - f));
        V::store(d + 2 * hidden, ds * i * (T(1) - g * g));
        V::store(d + 3 * hidden, dy * tanh * o * (T(1) - o));
        V::store(next + row * hidden + j, ds * f);
      });
      factor.multiply(batch, {to, 4 * hidden, 1}, recurrent.data());
    }
  });
  for (Index row = 0; row < batch; row++) {
    for (Index j = 0; j < hidden; j++) {
      dh0[row * hidden + j] = *dh[0].at(row, j).data + recurrent[row * factor.columns + j];
      dc0[row * hidden + j] = carried[0][row * hidden + j];
    }
  }
}

// n = tanh(z_n + r q), r, u = sigmoid of z + W h, with q = W_q h + b;  h = n + u (h - n)
//
// The gates lie in the order n, r, u in z [steps, batch, 3 hidden] and n, r, u, q in gates [steps, batch, 4 hidden];
// the rows of w [3 hidden, hidden] belong to r, u and q. h [steps + 1, batch, hidden], of which the first is there.
template <class T>
void gru(Layer layer, Steps<const T> z, Matrix<const T> w, Matrix<const T> bias, T* h, T* gates) {
  const Index batch = layer.batch, hidden = layer.hidden;
  const Factor<T> factor(w.transposed(), hidden, 3 * hidden);
  std::vector<T> recurrent(batch * factor.columns);
  Rows<T> rows, ones;
  const T* b = ones.of(bias, 1, hidden).data;
  with_vectors<T>(hidden, [&](auto vectors) {
    using V = decltype(vectors);
    for (Index t = 0; t < layer.steps; t++) {
      factor.multiply(batch, {h, hidden, 1}, recurrent.data());
      const Matrix<const T> given = rows.of(z[t], batch, 3 * hidden);
      const T* last = h;
      h += batch * hidden;
      each<V>(batch, hidden, [=, &recurrent, &factor](Index row, Index j) {
        const T *x = given.at(row, j).data, *y = &recurrent[row * factor.columns + j];
        const auto r = V::sigmoid(V::load(x + hidden) + V::load(y)),
                   u = V::sigmoid(V::load(x + 2 * hidden) + V::load(y + hidden)),
                   q = V::load(y + 2 * hidden) + V::load(b + j), n = V::tanh(V::load(x) + r * q);
        T* saved = gates + row * 4 * hidden + j;
        V::store(saved, n), V::store(saved + hidden, r), V::store(saved + 2 * hidden, u);
        V::store(saved + 3 * hidden, q);
        V::store(h + row * hidden + j, n + u * (V::load(last + row * hidden + j) - n));
      });
      gates += batch * 4 * hidden;
    }
  });
}

// The gradients d [steps, batch, 4 hidden] of z and q, in the order n, r, u, q, and of h[0], from those of all of h.
template <class T>
void gru_backward(Layer layer, Steps<const T> gates, Steps<const T> h, Matrix<const T> w, Steps<const T> dh, T* d,
                  T* dh0) {
  const Index batch = layer.batch, hidden = layer.hidden;
  const Factor<T> factor(w, 3 * hidden, hidden);
  std::vector<T> recurrent(batch * factor.columns), carried[2];
  for (auto& carry : carried) carry.resize(batch * hidden);
  Rows<T> rows[3];
  with_vectors<T>(hidden, [&](auto vectors) {
    using V = decltype(vectors);
    for (Index t = layer.steps; t-- > 0;) {
      const Matrix<const T> saved = rows[0].of(gates[t], batch, 4 * hidden), last = rows[1].of(h[t], batch, hidden),
                            given = rows[2].of(dh[t + 1], batch, hidden);
      const T* carry = carried[(t + 1) % 2].data();
      T *next = carried[t % 2].data(), *to = d + t * batch * 4 * hidden;
      each<V>(batch, hidden, [=, &recurrent, &factor](Index row, Index j) {
        const T* gate = saved.at(row, j).data;
        const auto n = V::load(gate), r = V::load(gate + hidden), u = V::load(gate + 2 * hidden),
                   q = V::load(gate + 3 * hidden),
                   dy = V::load(given.at(row, j).data) + V::load(&recurrent[row * factor.columns + j]) +
                        V::load(carry + row * hidden + j),
                   dn = dy * (T(1) - u) * (T(1) - n * n);
        T* of = to + row * 4 * hidden + j;
        V::store(of, dn);
        V::store(of + hidden, dn * q * r * (T(1) - r));
        V::store(of + 2 * hidden, dy * (V::load(last.at(row, j).data) - n) * u * (T(1) - u));
        V::store(of + 3 * hidden, dn * r);
        V::store(next + row * hidden + j, dy * u);
      });
      factor.multiply(batch, {to + hidden, 4 * hidden, 1}, recurrent.data());
    }
  });
  for (Index row = 0; row < batch; row++) {
    for (Index j = 0; j < hidden; j++) {
      dh0[row * hidden + j] =
          *dh[0].at(row, j).data + recurrent[row * factor.columns + j] + carried[0][row * hidden + j];
    }
  }
}

}  // namespace
