"""Annotations of any format looked through before a training: what is there, what is wrong, what looks wrong."""
