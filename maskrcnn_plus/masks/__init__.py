"""Masks after the network: run-length codes and label images in place of N x H x W arrays."""
