// The product of two matrices, C = A B, for float and double with any strides.
//
// Written for the products of a batched training step: many matrices of 1 to some hundred rows and columns, a
// third of them with A transposed (weight gradients) and a third with B transposed (forward passes of nn.Linear).
// It is portable by the vector extensions of GCC and Clang; the only things that differ between processors are
// the two constants below. The method is the usual one (Goto and van de Geijn, 2008): a small tile of C is held in
// registers while k runs, so that one load of a row of B serves several rows of A. What the books add for matrices
// beyond the caches (packing A, blocking rows) is left out: it did not pay at these sizes.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

using Index = int64_t;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRegisters = 32;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

template <class T>
struct Simd {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  static constexpr int lanes = kVectorBytes / sizeof(T);
};
template <class T>
using Vector = typename Simd<T>::Vector;
template <class T>
constexpr int lanes = Simd<T>::lanes;

// Three quarters of the registers hold sums, the rest a row of B and an element of A.
constexpr int kMaxVectors = kRegisters == 32 ? 4 : 3;
constexpr int rows_of_tile(int vectors) { return std::min(12, kRegisters * 3 / 4 / vectors); }
constexpr int fewer_rows(int rows) { return rows > 8 ? 8 : rows > 4 ? 4 : rows / 2; }

// Rows of B that one pass uses: a panel of them stays in the caches while all rows of A go by.
constexpr Index kDepth = 256;

// Data of a matrix, and the distances between its rows and between its columns.
template <class T>
struct Matrix {
  T* data;
  Index row, column;

  Matrix at(Index i, Index j) const { return {data + i * row + j * column, row, column}; }
  Matrix transposed() const { return {data, column, row}; }
};

template <class T>
inline Vector<T> load(const T* from) {  // from any address, which a cast pointer would not allow
  Vector<T> to;
  std::memcpy(&to, from, sizeof to);
  return to;
}

template <class T>
inline void store(T* to, Vector<T> from) {
  std::memcpy(to, &from, sizeof from);
}

// How A is walked along its columns: evenly, or with its data `jump` further on after every `run` of them.
struct Evenly {};
struct Jumping {
  Index run, jump;
};

// C (+)= A B for ROWS rows and VECTORS vectors of columns, of which the last begins at column `last`. That one may
// overlap the one before: lanes that belong to both are computed alike and stored twice, so that widths which are
// no multiple of a vector need no masks. The columns of B and C are adjacent.
template <class T, int ROWS, int VECTORS, class Walk>
__attribute__((noinline)) void tile(Matrix<const T> a, Matrix<const T> b, Matrix<T> c, Index last, Index depth,
                                    bool add, Walk walk) {
  const auto begin = [last](int j) { return j == VECTORS - 1 ? last : Index(j) * lanes<T>; };
  Vector<T> sums[ROWS][VECTORS] = {};
  Index run = depth;
  if constexpr (std::is_same_v<Walk, Jumping>) run = walk.run;
  for (Index done = 0;;) {
    for (Index k = 0; k < run; k++) {
      Vector<T> row[VECTORS];
      UNROLL for (int j = 0; j < VECTORS; j++) row[j] = load<T>(b.data + begin(j));
      UNROLL for (int i = 0; i < ROWS; i++) {
        const T x = a.data[i * a.row];
        UNROLL for (int j = 0; j < VECTORS; j++) sums[i][j] += x * row[j];
      }
      a.data += a.column;
      b.data += b.row;
    }
    if constexpr (std::is_same_v<Walk, Evenly>) break;
    if constexpr (std::is_same_v<Walk, Jumping>) a.data += walk.jump;
    if ((done += run) >= depth) break;
  }
  UNROLL for (int i = 0; i < ROWS; i++) {
    if (add) {  // of all vectors before the first is stored, since the last may overlap
      UNROLL for (int j = 0; j < VECTORS; j++) sums[i][j] += load<T>(c.data + begin(j));
    }
    UNROLL for (int j = 0; j < VECTORS; j++) store<T>(c.data + begin(j), sums[i][j]);
    c.data += c.row;
  }
}

// The same where C is narrower than a vector or its columns are apart: by way of a small copy.
template <class T, int ROWS, int VECTORS, class Walk>
void tile_apart(Matrix<const T> a, Matrix<const T> b, Matrix<T> c, Index last, Index depth, bool add, Walk walk,
                Index width) {
  constexpr Index stride = VECTORS * lanes<T>;
  T copy[ROWS * stride] = {};
  if (add) {
    for (Index i = 0; i < ROWS; i++) {
      for (Index j = 0; j < width; j++) copy[i * stride + j] = *c.at(i, j).data;
    }
  }
  tile<T, ROWS, VECTORS, Walk>(a, b, {copy, stride, 1}, last, depth, add, walk);
  for (Index j = 0; j < width; j++) {
    for (Index i = 0; i < ROWS; i++) *c.at(i, j).data = copy[i * stride + j];
  }
}

// All `rows` rows of C, in tiles of ROWS of them, then in smaller ones.
template <class T, int ROWS, int VECTORS, class Walk>
void tiles(Index rows, Matrix<const T> a, Matrix<const T> b, Matrix<T> c, Index width, Index depth, bool add,
           Walk walk) {
  const Index last = std::max<Index>(0, width - lanes<T>);
  const bool apart = width < lanes<T> || c.column != 1;
  Index i = 0;
  for (; i + ROWS <= rows; i += ROWS) {
    if (apart) {
      tile_apart<T, ROWS, VECTORS, Walk>(a.at(i, 0), b, c.at(i, 0), last, depth, add, walk, width);
    } else {
      tile<T, ROWS, VECTORS, Walk>(a.at(i, 0), b, c.at(i, 0), last, depth, add, walk);
    }
  }
  if constexpr (ROWS > 1) {
    if (i == rows) return;
    tiles<T, fewer_rows(ROWS), VECTORS, Walk>(rows - i, a.at(i, 0), b, c.at(i, 0), width, depth, add, walk);
  }
}

