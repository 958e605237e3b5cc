"""From features to a displacement: the linear start, the coarse and the fine deformable stage."""
