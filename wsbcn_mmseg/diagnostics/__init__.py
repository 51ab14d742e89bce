"""The quantities of the paper's analysis as functions of tensors, and the comparison of kernels with float64."""
