"""Stateless functions: arrays in, arrays out, forward beside backward, in the batch-last layout."""
