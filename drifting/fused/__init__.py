"""The default field on a GPU: everything between the matrix products in a few Triton kernels."""
