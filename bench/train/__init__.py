"""Training of large models against its peers, and plans."""
