"""Triton kernels of the ops, one file an op: the jitted functions and their launchers.

The launchers take and return torch tensors, allocate only their results, never synchronise with
the host and make no decision that depends on the data, so each can be captured in a CUDA graph,
after a call of the same shape has compiled it. They compute no gradients of their own;
``lipvae.ops`` ties forward and backward together.

A launcher takes CUDA or ROCm tensors. With ``TRITON_INTERPRET=1`` set before Triton is first
imported, the same functions run in Triton's interpreter on CPU tensors.
"""
