"""What runs a model's files; each engine imports its runtime only when it is opened."""
