"""What operators see of a running node: logs, metrics, health."""
