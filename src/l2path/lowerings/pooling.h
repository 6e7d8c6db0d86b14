// The largest numbers of windows that do not overlap, in channels-last images, on one thread.

#pragma once

#include "vectors.h"

namespace {

// Rows of windows (of all images), and in each of them: rows of pixels, windows, and pixels of a row; channels.
struct Windows {
  Index rows, height, columns, width, channels;
};

// y and at [rows, columns, channels] from x [rows, height, columns, width, channels], all contiguous: the largest
// number of a window, and the place of the first such one. NaN counts as larger than anything before it.
template <class T>
void find_largest(const Windows& s, const T* x, T* y, T* at) {
  with_vectors<T>(s.channels, [&](auto vectors) {
    using V = decltype(vectors);
    using Vector = typename V::Vector;
    const Index next = s.width * s.channels, line = s.columns * next;
    for (Index row = 0; row < s.rows; row++) {
      for (Index column = 0; column < s.columns; column++) {
        const T* const first = x + row * s.height * line + column * next;
        each<V>(1, s.channels, [=](Index, Index channel) {
          Vector best = V::load(first + channel), place = {};
          for (Index i = 0; i < s.height; i++) {
            for (Index j = i == 0 ? 1 : 0; j < s.width; j++) {
              const Vector pixel = V::load(first + i * line + j * s.channels + channel);
              const auto larger = (pixel > best) | (pixel != pixel);
              best = larger ? pixel : best;
              place = larger ? Vector{} + T(i * s.width + j) : place;
            }
          }
          V::store(y + channel, best), V::store(at + channel, place);
        });
        y += s.channels, at += s.channels;
      }
    }
  });
}

}  // namespace
