"""The quantities of the analysis in the paper, as functions of tensors; and whether kernels agree with float64."""
