"""The operators: RoIAlign, non-maximum suppression, masks to run lengths, Winograd convolution."""
