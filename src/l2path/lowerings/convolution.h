// Convolutions of channels-last images with a step of one, for one member and on one thread.
//
// No patches are written: for one row of a kernel, the patches of adjacent pixels are rows of a matrix that lie one
// pixel apart and overlap, and the product in product.h takes such a matrix as it is.

#pragma once

#include <vector>

#include "product.h"

namespace {

// Sizes: images, padded rows and columns of pixels, channels; of the kernel; and channels of the result.
struct Images {
  Index count, height, width, channels, kernel_height, kernel_width, out;

  Index rows() const { return height - kernel_height + 1; }
  Index columns() const { return width - kernel_width + 1; }
  Index run() const { return kernel_width * channels; }       // numbers of a patch that lie side by side
  Index jump() const { return (width - kernel_width) * channels; }  // from there to the patch's next row
  Index depth() const { return kernel_height * run(); }
};

// A matrix with rows of adjacent numbers, at least a vector of them.
template <class T>
struct Padded {
  std::vector<T> copy;

  Matrix<const T> of(Matrix<const T> given, Index rows, Index columns) {
    if (given.column == 1 && columns >= lanes<T>) return given;
    const Index stride = std::max<Index>(columns, lanes<T>);
    copy.resize(rows * stride);
    pack<T>(given, columns, rows, copy.data(), stride);
    return {copy.data(), stride, 1};
  }
};

// y [count, rows, columns, out] = x [count, height, width, channels], patch by patch, times w [depth, out].
template <class T>
void convolution(const Images& s, const T* x, Matrix<const T> w, T* y) {
  Padded<T> padded;
  w = padded.of(w, s.depth(), s.out);
  const Index row = s.width * s.channels;
  for_panels<T>(s.out, [&](auto vectors, Index first, Index width) {
    constexpr int count = decltype(vectors)::value;
    for (Index image = 0; image < s.count; image++) {
      for (Index i = 0; i < s.rows(); i++) {
        const Matrix<const T> patches{x + (image * s.height + i) * row, s.channels, 1};
        const Matrix<T> to{y + (image * s.rows() + i) * s.columns() * s.out + first, s.out, 1};
        tiles<T, rows_of_tile(count), count, Jumping>(s.columns(), patches, w.at(0, first), to, width, s.depth(), false,
                                                      {s.run(), s.jump()});
      }
    }
  });
}

// dw [depth, out] = the transposed patches of x times dy [count, rows, columns, out].
template <class T>
void convolution_weight(const Images& s, const T* x, const T* dy, T* dw) {
  Padded<T> padded;
  const Index row = s.width * s.channels, pixels = s.rows() * s.columns();
  for_panels<T>(s.out, [&](auto vectors, Index first, Index width) {
    constexpr int count = decltype(vectors)::value;
    for (Index image = 0; image < s.count; image++) {
      const Matrix<const T> given = padded.of({dy + image * pixels * s.out, s.out, 1}, pixels, s.out);
      for (Index i = 0; i < s.kernel_height; i++) {
        const Matrix<const T> patches{x + (image * s.height + i) * row, 1, s.channels};
        const Matrix<T> to{dw + i * s.run() * s.out + first, s.out, 1};
        const Jumping walk{s.columns(), (s.width - s.columns()) * s.channels};
        tiles<T, rows_of_tile(count), count, Jumping>(s.run(), patches, given.at(0, first), to, width, pixels,
                                                      image > 0, walk);
      }
    }
  });
}

}  // namespace