// Copies a block of 4 x 4 whose columns hold adjacent numbers to where its rows do.
template <class T>
inline void transpose(const T* from, Index column, T* to, Index row) {
#if __has_builtin(__builtin_shufflevector)
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  Four x[4], even[2], odd[2];
  UNROLL for (int j = 0; j < 4; j++) std::memcpy(&x[j], from + j * column, sizeof(Four));
  UNROLL for (int j = 0; j < 2; j++) {
    even[j] = __builtin_shufflevector(x[2 * j], x[2 * j + 1], 0, 4, 1, 5);
    odd[j] = __builtin_shufflevector(x[2 * j], x[2 * j + 1], 2, 6, 3, 7);
  }
  x[0] = __builtin_shufflevector(even[0], even[1], 0, 1, 4, 5);
  x[1] = __builtin_shufflevector(even[0], even[1], 2, 3, 6, 7);
  x[2] = __builtin_shufflevector(odd[0], odd[1], 0, 1, 4, 5);
  x[3] = __builtin_shufflevector(odd[0], odd[1], 2, 3, 6, 7);
  UNROLL for (int k = 0; k < 4; k++) std::memcpy(to + k * row, &x[k], sizeof(Four));
#else
  for (int k = 0; k < 4; k++) {
    for (int j = 0; j < 4; j++) to[k * row + j] = from[j * column + k];
  }
#endif
}

// Copies `width` columns of B to rows of adjacent numbers, with zeros up to a whole vector.
template <class T>
void pack(Matrix<const T> b, Index width, Index depth, T* to, Index row) {
  const Index j4 = b.row == 1 ? width / 4 * 4 : 0, k4 = b.row == 1 ? depth / 4 * 4 : 0;
  constexpr Index block = 64;  // rows written over and over, which the innermost cache holds
  for (Index first = 0; first < k4; first += block) {
    for (Index j = 0; j < j4; j += 4) {
      for (Index k = first; k < std::min(k4, first + block); k += 4) {
        transpose(b.at(k, j).data, b.column, to + k * row + j, row);
      }
    }
  }
  for (Index k = 0; k < depth; k++) {
    for (Index j = k < k4 ? j4 : 0; j < width; j++) to[k * row + j] = *b.at(k, j).data;
    for (Index j = width; j < lanes<T>; j++) to[k * row + j] = 0;
  }
}

// The product for `width` columns, at most VECTORS vectors of them and more than VECTORS - 1.
template <class T, int VECTORS>
void panel(Index rows, Index width, Index depth, Matrix<const T> a, Matrix<const T> b, Matrix<T> c) {
  constexpr Index stride = VECTORS * lanes<T>;
  alignas(64) T packed[kDepth * stride];
  for (Index k = 0; k < depth; k += kDepth) {
    const Index now = std::min(kDepth, depth - k);
    Matrix<const T> part = b.at(k, 0);
    if (b.column != 1 || width < lanes<T>) {
      pack<T>(part, width, now, packed, stride);
      part = {packed, stride, 1};
    }
    tiles<T, rows_of_tile(VECTORS), VECTORS, Evenly>(rows, a.at(0, k), part, c, width, now, k > 0, {});
  }
}

// Calls `call(vectors, first, width)` for each panel of columns: with its vectors as a type, and its columns.
template <class T, class Call>
void for_panels(Index columns, Call call) {
  for (Index j = 0; j < columns;) {
    const Index left = columns - j, needed = (left + lanes<T> - 1) / lanes<T>;
    // Never one vector alone at the end, which might be narrower than a vector.
    const Index vectors = needed <= kMaxVectors ? needed : needed == kMaxVectors + 1 ? kMaxVectors - 1 : kMaxVectors;
    const Index width = std::min(left, vectors * lanes<T>);
    switch (vectors) {
      case 1: call(std::integral_constant<int, 1>(), j, width); break;
      case 2: call(std::integral_constant<int, 2>(), j, width); break;
      case 3: call(std::integral_constant<int, 3>(), j, width); break;
      default: call(std::integral_constant<int, kMaxVectors>(), j, width);
    }
    j += width;
  }
}

// C = A B with A [rows, depth] and B [depth, columns].
template <class T>
void product(Index rows, Index columns, Index depth, Matrix<const T> a, Matrix<const T> b, Matrix<T> c) {
  if (rows == 0 || columns == 0) return;
  if (depth == 0) {
    for (Index i = 0; i < rows; i++) {
      for (Index j = 0; j < columns; j++) *c.at(i, j).data = 0;
    }
    return;
  }
  // Where C is narrower than a vector, its transpose may not be. The right factor of that must lie ready, or save
  // more than it takes to pack it.
  if (columns < lanes<T> && columns < rows && (a.row == 1 || (a.column == 1 && columns <= lanes<T> * 3 / 4))) {
    return product<T>(columns, rows, depth, b.transposed(), a.transposed(), c.transposed());
  }
  for_panels<T>(columns, [=](auto vectors, Index first, Index width) {
    panel<T, decltype(vectors)::value>(rows, width, depth, a, b.at(0, first), c.at(0, first));
  });
}

}  // namespace
