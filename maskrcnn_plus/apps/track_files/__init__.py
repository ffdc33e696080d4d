"""Films: objects that are predicted frame by frame, and the identities that they keep from frame to frame."""
