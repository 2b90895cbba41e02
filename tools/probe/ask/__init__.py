"""Asks vLLM's own KV-cache specs what a model keeps in GPU memory, on a machine without a GPU.

environment  makes the folder in which vLLM for CUDA can be imported (`--setup`)
questions    which model, how many GPUs, which length
card         a GPU that this machine does not have, for torch, Triton and vLLM
absent       empty modules for compilers that nothing here calls
ranks        the other GPUs of a tensor-parallel model, and tensors without memory
answer       builds the model and reads vLLM's specs: one row
fork         one process for each question
"""
