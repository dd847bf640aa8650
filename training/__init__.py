"""Scripts that made the shipped model files; never imported by the node."""
