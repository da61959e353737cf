"""Sequences of different lengths: filled up to one length in a batch, or one after the other on one time axis."""

from fastscan.sequences.packing import pack_sequences, unpack_sequences
from fastscan.sequences.padding import pad_sequences

__all__ = ["pack_sequences", "pad_sequences", "unpack_sequences"]
