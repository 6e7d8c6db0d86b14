// The convolutions of src/l2path/lowerings/convolution.h against plain loops, over odd sizes; built and run under
// AddressSanitizer and UndefinedBehaviorSanitizer by `nox -s sanitize`. Every operand has an allocation of its own that
// ends with its last element, so that a read or write beyond it is seen.

#include "../../src/l2path/lowerings/convolution.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

namespace {

long convolutions = 0, failures = 0;

template <class T>
std::vector<T> numbers(Index count, unsigned state) {
  std::vector<T> held(count);
  held.shrink_to_fit();
  for (T& x : held) {
    state = state * 1664525u + 1013904223u;
    x = T(int(state >> 8) - (1 << 23)) / T(1 << 23);
  }
  return held;
}

// Sums of products in any order differ by no more than this part of the sum of their sizes.
template <class T>
void expect(const char* what, const Images& s, Index terms, Index at, double found, double sum, double size) {
  const double bound = (double(terms) + 1) * std::numeric_limits<T>::epsilon() * size;
  if (!(std::abs(found - sum) <= bound) && failures++ < 10) {
    std::printf("%s of %ld x %ld x %ld x %ld, kernel %ld x %ld to %ld: element %ld is %g, not %g\n", what,
                long(s.count), long(s.height), long(s.width), long(s.channels), long(s.kernel_height),
                long(s.kernel_width), long(s.out), long(at), found, sum);
  }
}

template <class T>
void compare(const Images& s) {
  const auto x = numbers<T>(s.count * s.height * s.width * s.channels, 1), w = numbers<T>(s.depth() * s.out, 2),
             dy = numbers<T>(s.count * s.rows() * s.columns() * s.out, 3);
  std::vector<T> y(dy.size(), T(77)), dw(w.size(), T(77));  // what is left of it shows
  convolution<T>(s, x.data(), {w.data(), s.out, 1}, y.data());
  convolution_weight<T>(s, x.data(), dy.data(), dw.data());
  convolutions++;
  std::vector<double> sums(y.size()), sizes(y.size()), weight_sums(w.size()), weight_sizes(w.size());
  Index pixel = 0;
  for (Index n = 0; n < s.count; n++) {
    for (Index i = 0; i < s.rows(); i++) {
      for (Index j = 0; j < s.columns(); j++, pixel++) {
        for (Index k = 0; k < s.depth(); k++) {
          const Index row = i + k / s.run(), column = j + k % s.run() / s.channels, channel = k % s.channels;
          const double value = x[((n * s.height + row) * s.width + column) * s.channels + channel];
          for (Index o = 0; o < s.out; o++) {
            const double term = value * double(w[k * s.out + o]), back = value * double(dy[pixel * s.out + o]);
            sums[pixel * s.out + o] += term, sizes[pixel * s.out + o] += std::abs(term);
            weight_sums[k * s.out + o] += back, weight_sizes[k * s.out + o] += std::abs(back);
          }
        }
      }
    }
  }
  for (Index i = 0; i < Index(y.size()); i++) expect<T>("result", s, s.depth(), i, double(y[i]), sums[i], sizes[i]);
  for (Index i = 0; i < Index(dw.size()); i++) {
    expect<T>("gradient", s, pixel, i, double(dw[i]), weight_sums[i], weight_sizes[i]);
  }
}

template <class T>
void all() {
  for (Index count : {1, 3}) {
    for (Index channels : {1, 2, 5}) {
      for (Index out : {1, 3, 4, 7, 8, 15, 16, 17, 33, 70}) {
        for (Index height : {1, 3, 6}) {
          for (Index width : {1, 2, 5, 13, 26}) {
            for (Index kernel_height : {1, 2, 3}) {
              for (Index kernel_width : {1, 3, 5}) {
                const Images s{count, height, width, channels, kernel_height, kernel_width, out};
                if (s.rows() > 0 && s.columns() > 0) compare<T>(s);
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace

int main() {
  all<float>();
  all<double>();
  std::printf("%ld convolutions with vectors of %d bytes, %ld wrong numbers\n", convolutions, kVectorBytes, failures);
  return failures ? 1 : 0;
}
