// All kernels in one file, so that a compiler makes what they share once.

#include "convolution.cpp"
#include "gemm.cpp"
#include "pooling.cpp"
#include "recurrent.cpp"
