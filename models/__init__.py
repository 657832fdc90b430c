"""Tensors: the learned models. Rows, vectors, batches and shapes; never a user id."""
