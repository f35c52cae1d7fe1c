"""Torch tensors in, C kernels out: the only importer of the compiled module. (contract; being implemented)"""
