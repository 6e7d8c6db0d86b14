// Vectors of any power of two of numbers, no wider than the registers, and functions of them that the libraries do not
// have in a portable form: sigmoid and tanh, within two units in the last place.

#pragma once

#include <limits>
#include <type_traits>

#include "product.h"

namespace {

template <class T, int LANES>
struct Wide {
  using Number = T;
  using Bit = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  typedef T Vector __attribute__((vector_size(LANES * sizeof(T))));
  typedef Bit Bits __attribute__((vector_size(LANES * sizeof(T))));

  static Vector load(const T* from) {
    Vector to;
    std::memcpy(&to, from, sizeof to);
    return to;
  }
  static void store(T* to, Vector from) { std::memcpy(to, &from, sizeof from); }

  // The sign bits of the numbers.
  static constexpr Bit kSign = Bit(1) << (8 * sizeof(T) - 1);
  static Vector negative(Vector x) { return Vector(Bits(x) | kSign); }  // -|x|

  // exp(x) = scale + scale * rest for x <= 0, with rest = exp(r) - 1 for what is left of x beside multiples of log 2.
  // Below kLowest, where exp is no normal number, they are anything; of NaN the rest is NaN.
  struct Exponential {
    Vector scale, rest;
  };
  static constexpr int kDigits = std::numeric_limits<T>::digits - 1;
  static constexpr T kLowest = sizeof(T) == 4 ? T(-87.3) : T(-708.3);

  static Exponential exponential(Vector x) {
    // The first part has few digits, so that multiples of it are exact (Cody and Waite, 1980).
    constexpr T first = sizeof(T) == 4 ? T(0.693359375) : T(6.93147180369123816490e-01);
    constexpr T second = sizeof(T) == 4 ? T(-2.12194440e-4) : T(1.90821492927058770002e-10);
    constexpr T to_integer = T(3) * T(Bit(1) << (kDigits - 1));  // a sum with this has no digits after the point
    constexpr int degree = sizeof(T) == 4 ? 7 : 13;
    const Vector shifted = x * T(1.44269504088896340736) + to_integer;
    const Vector n = shifted - to_integer;
    const Vector r = x - n * first - n * second;
    Bit zero;
    std::memcpy(&zero, &to_integer, sizeof zero);
    constexpr Bit bias = std::numeric_limits<T>::max_exponent - 1;
    const Vector scale = Vector((Bits(shifted) - zero + bias) << kDigits);
    // Taylor: where |r| <= log(2) / 2 its error is below that of rounding.
    Vector sum = Vector{} + kInverseFactorials.of[degree];
    UNROLL for (int k = degree - 1; k >= 2; k--) sum = sum * r + kInverseFactorials.of[k];
    return {scale, sum * (r * r) + r};
  }

  static Vector sigmoid(Vector x) {
    const Vector y = negative(x);
    const auto [scale, rest] = exponential(y);
    const Vector one = Vector{} + T(1), e = y < kLowest ? Vector{} : scale * rest + scale;
    return (x < T(0) ? e : one) / (one + e);
  }

  static Vector tanh(Vector x) {
    const Vector y = negative(x) * T(2);
    const auto [scale, rest] = exponential(y);
    // exp(y) - 1, exact to the last digits for small y too
    const Vector e = y < kLowest ? Vector{} - T(1) : scale * rest + (scale - T(1));
    return Vector((Bits(e / (e + T(2))) & ~kSign) | (Bits(x) & kSign));
  }

 private:
  struct Table {
    T of[14] = {};
  };
  static constexpr Table inverse_factorials() {
    Table table;
    double factorial = 1;
    for (int k = 0; k < 14; k++) {
      table.of[k] = T(1 / factorial);
      factorial *= k + 1;
    }
    return table;
  }
  static constexpr Table kInverseFactorials = inverse_factorials();
};

// Calls `call` with vectors no wider than `width`, so that the last one of a row can overlap the one before.
template <class T, int LANES = lanes<T>, class Call>
void with_vectors(Index width, Call call) {
  if constexpr (LANES > 1) {
    if (width < LANES) return with_vectors<T, LANES / 2>(width, call);
  }
  call(Wide<T, LANES>());
}

// Calls `call(row, first)` for all vectors of all rows. Lanes that two vectors share are computed alike and stored
// twice, so nothing may be read after it was overwritten.
template <class Vectors, class Call>
void each(Index rows, Index width, Call call) {
  constexpr Index step = sizeof(typename Vectors::Vector) / sizeof(typename Vectors::Number);
  for (Index i = 0; i < rows; i++) {
    for (Index j = 0; j < width; j += step) call(i, std::min(j, width - step));
  }
}

}  // namespace
