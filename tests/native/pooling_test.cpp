// The largest numbers of windows of src/l2path/lowerings/pooling.h against plain loops; built and run under
// AddressSanitizer and UndefinedBehaviorSanitizer by `nox -s sanitize`. Every operand has an allocation of its own that
// ends with its last element, so that a read or write beyond it is seen.

#include "../../src/l2path/lowerings/pooling.h"

#include <cmath>
#include <cstdio>
#include <vector>

namespace {

long windows = 0, failures = 0;

// Few different numbers, so that the largest one often comes twice, and now and then NaN.
template <class T>
void compare(const Windows& s) {
  std::vector<T> x(s.rows * s.height * s.columns * s.width * s.channels), y(s.rows * s.columns * s.channels, T(77)),
      at(y.size(), T(77));
  unsigned state = 1;
  for (T& number : x) {
    state = state * 1664525u + 1013904223u;
    number = (state >> 8) % 31 ? T((state >> 8) % 5) : T(NAN);
  }
  find_largest<T>(s, x.data(), y.data(), at.data());
  for (Index i = 0; i < Index(y.size()); i++, windows++) {
    const Index channel = i % s.channels, column = i / s.channels % s.columns, row = i / s.channels / s.columns;
    Index place = 0;
    T largest = 0;
    for (Index k = 0; k < s.height * s.width; k++) {
      const Index line = row * s.height + k / s.width, pixel = column * s.width + k % s.width;
      const T number = x[(line * s.columns * s.width + pixel) * s.channels + channel];
      if (k == 0 || number > largest || number != number) largest = number, place = k;
    }
    const bool same = (std::isnan(y[i]) && std::isnan(largest)) || y[i] == largest;
    if ((!same || at[i] != T(place)) && failures++ < 10) {
      std::printf("%ld x %ld x %ld: number %ld is %g at %g, not %g at %ld\n", long(s.height), long(s.width),
                  long(s.channels), long(i), double(y[i]), double(at[i]), double(largest), long(place));
    }
  }
}

template <class T>
void all() {
  for (Index height : {1, 2, 3}) {
    for (Index width : {1, 2, 5}) {
      for (Index channels : {1, 2, 3, 7, 8, 15, 16, 17, 40}) {
        for (Index columns : {1, 4}) compare<T>({3, height, columns, width, channels});
      }
    }
  }
}

}  // namespace

int main() {
  all<float>();
  all<double>();
  std::printf("%ld windows with vectors of %d bytes, %ld wrong\n", windows, kVectorBytes, failures);
  return failures ? 1 : 0;
}
