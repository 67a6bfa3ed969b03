"""Workers: evaluators, their kernels and their Ray shell."""
