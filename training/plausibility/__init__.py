"""The scripts that made `inference/plausible.npz`: data, training and evaluation."""
