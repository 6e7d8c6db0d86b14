// The product of src/l2path/lowerings/product.h against three plain loops, over odd sizes and strides; built and run
// under AddressSanitizer and UndefinedBehaviorSanitizer by `nox -s sanitize`. Every operand has an allocation of its
// own that ends with its last element, so that a read or write beyond it is seen.

#include "../../src/l2path/lowerings/product.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

namespace {

long products = 0, failures = 0;

enum class Order { rows, columns, gaps, every_second, one_row, one_column };
constexpr Order kOrders[] = {Order::rows, Order::columns, Order::gaps, Order::every_second, Order::one_row,
                             Order::one_column};

// A matrix with numbers between -1 and 1 in an allocation of just the size that it needs.
template <class T>
struct Numbers {
  std::vector<T> held;
  Matrix<const T> matrix;

  Numbers(Index rows, Index columns, Order order, unsigned seed) {
    Index row = columns, column = 1;
    if (order == Order::columns) row = 1, column = rows;
    if (order == Order::gaps) row = columns + 3;
    if (order == Order::every_second) row = 2 * columns, column = 2;
    if (order == Order::one_row) row = 0;
    if (order == Order::one_column) row = 1, column = 0;
    held.resize(rows && columns ? (rows - 1) * row + (columns - 1) * column + 1 : 0);
    held.shrink_to_fit();
    unsigned state = seed;
    for (T& x : held) {
      state = state * 1664525u + 1013904223u;
      x = T(int(state >> 8) - (1 << 23)) / T(1 << 23);
    }
    matrix = {held.data(), row, column};
  }
};

template <class T>
void compare(Index rows, Index columns, Index depth, Order left, Order right, bool flipped) {
  const Numbers<T> a(rows, depth, left, 1), b(depth, columns, right, 2);
  std::vector<T> found(rows * columns, T(77));  // what is left of it shows
  Matrix<T> c{found.data(), columns, 1};
  if (flipped) c = {found.data(), 1, rows};
  product<T>(rows, columns, depth, a.matrix, b.matrix, c);
  products++;
  for (Index i = 0; i < rows; i++) {
    for (Index j = 0; j < columns; j++) {
      double sum = 0, size = 0;
      for (Index k = 0; k < depth; k++) {
        const double term = double(*a.matrix.at(i, k).data) * double(*b.matrix.at(k, j).data);
        sum += term, size += std::abs(term);
      }
      // The bound of a sum of rounded products (Higham 2002, equation 3.5), in any order.
      const double bound = (double(depth) + 1) * std::numeric_limits<T>::epsilon() * size;
      if (!(std::abs(double(*c.at(i, j).data) - sum) <= bound)) {
        if (failures++ < 10) {
          std::printf("%ld x %ld x %ld, orders %d and %d: C[%ld, %ld] is %g, not %g\n", long(rows), long(depth),
                      long(columns), int(left), int(right), long(i), long(j), double(*c.at(i, j).data), sum);
        }
        return;
      }
    }
  }
}

template <class T>
void all() {
  for (Index rows : {0, 1, 2, 3, 5, 7, 8, 12, 13, 25, 31}) {
    for (Index columns : {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 47, 49, 63, 64, 65, 70, 81, 97}) {
      for (Index depth : {0, 1, 3, 4, 17, 66}) {
        for (Order left : kOrders) {
          for (Order right : kOrders) compare<T>(rows, columns, depth, left, right, false);
        }
      }
    }
  }
  for (Index depth : {255, 256, 257, 515}) {  // more than one pass over B
    for (Index columns : {1, 3, 10, 20, 70}) {
      for (Order left : kOrders) {
        for (Order right : kOrders) {
          for (bool flipped : {false, true}) compare<T>(13, columns, depth, left, right, flipped);
        }
      }
    }
  }
}

}  // namespace

int main() {
  all<float>();
  all<double>();
  std::printf("%ld products with vectors of %d bytes, %ld wrong\n", products, kVectorBytes, failures);
  return failures ? 1 : 0;
}
